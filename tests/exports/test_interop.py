"""Other people's programs load what we export: transformers here, the rest where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import newsdesk
from newsdesk import api
from newsdesk.runs.calibration import softmax

pytest.importorskip("onnx")
transformers = pytest.importorskip("transformers")

TEXTS = ["goal coach league", "bank profit market merger", "orbit genome", "the striker said " * 20]
CLIENT = Path(__file__).parents[1] / "clients" / "transformers_js.mjs"
OPTIMUM = Path(__file__).parents[1] / "clients" / "optimum_client.py"


@pytest.fixture(scope="module", params=["bert", "roberta"])
def run(request, tiny_base, topical_csv, tmp_path_factory):
    flags = {"model.base": str(tiny_base(request.param)), "data.train": str(topical_csv)}
    settings = ["model.max_length=32", "training.learning_rate=2e-2", "training.device=cpu", "data.folds=0"]
    out = tmp_path_factory.mktemp("run") / "run"
    newsdesk.train(
        out=out, flags=flags, overrides=[*settings, "training.epochs=6", "lora.targets=['all-linear']"]
    )
    return out


def exported(run, kind):
    few = {"max_loss_upper": 10.0} if kind == "onnx-int8" else {}  # rows
    return api.export(run, kind, overwrite=True, **few)


def scores_of(rows):
    """[[{label, score} of every class] of every text] as a matrix in the order of the names."""
    return [[entry["score"] for entry in sorted(row, key=lambda entry: entry["label"])] for row in rows]


def test_a_merged_folder_is_a_text_classification_pipeline_with_the_same_scores(run):
    folder = exported(run, "merged").path
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    rows = pipeline(TEXTS, top_k=None, truncation=True)
    assert {entry["label"] for entry in rows[0]} == {"Business", "Science", "Sports"}
    assert newsdesk.load(folder).temperature != 1  # or nothing would be shown
    expected = newsdesk.load(folder).predict_probabilities(TEXTS)
    np.testing.assert_allclose(scores_of(rows), expected, atol=1e-5)
    by_the_run = newsdesk.load(run, engine="torch").predict_probabilities(TEXTS)
    np.testing.assert_allclose(expected, by_the_run, atol=0.01)


def test_a_pipeline_that_is_not_asked_to_truncate_reads_about_as_much(run):
    """Words here are one token each, so that what it reads is just what the run reads."""
    folder = exported(run, "merged").path
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    words = ["goal", "coach", "bank", "market", "orbit", "said"]
    texts = [" ".join(words[row % 6] for row in range(start, start + 500)) for start in range(4)]
    if pipeline.model.config.model_type == "bert":  # whose marks are tokens of their own
        texts += ["goal coach, bank. " * 90, "a" + " \u200b" * 400]
    expected = newsdesk.load(folder).predict_probabilities(texts)
    np.testing.assert_allclose(scores_of([pipeline(text, top_k=None) for text in texts]), expected, atol=1e-5)
    counted = newsdesk.load(folder).predict(texts).truncation
    assert counted == newsdesk.load(run, engine="torch").predict(texts).truncation


def test_programs_without_transformers_cut_texts_by_the_tokenizer_file(run):
    from tokenizers import Tokenizer

    folder = exported(run, "merged").path
    ids = [
        encoding.ids for encoding in Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(TEXTS)
    ]
    assert ids == [found.tolist() for found in newsdesk.load(run, engine="torch").token_ids(TEXTS)]
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["model_max_length"] == 32 == max(map(len, ids))


@pytest.mark.parametrize("kind", ["onnx-fp32", "onnx-int8"])
def test_a_graph_cuts_texts_itself_whatever_it_is_given(run, kind):
    """Untruncated, cut without the closing token as transformers.js does, and padded far behind the end."""
    import onnxruntime

    from newsdesk.model.tokenizer import TextTokenizer, pad

    folder = exported(run, kind).path
    classifier = newsdesk.load(folder)
    session = onnxruntime.InferenceSession(str(classifier.exported.model))
    whole = TextTokenizer.from_folder(folder, None).encode(TEXTS)
    assert max(map(len, whole)) > 48  # more than the model has positions for
    for sequences in (whole, [ids[:32] for ids in whole], classifier.token_ids(TEXTS)):
        input_ids, mask = pad(sequences, classifier.exported.pad_id)
        found = session.run(["logits"], {"input_ids": input_ids, "attention_mask": mask})[0]
        np.testing.assert_allclose(softmax(found), classifier.predict_probabilities(TEXTS), atol=1e-5)


def test_an_export_says_whether_texts_begin_with_a_space_which_transformers_4_would_assume_not(run):
    folder = exported(run, "merged").path
    splitting = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"]
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings.get("add_prefix_space") == splitting.get("add_prefix_space")
    assert settings["tokenizer_class"] != "TokenizersBackend"


@pytest.mark.parametrize(
    "variant",
    [{"dora": True}, {"rslora": True}, {"init": "pissa"}, {"init": "olora"}, {"bias": "lora_only"}],
    ids=lambda variant: "-".join(map(str, *variant.items())),
)
def test_every_kind_of_adapter_merges_to_what_the_run_computes(variant, tiny_base, topical_csv, tmp_path):
    flags = {f"lora.{key}": value for key, value in variant.items()} | {
        "model.base": str(tiny_base("mpnet")),
        "data.train": str(topical_csv),
        "training.epochs": 0.3,
    }
    settings = ["training.learning_rate=2e-2", "model.max_length=32", "data.folds=0"]
    run = newsdesk.train(out=tmp_path / "run", flags=flags, overrides=settings)
    for kind in ("merged", "onnx-fp32"):
        assert api.export(run.path, kind).quality.tried[0].largest_difference < 1e-4


def modules_of_node():
    """Where @huggingface/transformers is installed for node; skips where it is not."""
    modules = Path(os.environ.get("NEWSDESK_NODE_MODULES", CLIENT.parent / "node_modules"))
    if not shutil.which("node") or not (modules / "@huggingface" / "transformers").is_dir():
        pytest.skip("node with @huggingface/transformers is not installed (NEWSDESK_NODE_MODULES)")
    return modules


@pytest.mark.parametrize(("kind", "precision"), [("onnx-fp32", "fp32"), ("onnx-int8", "q8")])
def test_transformers_js_gives_the_same_scores(run, kind, precision):
    modules = modules_of_node()
    folder = exported(run, kind).path
    command = ["node", str(CLIENT), str(modules), str(folder), precision, json.dumps(TEXTS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    expected = newsdesk.load(folder).predict_probabilities(TEXTS)
    np.testing.assert_allclose(scores_of(json.loads(result.stdout)), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["onnx-fp32", "onnx-int8"])
def test_optimum_gives_the_same_scores(run, kind):
    python = os.environ.get("NEWSDESK_OPTIMUM_PYTHON")
    if python is None:
        pytest.skip("NEWSDESK_OPTIMUM_PYTHON names no Python that has optimum[onnxruntime]")
    folder = exported(run, kind).path
    result = subprocess.run(
        [python, str(OPTIMUM), str(folder), json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert result.returncode == 0, result.stderr
    expected = newsdesk.load(folder).predict_probabilities(TEXTS)
    np.testing.assert_allclose(scores_of(json.loads(result.stdout)), expected, atol=1e-3)
