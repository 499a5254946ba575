"""A stranger's tokenizer.json: its components checked by a list before the tokenizers library compiles them.

That library trusts the file: an expression in it may never end, a replacement may make a gigabyte of a text,
and what it does not expect ends in a panic, which is no Exception.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from newsdesk.errors import UserError
from newsdesk.files import parsed_json, read_regular

TOKENIZER = "tokenizer.json"
WORD_LIMIT = "(?#word limit)"
"""A comment in the expression that newsdesk puts into merged exports, by which it is recognised."""

# fmt: off
_SUPPORTED = {
    "normalizer": {
        "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled",
        "Prepend", "Replace", "Strip", "StripAccents",
    },
    "pre_tokenizer": {
        "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Split",
        "UnicodeScripts", "Whitespace", "WhitespaceSplit",
    },
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing"},
    "decoder": {
        "BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Strip",
        "WordPiece",
    },
}
"""What encoders' tokenizers are made of, and sequences of these."""
# fmt: on
_LISTS = {"normalizers", "pretokenizers", "processors", "decoders"}  # of a Sequence
_MOST_STEPS, _LONGEST_CONTENT, _LONGEST_CHARACTER, _MOST_GROWTH = 16, 64, 64, 4
_MOST_ADDED, _MOST_SPECIAL, _LONGEST_WORD = 20_000, 16, 1000
_ESCAPED = r"\\[sSdDwWnrt]|\\[pP]\{\w{1,20}\}|\\[^\w\s]"
_ATOM = rf"(?:{_ESCAPED}|\[\^?(?:{_ESCAPED}|[^\\\[\]&{{}}])+\]|[^\\\[\](){{}}*+?.|^$])"
_BRANCH = rf"{_ATOM}{{0,20}}{_ATOM}(?:\+|\{{[1-9],?[1-9]?\}})?"
_LINEAR = re.compile(rf"{_BRANCH}(?:\|{_BRANCH}){{0,9}}")
"""Alternatives with no more than one repeat, at the end of each: what matches is never tried again."""
_WELL_KNOWN = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    *(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        rf"{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        for number in (r"\p{N}{1,3}", r"\p{N}")  # Llama 3, Qwen
    ),
}
_FIX = "take the tokenizer of the base model as transformers' save_pretrained wrote it"


def open_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a run, an export or a base model.

    Raises UserError when it is missing or broken, or made of something that newsdesk does not support.
    """
    path = folder / TOKENIZER
    if not path.exists():
        raise UserError(
            f"there is no tokenizer.json in {folder}",
            fix="newsdesk needs a fast tokenizer: load the base with transformers' AutoTokenizer "
            "and save_pretrained() it into that folder",
        )
    try:
        content = read_regular(path)
        _require_supported(_components(content), path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path} is not a tokenizer file", found=reason, fix=_FIX) from None
    with explained_panics(path):
        tokenizer: Tokenizer = Tokenizer.from_buffer(content)
        longest = getattr(tokenizer.model, "max_input_chars_per_word", 0)
        if longest > _LONGEST_WORD:
            raise _unsupported(path, f"max_input_chars_per_word = {longest:,}")
        if getattr(tokenizer.model, "dropout", None):
            raise _unsupported(path, f"dropout = {tokenizer.model.dropout}")
    return tokenizer


@contextmanager
def explained_panics(path: Path) -> Iterator[None]:
    """Turn what the tokenizers library makes of a broken file, panics included, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a tokenizer file", found=found, fix=_FIX) from None


def is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library broke off where it cannot go on: its class has no public name."""
    return type(error).__name__ == "PanicException"


def _components(content: bytes) -> Mapping[str, Any]:
    """The file without its vocabulary, which is last, and long. Raises ValueError for what is no object."""
    text = content.decode()
    head, key, tail = text.partition('"model":')
    parts = ("added_tokens", "truncation", "padding", *_SUPPORTED)
    if key and not any(f'"{name}"' in tail for name in parts) and not re.search(r"\\u00[4-7]", tail):
        try:
            return _object(head.rstrip().removesuffix(",") + "}")
        except ValueError:  # the first key called so is another one
            pass
    return _object(text)


def _object(text: str) -> Mapping[str, Any]:
    found = parsed_json(text)
    if not isinstance(found, dict):
        raise ValueError("no object in it")
    return found


def _require_supported(content: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for a component, an expression or a size that is not on the list."""
    steps: dict[str, list[Mapping[str, Any]]] = {}
    for part, supported in _SUPPORTED.items():
        steps[part] = list(_steps(content.get(part), part, path))
        if len(steps[part]) > _MOST_STEPS:
            raise _unsupported(path, f"{part} of {len(steps[part]):,} steps")
        for step in steps[part]:
            if str(step.get("type")) not in supported:
                raise _unsupported(path, f"{part} of the type {step.get('type')!r:.80}")
            if "pattern" in step:
                _require_quick(step["pattern"], part, path)
    growth = prod(_growth(step, path) for step in steps["normalizer"])
    if growth > _MOST_GROWTH:
        raise _unsupported(path, f"a normalizer that makes up to {growth:,} characters of one")
    for step in steps["post_processor"]:
        if step["type"] == "TemplateProcessing":
            _require_short_template(step, path)
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > _MOST_ADDED:
        raise _unsupported(path, f"added_tokens: more than {_MOST_ADDED:,}, or no list")


