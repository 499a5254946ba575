"""labels.json: what PEFT's folder forgets of a classifier's labels, and how a row becomes a text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from newsdesk.data.columns import TextLayout
from newsdesk.data.examples import Task
from newsdesk.errors import UserError
from newsdesk.model.windows import LongTexts
from newsdesk.stored import KEY, OPTIONAL, UNSAID, read_stored, write_stored

LABELS = "labels.json"
_MOST_TOKENS = 1 << 20

LabelKind = Literal["text", "integer", "number", "boolean"]
"""What a program's labels were before they became names."""


@dataclass(frozen=True)
class Labels:
    """What PEFT's folder forgets: class names in id order, how a row becomes a text, what is read of it.

    ``max_length`` is how many tokens the encoder computes at once, ``long_texts`` how texts of more are read;
    None: they are cut. ``was`` says what the labels of the training rows, of which the run's recipe and log
    speak, are called since they were changed, the empty text being for those that were retired.
    """

    names: tuple[str, ...] = field(metadata={KEY: "labels"})
    layout: TextLayout = field(metadata={KEY: "text"})
    max_length: int
    kind: LabelKind = field(default="text", metadata=OPTIONAL)
    task: Task = field(default="single", metadata=UNSAID)
    long_texts: LongTexts | None = field(default=None, metadata=OPTIONAL)
    was: dict[str, str] | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        """Raise ValueError for names that do not tell classes apart, and texts without a token."""
        if not self.names or len(set(self.names)) != len(self.names):
            twice = Counter(self.names).most_common(1)
            raise ValueError(f"labels has {twice[0][0]!r:.80} twice" if twice else "labels is empty")
        if not 1 <= self.max_length <= _MOST_TOKENS:
            raise ValueError(f"max_length is {self.max_length}, not from 1 to {_MOST_TOKENS:,}")

    def write(self, folder: Path) -> None:
        """Write them as labels.json."""
        write_stored(folder / LABELS, self)

    @classmethod
    def read(cls, folder: Path, *, fix: str) -> Labels:
        """The labels.json of a run or an export. Raises UserError, with ``fix``, when it is damaged."""
        return read_stored(folder / LABELS, cls, fix=fix)


def require_single(path: Path, labels: Labels, what: str) -> None:
    """Raise UserError where texts may have several labels; ``what`` begins the sentence."""
    if labels.task == "multi":
        raise UserError(
            f"{what} cannot be used yet where a text may have several labels",
            found=f"{path}: a run whose texts may have several labels",
            fix="train on rows with one label each (--task single) where you need it",
        )
