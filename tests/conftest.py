"""Tiny base models, topical rows and recipes, built in code: what the model and training tests stand on."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from topics import FILLER_WORDS, TOPIC_WORDS, topical_rows

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LONGEST_TOKENS = 48
"""Positions of every tiny base; RoBERTa and MPNet keep two of them for padding."""


def _write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("label", "text"), *rows])
    return path


@pytest.fixture(scope="session")
def topical_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 rows of three classes whose words tell the class."""
    return _write_rows(tmp_path_factory.mktemp("rows") / "topics.csv", topical_rows(240, seed=1))


@pytest.fixture
def write_rows() -> Callable[[Path, list[tuple[str, str]]], Path]:
    """Write (label, text) rows as a csv file with a header."""
    return _write_rows


def _tokenizer(family: str) -> Any:
    """A WordPiece tokenizer with BERT's special tokens, or byte-level BPE with RoBERTa's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    words = sorted({word for topic in TOPIC_WORDS.values() for word in topic} | set(FILLER_WORDS))
    if family == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces = [f"{prefix}{letter}" for prefix in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]
        vocabulary = {piece: number for number, piece in enumerate([*special, *pieces, *words])}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        return tokenizer
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(words)] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def tiny_settings(family: str, **settings: Any) -> dict[str, Any]:
    """Arguments of an encoder's configuration: two layers of 32 features, weights large enough to matter."""
    return {
        "vocab_size": 640,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": LONGEST_TOKENS + (0 if family == "bert" else 2),
        "initializer_range": 0.2,
        "pad_token_id": 0 if family == "bert" else 1,
        **settings,
    }


def _build_base(folder: Path, family: str, **settings: Any) -> Path:
    import torch
    import transformers

    prefix = {"bert": "Bert", "roberta": "Roberta", "mpnet": "MPNet"}[family]
    torch.manual_seed(7)
    config = getattr(transformers, f"{prefix}Config")(**tiny_settings(family, **settings))
    getattr(transformers, f"{prefix}Model")(config).save_pretrained(folder)
    names = ("[CLS]", "[PAD]", "[SEP]", "[UNK]") if family == "bert" else ("<s>", "<pad>", "</s>", "<unk>")
    tokens = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token"), names, strict=True))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=_tokenizer(family), **tokens)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_base("roberta")``: the folder of a base model as save_pretrained writes it; built once each."""
    built: dict[tuple[object, ...], Path] = {}

    def base(family: str = "bert", **settings: Any) -> Path:
        key = (family, *sorted(settings.items()))
        if key not in built:
            built[key] = _build_base(tmp_path_factory.mktemp(f"base-{family}"), family, **settings)
        return built[key]

    return base


@pytest.fixture
def tiny_recipe(tiny_base: Callable[..., Path], topical_csv: Path) -> Callable[..., Any]:
    """``tiny_recipe("training.epochs=2", family="mpnet")``: a resolved recipe that trains in a second."""
    from newsdesk.config import load_recipe

    def recipe(*overrides: str, family: str = "bert") -> Any:
        flags = {
            "data.train": str(topical_csv),
            "data.validation_share": 0.2,
            "model.base": str(tiny_base(family)),
            "model.max_length": 32,
            "model.dropout": 0.0,
            "lora.rank": 8,
            "training.epochs": 1.0,
            "training.learning_rate": 2e-2,
            "training.precision": "float32",
            "training.device": "cpu",
            "training.baseline": False,
        }
        return load_recipe(None, flags, overrides)

    return recipe


@pytest.fixture(scope="session")
def benchmark_script() -> Callable[[str], Any]:
    """``benchmark_script("train_speed")``: the script as a module, to try out what it computes."""

    def load(name: str) -> Any:
        specification = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
        return module

    return load


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: not item.path.name.startswith("test_documented_"))
