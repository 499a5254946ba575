"""What predict can promise of its answers: the flags that ask for it, and what is said in the end."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, cast

import click

from newsdesk.cli.shared import AnyCallable, flag, note, terminal

if TYPE_CHECKING:
    from newsdesk.inference.decision import DecisionRule
    from newsdesk.model.tokenizer import Truncation

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_PROMISES = {
    "abstain": "Leave texts unanswered, so that at most this share of the answered ones is wrong.",
    "confidence": "How surely --abstain keeps that, over the draw of the calibration rows; default: 0.95.",
    "sets": "Name candidates for each text, which contain the true class for this share of texts.",
    "off_topic": "Leave texts unanswered that are as untypical as this share of the calibration rows.",
}


def promise_flags(function: AnyCallable) -> AnyCallable:
    """Add the flags that ask for a promise; they come as ``promise``, the arguments of ``decision_rule``.

    Those not given are left out. --confidence alone raises click.UsageError.
    """

    @wraps(function)
    def with_promise(*arguments: Any, **others: Any) -> Any:
        given = {name: share for name in _PROMISES if (share := others.pop(name)) is not None}
        if "confidence" in given and "abstain" not in given:
            raise click.UsageError("--confidence goes with --abstain.")
        return function(*arguments, **others, promise=given)

    wrapped = cast(AnyCallable, with_promise)
    for name in reversed(_PROMISES):
        add = flag(f"--{name.replace('_', '-')}", type=_SHARE, metavar="SHARE", help=_PROMISES[name])
        wrapped = add(wrapped)
    return wrapped


def note_reading(read: Truncation | None, max_length: int | None, unreadable: int) -> None:
    """Say how many texts were cut, and how many had nothing in them; nothing where all were read whole."""
    if unreadable:
        texts = "text has" if unreadable == 1 else "texts have"
        why = "empty, or without a known token; --answer-empty labels such texts too"
        note(terminal(), f"{unreadable:,} {texts} no label: {why}")
    if read is not None and read.cut and max_length is not None:
        note(terminal(), read.describe(max_length))


def note_promise(rule: DecisionRule | None, unanswered: int, rows: int) -> None:
    """Say how many rows were left unanswered, and what was promised of the others; nothing without a rule."""
    if rule is None:
        return
    if rule.promise is not None:
        note(terminal(), f"{unanswered:,} of {rows:,} left unanswered")
    for line in rule.describe():
        note(terminal(), line)
