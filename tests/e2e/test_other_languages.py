"""Texts in Chinese, Thai and Arabic go the whole way, with bases shaped as the multilingual ones are.

A vocabulary of unigrams, trained here; BERT's layers with a padding id that is the tokenizer's ``<s>``
(multilingual-e5-small), and XLM-R's with weights in bfloat16 (granite-embedding-107m-multilingual).
"""

from __future__ import annotations

import csv
import io
import json
import random
from itertools import product

import pytest

from newsdesk.data.words import word_spans

pytest.importorskip("onnx")

TOPICS = {
    "体育": ("", "球队 比赛 冠军 教练 进球 联赛"),
    "财经": ("", "股市 利率 银行 投资 利润 公司"),
    "กีฬา": ("", "ฟุตบอล นักเตะ แชมป์ โค้ช ประตู ลีก"),
    "رياضة": (" ", "فريق مباراة هدف مدرب بطولة دوري"),
}
TINY_TRAINING = {
    "training.learning_rate": "5e-3",
    "training.precision": "float32",
    "training.device": "cpu",
    "training.baseline": "false",
    "training.min_steps": "1",
    "data.folds": "0",
    "model.dropout": "0.0",
    "model.max_length": "48",
    "lora.targets": '["all-linear"]',
}
FAMILIES = {"bert": 0, "xlm-roberta": 1}
MARKS = "\u2066\u2067\u2068\u2069\u200e\u200f"
ARABIC = "مباراة فريق هدف مدرب دوري"


def rows(count, seed):
    draw = random.Random(seed)
    texts = [
        (between.join(draw.choices(words.split(), k=draw.randint(4, 8))), label)
        for (label, (between, words)), _ in product(TOPICS.items(), range(count))
    ]
    draw.shuffle(texts)
    return texts


def unigrams():
    """A fast tokenizer as XLM-R's: unigrams, a mark for spaces, <s> and </s> around a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    # The trainer looks for what repeats in different strings: whole texts, with the mark where spaces are.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([text for text, _ in rows(40, seed=5)], trainer)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    import torch
    import transformers

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(7)
    prefix = {"bert": "Bert", "xlm-roberta": "XLMRoberta"}[request.param]
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.2,
        type_vocab_size=2,
        pad_token_id=FAMILIES[request.param],
    )
    model = getattr(transformers, f"{prefix}Model")(config)
    model.to(torch.bfloat16 if request.param == "xlm-roberta" else torch.float32).save_pretrained(folder)
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=unigrams(), **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train", 80), ("test", 10)):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows(count, seed=len(name))])
    return folder


@pytest.fixture(scope="module")
def trained(base, data, tmp_path_factory):
    """A run of rows in four scripts, trained once."""
    import newsdesk

    flags = {"data.train": str(data / "train.csv"), "model.base": str(base), "training.epochs": 10.0}
    settings = [f"{key}={value}" for key, value in TINY_TRAINING.items()]
    return newsdesk.train(out=tmp_path_factory.mktemp("runs") / "run", flags=flags, overrides=settings).path


def test_it_learns_and_no_other_base_is_advised(newsdesk, trained, data, base):
    manifest = json.loads((trained / "manifest.json").read_text())
    assert not [remark for remark in manifest["training"]["remarks"] if "base" in remark]
    checked = newsdesk("data", "check", data / "train.csv", "--base", base)
    assert "--base" not in checked.out
    outcome = newsdesk("evaluate", trained, "--data", data / "test.csv", "--baseline")
    figures = json.loads((trained / "metrics.json").read_text())["test"]
    assert figures["metrics"]["accuracy"] > 0.8, outcome.out
    assert figures["baseline"]["accuracy"] > 0.9  # characters are words where there are no spaces


def test_stock_transformers_and_peft_get_the_same_logits(trained, base):
    import numpy as np
    import torch
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    import newsdesk

    texts = [text for text, _ in rows(3, seed=9)]
    stock = AutoPeftModelForSequenceClassification.from_pretrained(
        trained / "adapter", num_labels=len(TOPICS), dtype=torch.float32
    ).eval()
    inputs = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        expected = stock(**inputs).logits.numpy()
    classifier = newsdesk.load(trained)
    logits, _ = classifier.outputs(classifier.token_ids(texts))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("text", ["球队比赛冠军教练", "ฟุตบอลแชมป์โค้ช", ARABIC])
def test_explanations_weigh_words_or_characters_in_place(newsdesk, trained, text):
    (found,) = newsdesk("explain", trained, text, "--json").json["explanations"]
    (predicted,) = newsdesk("predict", trained, text, "--json").json["predictions"]
    assert found["label"] == predicted["label"]
    assert [(word["start"], word["end"]) for word in found["words"]] == list(word_spans(text))
    assert "".join(word["text"] for word in found["words"]) == text.replace(" ", "")
    assert any(word["weight"] > 0 for word in found["words"])
    shown = newsdesk("explain", trained, text).out
    assert (f"\u2068{text}\u2069" in shown) == (text == ARABIC)


def test_exports_answer_as_the_run_does_and_files_carry_no_marks(newsdesk, trained, data, tmp_path):
    texts = [text for text, _ in rows(4, seed=11)]
    of_run = newsdesk("predict", trained, *texts, "--json").json["predictions"]
    for kind in ("onnx-fp32", "onnx-int8"):
        few = ["--max-loss-upper", "20"] if kind == "onnx-int8" else []  # rows
        outcome = newsdesk("export", trained, "--to", kind, *few)
        assert outcome.code == 0, outcome.err
        exported = newsdesk("predict", trained / "export" / kind, *texts, "--json").json["predictions"]
        assert [one["label"] for one in exported] == [one["label"] for one in of_run]
    target = tmp_path / "out.csv"
    outcome = newsdesk("predict", trained, "--input", data / "test.csv", "--output", target)
    assert outcome.code == 0, outcome.err
    written = target.read_text(encoding="utf-8")
    assert not set(MARKS) & set(written)
    answers = list(csv.DictReader(io.StringIO(written)))
    assert [row["text"] for row in answers] == [text for text, _ in rows(10, seed=len("test"))]
