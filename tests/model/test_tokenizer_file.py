"""A stranger's tokenizer.json is an answer or one sentence that names the file and what is wrong with it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from newsdesk.data.table import LONGEST_TEXT
from newsdesk.errors import UserError
from newsdesk.model.classifier import copy_tokenizer
from newsdesk.model.tokenizer import TextTokenizer, limit_words
from newsdesk.model.tokenizer_file import open_tokenizer

BERT = {token: number for number, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"))}
ROBERTA = {token: number for number, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>", "a"))}
UNIGRAMS = [(token, 0.0) for token in ROBERTA] + [("\u2581", -2.0)]
OF_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "BertTokenizer": {"vocab": BERT},
    "DistilBertTokenizer": {"vocab": BERT},
    "ElectraTokenizer": {"vocab": BERT},
    "MPNetTokenizer": {"vocab": {**ROBERTA, "[UNK]": 6}},
    "RobertaTokenizer": {"vocab": ROBERTA, "merges": []},
    "DebertaTokenizer": {"vocab": BERT, "merges": []},
    "DebertaV2Tokenizer": {"vocab": [(token, 0.0) for token in BERT] + [("\u2581", -2.0)]},
    "XLMRobertaTokenizer": {"vocab": UNIGRAMS},
    "CamembertTokenizer": {"vocab": UNIGRAMS},
    "AlbertTokenizer": {"vocab": [("<pad>", 0.0), ("<unk>", 0.0), *((t, 0.0) for t in list(BERT)[2:])]},
    "GPT2Tokenizer": {"vocab": ROBERTA, "merges": []},  # byte-level, as ModernBERT's
}
WORDPIECE = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
NESTED: dict[str, Any] = {"type": "Lowercase"}
for _ in range(100):
    NESTED = {"type": "Sequence", "normalizers": [NESTED]}
SPECIAL = {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}
TEXT, CLS = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[CLS]", "type_id": 0}}


def template(single: list[Any], **token: Any) -> dict[str, Any]:
    tokens = {"[CLS]": {**SPECIAL, **token}}
    return {"type": "TemplateProcessing", "single": single, "pair": [TEXT], "special_tokens": tokens}


def replacing(pattern: dict[str, str], content: str = "b") -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def chain(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def splitting(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def charsmap(text: bytes, trie: int = 8) -> str:
    return base64.b64encode(trie.to_bytes(4, "little") + bytes(8) + text).decode()


HOSTILE: list[tuple[str, Any, str]] = [
    ("normalizer", replacing({"Regex": "(a+)+$"}), r"normalizer: the pattern '\(a\+\)\+\$'"),
    ("normalizer", replacing({"Regex": r"\s+$"}), "the pattern"),
    ("normalizer", replacing({"Regex": "((a{1000}){1000}){1000}"}), "the pattern"),
    ("normalizer", replacing({"Regex": "a*"}), "the pattern"),
    ("normalizer", replacing({"Regex": "(?#word limit)(a+)+$"}), "the pattern"),
    ("normalizer", replacing({"String": ""}), "pattern ="),
    ("normalizer", replacing({"String": "a"}, "a" * 1_000_000), "content"),
    ("normalizer", chain(*[replacing({"String": "a"}, "aa")] * 9), "512 characters of one"),
    ("normalizer", chain(*[{"type": "NFC"}] * 99), "99 steps"),
    ("normalizer", chain(*[{"type": "ByteLevel"}] * 9), "512 characters of one"),
    ("normalizer", {"type": "Prepend", "prepend": "x" * 1_000_000}, "content"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "%%%"}, "not base64"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": charsmap(b"x" * 999)}, "999 bytes"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": charsmap(b"x", trie=2**31)}, "cut off"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": charsmap(b"")}, ""),
    ("normalizer", NESTED, "nested"),
    ("normalizer", {"type": "Python", "code": "import os"}, "of the type 'Python'"),
    ("normalizer", ["NFC"], "normalizer ="),
    ("normalizer", {"type": ["NFC"]}, "of the type"),
    ("post_processor", {"type": {"a": 1}}, "of the type"),
    ("normalizer", {"type": "Replace", "content": "b"}, ""),
    ("pre_tokenizer", splitting("(?=(a+)+$)"), "pre_tokenizer: the pattern"),
    ("pre_tokenizer", splitting("(a|aa)+b"), "pre_tokenizer: the pattern"),
    ("pre_tokenizer", splitting("a+a+a+b"), "pre_tokenizer: the pattern"),
    ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "FixedLength"),
    ("pre_tokenizer", {"type": "Metaspace", "replacement": "abc"}, ""),
    ("decoder", replacing({"Regex": "((a{1000}){1000}){1000}"}), "decoder: the pattern"),
    ("post_processor", template([CLS, *[TEXT] * 99]), "repeats the text"),
    ("post_processor", template([*[CLS] * 99, TEXT]), "too many tokens"),
    ("post_processor", template([CLS]), "repeats the text"),
    ("post_processor", template([CLS, TEXT], ids=[2] * 10_000), "too many tokens"),
    ("post_processor", template([TEXT, {"SpecialToken": {"id": "[GONE]", "type_id": 0}}]), "GONE"),
    ("post_processor", {"type": "BertProcessing", "sep": ["[SEP]", -1], "cls": 7}, ""),
    ("added_tokens", [{"content": "x"}] * 30_000, "more than 20,000"),
    ("added_tokens", {"id": 10**30}, "no list"),
    ("added_tokens", [{"id": 10**30, "content": 7}], ""),
    ("truncation", {"max_length": -1}, ""),
    ("padding", {"strategy": {"Fixed": 10**30}}, ""),
    (
        "model",
        {"type": "WordPiece", "vocab": BERT, **WORDPIECE, "max_input_chars_per_word": 10**9},
        "max_input",
    ),
    ("model", {"type": "WordPiece", "vocab": {"a": 0}, **WORDPIECE}, "UNK"),
    ("model", {"type": "BPE", "vocab": BERT, "merges": [], "dropout": 0.5}, "dropout"),
    ("model", {"type": "BPE", "vocab": BERT, "merges": [["gone", "too"]]}, "out of vocabulary"),
    ("model", {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 99}, ""),
    ("model", {"type": "WordPiece", "vocab": {"a": -7}}, ""),
    ("model", 7, ""),
]


@pytest.mark.parametrize("family", OF_TRANSFORMERS)
def test_the_tokenizers_of_transformers_encoders_open(family: str, tmp_path: Path):
    getattr(transformers, family)(**OF_TRANSFORMERS[family]).save_pretrained(tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    limit_words(tokenizer, 16)  # as an export has it
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TextTokenizer.from_folder(tmp_path, 16).encode(["a"])[0].size


@pytest.mark.parametrize(("part", "value", "found"), HOSTILE)
def test_what_no_encoder_needs_is_refused_by_name(
    part: str, value: Any, found: str, tiny_base: Callable[..., Path], tmp_path: Path
):
    content = json.loads((tiny_base() / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, part: value}))
    with pytest.raises(UserError, match=r"tokenizer\.json") as refused:
        TextTokenizer.from_folder(tmp_path, 16).encode(["a" * 5000, "b c", "\ufdfa", ""])
    assert refused.value.found
    if found:
        refused.match(found)


def test_a_component_after_the_vocabulary_is_checked_too(tiny_base: Callable[..., Path], tmp_path: Path):
    content = json.loads((tiny_base() / "tokenizer.json").read_text())
    content = {name: value for name, value in content.items() if name != "normalizer"}
    hostile = json.dumps(replacing({"Regex": "(a+)+$"}))
    for name in ('"normalizer"', r'"n\u006frmalizer"'):
        (tmp_path / "tokenizer.json").write_text(f"{json.dumps(content)[:-1]}, {name}: {hostile}}}")
        with pytest.raises(UserError, match="the pattern"):
            open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        open_tokenizer(tmp_path)


def test_a_panic_of_the_library_is_one_sentence():
    tokenizer = Tokenizer(models.WordLevel(BERT, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = TextTokenizer(tokenizer, 8)
    tokenizer.normalizer = normalizers.Replace(Regex("(a+)+$"), "b")  # which no file may ask for
    with pytest.raises(UserError, match=r"(?s)tokenizer\.json is not a tokenizer file.*Regex search error"):
        text.encode(["a" * 60 + "c"])


def test_a_text_has_a_length_that_memory_is_enough_for(tiny_base: Callable[..., Path]):
    tokenizer = TextTokenizer.from_folder(tiny_base(), 8)
    with pytest.raises(UserError, match="4,000,001 characters"):
        tokenizer.encode(["goal", "x" * (LONGEST_TEXT + 1)])
    texts = ["goal " * 300_000, "market", "goal " * 300_000, "", "goal " * 300_000]
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == [
        ids.tolist() for text in texts for ids in tokenizer.encode([text[:500]])
    ]


def test_tokens_beyond_the_models_table_are_refused(tiny_base: Callable[..., Path]):
    tokenizer = TextTokenizer.from_folder(tiny_base(), 8, vocabulary=60)
    assert len(tokenizer.encode(["x", ""])) == 2
    with pytest.raises(UserError, match="makes tokens that the model does not have") as refused:
        tokenizer.encode(["x", "market"])
    assert "'market'); the model has 60, from 0" in (refused.value.found or "")


def test_files_elsewhere_that_a_tokenizer_names_are_not_read(tiny_base: Callable[..., Path], tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base().glob("*.json"):
        (base / path.name).write_bytes(path.read_bytes())
    settings = json.loads((base / "tokenizer_config.json").read_text())
    named = {"vocab_file": "/dev/zero", "tokenizer_file": "/dev/zero", "auto_map": {"AutoTokenizer": "x.Y"}}
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, **named}))
    copy_tokenizer(base, tmp_path / "copy")
    assert "/dev/zero" not in (tmp_path / "copy" / "tokenizer_config.json").read_text()
    (base / "special_tokens_map.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a regular file"):
        copy_tokenizer(base, tmp_path / "copy")
    (base / "special_tokens_map.json").unlink()
    (base / "added_tokens.json").write_text(json.dumps({f"token {n}": n for n in range(300_000)}))
    with pytest.raises(UserError, match="larger than 4,194,304 bytes"):
        copy_tokenizer(base, tmp_path / "copy")
