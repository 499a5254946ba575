"""JSON files that one dataclass each writes and reads: its fields are the file's, its format is versioned.

A file starts with ``"format": 1``; one without is of the time before there were formats, and is read as
format 1. To add a field to a file, add it to its dataclass with a default: files written before still open.
Standard library alone, so that predicting a text need not wait for a validation library to be imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from newsdesk.errors import UserError
from newsdesk.files import damaged, json_bytes, read_json, write_bytes

FORMAT = "format"
CURRENT = 1

T = TypeVar("T")


OPTIONAL = {"optional": True}
"""Metadata of a field that, where it is None, is not in the file at all."""
UNSAID = {"unsaid": True}
"""Metadata of a field that, where it has its default, is not in the file."""
UNSTORED = {"unstored": True}
"""Metadata of a field that is never written; it needs a default."""
KEY = "key"
"""Metadata: the field's name in the file, where that is another one."""


class WrongContentError(ValueError):
    """What is wrong with a file's content, and at which field: ``test.metrics.accuracy is 'high' ...``."""


def to_content(value: Any) -> Any:
    """A value as JSON types: dataclasses as objects, mappings with text keys, sequences as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            _key(of): to_content(getattr(value, of.name))
            for of in fields(value)
            if not of.metadata.get("unstored")
            and not (of.metadata.get("optional") and getattr(value, of.name) is None)
            and not (of.metadata.get("unsaid") and getattr(value, of.name) == of.default)
        }
    if isinstance(value, Mapping):
        return {str(key): to_content(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_content(entry) for entry in value]
    return value


def from_content(kind: type[T], content: Any, where: str = "") -> T:
    """The inverse of ``to_content`` for a dataclass; entries that it has no field for are ignored.

    ``where`` is put before the names of fields in errors. Raises WrongContentError for a missing field or a
    value of another type.
    """
    return cast("T", _parsed(kind, content, where))


def write_stored(path: Path, value: Any) -> None:
    """Write a dataclass to ``path`` as JSON, its format first. Atomic."""
    write_bytes(path, stored_bytes(value))


def stored_bytes(value: Any) -> bytes:
    """What :func:`write_stored` writes."""
    return json_bytes(with_format(to_content(value)))


def with_format(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a file: the format, then ``content``."""
    return {FORMAT: CURRENT, **content}


def read_stored(path: Path, kind: type[T], *, fix: str) -> T:
    """The dataclass in a file. Raises UserError, with ``fix``, when the file is missing or damaged.

    A file of a newer format is a UserError too, which says to upgrade.
    """
    try:
        return from_content(kind, read_content(path, fix=fix))
    except WrongContentError as error:
        raise damaged(path, str(error), fix=fix) from None


def read_stored_by_name(path: Path, kind: type[T], *, fix: str) -> dict[str, T]:
    """As :func:`read_stored` for a file that holds such a dataclass under each of several names."""
    try:
        return {name: from_content(kind, entry, name) for name, entry in read_content(path, fix=fix).items()}
    except WrongContentError as error:
        raise damaged(path, str(error), fix=fix) from None


def read_content(path: Path, *, fix: str) -> dict[str, Any]:
    """The object in a JSON file without its format. Raises UserError as :func:`read_stored`."""
    content = read_json(path, fix=fix)
    found = content.pop(FORMAT, CURRENT)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise damaged(path, f"{FORMAT} is {_shown(found)}, not a version number", fix=fix)
    if found > CURRENT:
        raise UserError(
            f"{path} was written by a newer version of newsdesk",
            found=f"{FORMAT} {found}; this version reads {FORMAT} {CURRENT}",
            fix="upgrade: pip install --upgrade newsdesk",
        )
    return content


def _key(of: Field[Any]) -> str:
    return str(of.metadata.get(KEY, of.name))


@cache
def _fields_of(kind: type) -> tuple[tuple[Field[Any], Any], ...]:
    """The fields that are stored, each with its resolved type."""
    hints = get_type_hints(kind)
    return tuple((of, hints[of.name]) for of in fields(kind) if not of.metadata.get("unstored"))


def _parsed(kind: Any, content: Any, where: str) -> Any:
    if kind is Any:
        return content
    if is_dataclass(kind):
        return _dataclass(cast("type", kind), content, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if content is None and NoneType in arguments:
            return None
        (other,) = (one for one in arguments if one is not NoneType)
        return _parsed(other, content, where)
    if origin is tuple:
        _require(isinstance(content, list), content, "an array", where)
        kinds = arguments[:1] * len(content) if arguments[1:] == (...,) else arguments
        _require(len(content) == len(kinds), content, f"an array of {len(kinds)}", where)
        pairs = enumerate(zip(kinds, content, strict=True))
        return tuple(_parsed(of, entry, _inside(where, str(number))) for number, (of, entry) in pairs)
    if origin in (dict, Mapping):
        _require(isinstance(content, dict), content, "an object", where)
        return {key: _parsed(arguments[1], value, _inside(where, key)) for key, value in content.items()}
    if origin is Literal:
        _require(content in arguments, content, f"one of {', '.join(map(str, arguments))}", where)
        return content
    return _plain(kind, content, where)


def _dataclass(kind: type, content: Any, where: str) -> Any:
    _require(isinstance(content, dict), content, "an object", where)
    found = {}
    for of, hint in _fields_of(kind):
        key = _key(of)
        if key in content:
            found[of.name] = _parsed(hint, content[key], _inside(where, key))
        elif of.default is MISSING and of.default_factory is MISSING:
            raise WrongContentError(f"no {_inside(where, key)}")
    try:
        return kind(**found)
    except (ValueError, UserError) as error:  # what each value may be, but not all of them together
        found_wrong = error.wrong if isinstance(error, UserError) else str(error)
        raise WrongContentError(f"{where}: {found_wrong}" if where else found_wrong) from None


_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    bool: ((bool,), "true or false"),
}


def _plain(kind: Any, content: Any, where: str) -> Any:
    if kind not in _PLAIN:
        raise TypeError(f"{where}: fields of {kind} cannot be stored")
    accepted, name = _PLAIN[kind]
    fits = isinstance(content, accepted) and (kind is bool or not isinstance(content, bool))
    _require(fits, content, name, where)
    if kind is str:
        _require(not any("\ud800" <= letter <= "\udfff" for letter in content), content, "whole text", where)
    if kind is int:
        _require(0 <= content < 1 << 64, content, "a whole number from 0 on", where)
    if kind is not float:
        return content
    try:
        return float(content)
    except OverflowError:
        raise WrongContentError(f"{where or 'the file'} is too large a number") from None


def _require(fits: bool, content: Any, wanted: str, where: str) -> None:
    if not fits:
        raise WrongContentError(f"{where or 'the file'} is {_shown(content)}, not {wanted}")


def _inside(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(content: Any) -> str:
    """A value short enough for an error."""
    if isinstance(content, dict | list):
        return "an object" if isinstance(content, dict) else f"an array of {len(content)}"
    shown = json.dumps(content, ensure_ascii=False)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


_SHOWN = 80  # characters of a value in an error, at most