def _steps(component: Any, part: str, path: Path, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A component, or those of a sequence, whose own may be sequences again."""
    if component is None:
        return
    if not isinstance(component, dict):
        raise _unsupported(path, f"{part} = {component!r:.80}")
    if component.get("type") != "Sequence":
        yield component
        return
    inner = [value for name, value in component.items() if name in _LISTS]
    if depth == _MOST_STEPS or len(inner) != 1 or not isinstance(inner[0], list):
        raise _unsupported(path, f"{part}: a sequence that is nested, or has no steps")
    for each in inner[0]:
        yield from _steps(each, part, path, depth + 1)


def _require_quick(pattern: Any, part: str, path: Path) -> None:
    """Raise UserError unless a pattern is a text, or an expression matched in linear time."""
    found = next(iter(pattern.values()), None) if isinstance(pattern, dict) and len(pattern) == 1 else None
    if not isinstance(found, str) or not found:
        raise _unsupported(path, f"{part}: pattern = {pattern!r:.80}")
    if "String" in pattern and len(found) <= _LONGEST_CONTENT:
        return
    if found in _WELL_KNOWN or (len(found) <= 2 * _LONGEST_CONTENT and _LINEAR.fullmatch(found)):
        return
    if found.startswith(WORD_LIMIT) and re.sub(r"\{\d{1,6}\}", "{}", found) in _word_limits():
        return
    raise _unsupported(path, f"{part}: the pattern {found!r:.80}")


def word_limit(words: int, *, bert: bool) -> str:
    """The expression that finds what is after so many words; BERT's count punctuation and ideographs, too."""
    word = r"\s*\S+"
    if bert:
        ideograph, unseen = r"\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF", r"\s\p{C}"
        letters = rf"[^{unseen}\p{{P}}{ideograph}][^\s\p{{P}}{ideograph}]*"
        word = rf"[{unseen}]*(?:[{ideograph}]|\p{{P}}|{letters})"
    # Atomic groups: a word is never taken apart to make up the number. (?m:.) is any character, \K keeps.
    return rf"{WORD_LIMIT}\A(?>{word}){{{words}}}\K(?m:.)*"


def _word_limits() -> set[str]:
    return {word_limit(0, bert=bert).replace("{0}", "{}") for bert in (False, True)}


def _growth(step: Mapping[str, Any], path: Path) -> int:
    """How many characters a normalizer may make of one, Unicode's own forms not counted."""
    content = step.get("content", step.get("prepend", ""))
    if not isinstance(content, str) or len(content) > _LONGEST_CONTENT:
        raise _unsupported(path, f"{step['type']} with the content {content!r:.80}")
    if step["type"] == "Replace":
        matched = step.get("pattern", {}).get("String", "x")
        return max(1, -(-len(content) // len(matched)))
    if step["type"] == "Precompiled":
        return _precompiled_growth(step.get("precompiled_charsmap"), path)
    return 2 if step["type"] == "ByteLevel" else 1


def _precompiled_growth(encoded: Any, path: Path) -> int:
    """1 for SentencePiece's table of characters; its texts, after a trie, are ended by NUL bytes."""
    try:
        table = base64.b64decode(encoded or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise _unsupported(path, "precompiled_charsmap, which is not base64") from None
    start = 4 + int.from_bytes(table[:4], "little")
    longest = max(map(len, table[start:].split(b"\0")), default=0)
    if start > len(table) or longest > _LONGEST_CHARACTER:
        raise _unsupported(path, f"precompiled_charsmap: {longest:,} bytes for a character, or cut off")
    return 1


def _require_short_template(step: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for a template that repeats the text, or puts many tokens around it."""
    try:
        pieces = [*step["single"], *step["pair"]]
        texts = sum("Sequence" in piece for piece in step["single"])
        named = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
        ids = [token["ids"] for token in step["special_tokens"].values()]
        short = len(pieces) <= _MOST_SPECIAL and all(len(each) == 1 for each in ids)
    except (KeyError, TypeError, AttributeError):
        raise _unsupported(path, "a template that is not whole") from None
    if missing := named.difference(step["special_tokens"]):
        raise _unsupported(path, f"a template with {next(iter(missing))!r:.80}, which is not defined")
    if texts != 1 or not short:
        raise _unsupported(path, "a template that repeats the text, or has too many tokens around it")


def _unsupported(path: Path, found: str) -> UserError:
    return UserError(f"{path} asks for something that newsdesk does not support", found=found, fix=_FIX)
