"""What an audit found, and the files it leaves for an editor."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from newsdesk.data.vocabulary import VocabularyFit
from newsdesk.errors import UserError
from newsdesk.evaluation.audit.embeddings import EMBEDDINGS
from newsdesk.evaluation.audit.label_issues import least_accuracy
from newsdesk.files import require_no_way_out, write_bytes, write_json
from newsdesk.prediction.predictions import delimited_lines
from newsdesk.stored import OPTIONAL, UNSTORED, to_content

LABEL_ERRORS, QUALITY, DUPLICATES, LEAKAGE, REPORT = (
    "label-errors.csv",
    "quality.csv",
    "duplicates.csv",
    "leakage.csv",
    "audit.json",
)
"""The files of an audit, beside the embeddings."""

PLACES = {
    "label errors": LABEL_ERRORS,
    "wrong labels": LABEL_ERRORS,
    "exact duplicates": DUPLICATES,
    "leaked exactly": LEAKAGE,
}
"""Which of them lists a kind of finding, with the kind after it."""

DECISION = "decision"
"""The column of label-errors.csv and quality.csv that an editor fills: keep, drop, relabel (to LABEL)."""

FINDING = "finding"
"""The column of label-errors.csv that says, of several labels a text, whether one is wrong or missing."""


@dataclass(frozen=True)
class Judgement:
    """What a classifier that did not learn from a row says about its label.

    Where a text may have several, ``given`` and ``suggested`` are sets of them, joined as predictions are:
    suggested are those given with all findings of the text applied or, where there are none, what the
    held-out scores assign. ``probability`` is then the chance of the text's likeliest fault, and ``quality``
    what is left of 1.

    Attributes:
        row: 0-based position among the audited rows.
        line: where it begins in the file, from 1 (parquet: the row's number).
        given: its label.
        suggested: for a suspect the label it likely should have, else the most probable one; empty for a
            row that was not judged.
        probability: of the suggested label; None for a row that was not judged.
        quality: how well the given label fits, 0 to 1, see ``LabelErrors``; None like ``probability``.
        text: as the classifier read it.
        suspect: whether confident learning finds the label wrong.
    """

    row: int
    line: int
    given: str
    suggested: str
    probability: float | None
    quality: float | None
    text: str
    suspect: bool


Kind = Literal["wrong", "missing"]
"""What is found of a label where a text may have several."""
KINDS_OF_FINDING: tuple[Kind, ...] = ("wrong", "missing")


@dataclass(frozen=True)
class PairFinding:
    """A label of a text that may have several: given and likely wrong, or likely missing.

    Attributes:
        row, line, given, text: of the text, as in ``Judgement``.
        suggested: the labels given, without this one or with it.
        finding: which of the two.
        label: the label.
        probability: the estimated chance that it is so, 0.5 or more.
    """

    row: int
    line: int
    given: str
    suggested: str
    finding: Kind
    label: str
    probability: float
    text: str


@dataclass(frozen=True)
class LabelFindings:
    """One label of texts that may have several.

    Attributes:
        label: its name.
        rows: how many texts have it.
        judged: whether it can be told from the others; if not, nothing is found of it.
        wrong: of how many of them it is likely wrong.
        missing: in how many others it is likely missing.
    """

    label: str
    rows: int
    judged: bool
    wrong: int
    missing: int


@dataclass(frozen=True)
class SeveralLabels:
    """What an audit says of texts that may have several labels.

    Attributes:
        missing: the estimated share of missing ones among the labels that texts should have, 0 to 1.
        expected: of the findings of each kind, how many are expected to be true.
        labels: what is found of each.
        findings: the likeliest first.
    """

    missing: float
    expected: dict[Kind, float]
    labels: tuple[LabelFindings, ...]
    findings: tuple[PairFinding, ...] = field(metadata=UNSTORED)

    def of_kind(self, kind: Kind) -> tuple[PairFinding, ...]:
        """The findings of one kind, the likeliest first."""
        return tuple(one for one in self.findings if one.finding == kind)


@dataclass(frozen=True)
class Twin:
    """A row whose text is also in an earlier row (a duplicate) or in the other split (a leak).

    Attributes:
        row, line, label, text: of this row, as in ``Judgement``.
        other_row, other_line, other_label: of the row it is a copy of; the label is empty where unknown.
        similarity: 1.0 for exact copies (but for case and white space), else Jaccard of shingles.
        exact: whether it is an exact copy.
        conflict: whether the copies do not all carry the same label.
    """

    row: int
    line: int
    label: str
    other_row: int
    other_line: int
    other_label: str
    similarity: float
    exact: bool
    conflict: bool
    text: str


@dataclass(frozen=True)
class Confusion:
    """How many rows of a given label are estimated to belong to another one."""

    given: str
    likely: str
    rows: float


@dataclass(frozen=True)
class AuditReport:
    """The figures of an audit.

    Attributes:
        source: the audited file.
        rows: how many it has.
        label_counts: rows of each label, in the order of the classes.
        unjudged: rows whose label has too few texts of its own for anyone to learn it from the others.
        accuracy: share of the judged rows where the held-out prediction is the given label; where a text may
            have several labels, the micro F1 of the held-out predictions.
        majority: share of the judged rows that have the most frequent label; else the micro F1 of giving
            every text that label.
        noise: estimated share of wrong labels among the judged rows (confident joint): a lower bound, see
            ``LabelErrors.noise``.
        confusions: between which labels, the most rows first.
        judgements: every row, the least fitting label first; those that were not judged come last.
        duplicates: rows whose text is (nearly) that of an earlier row.
        conflicting_rows: rows of all exact copies that do not agree on their label.
        against: the other split, searched for the same texts; None if there is none.
        leaks: rows whose text is (nearly) in the other split.
        seconds: wall time of each step.
        vocabulary: how well the base model's vocabulary covers the texts; None where it was not looked at.
        several: what is said of single labels where a text may have several; else None.
    """

    source: str
    rows: int
    label_counts: dict[str, int]
    unjudged: int
    accuracy: float
    majority: float
    noise: float
    confusions: tuple[Confusion, ...]
    judgements: tuple[Judgement, ...] = field(metadata=UNSTORED)
    duplicates: tuple[Twin, ...] = field(metadata=UNSTORED)
    conflicting_rows: tuple[int, ...] = field(metadata=UNSTORED)
    against: str | None
    leaks: tuple[Twin, ...] = field(metadata=UNSTORED)
    seconds: dict[str, float]
    vocabulary: VocabularyFit | None = None
    several: SeveralLabels | None = field(default=None, metadata=OPTIONAL)

    @property
    def suspects(self) -> tuple[Judgement, ...]:
        """The rows whose label is likely wrong, the least fitting first."""
        return tuple(judgement for judgement in self.judgements if judgement.suspect)

    @property
    def least_accuracy(self) -> float:
        """The held-out accuracy below which the labels cannot be judged, in [0, 1]."""
        return least_accuracy(self.majority)

    @property
    def can_judge(self) -> bool:
        """Whether the held-out predictions are good enough to judge labels by."""
        return self.accuracy >= self.least_accuracy

    @property
    def counts(self) -> dict[str, int]:
        """How many rows of each kind of finding."""
        labels = {"label errors": len(self.suspects)}
        if self.several is not None:
            labels = {f"{kind} labels": len(self.several.of_kind(kind)) for kind in KINDS_OF_FINDING}
        return {
            **labels,
            "exact duplicates": sum(twin.exact for twin in self.duplicates),
            "near-duplicates": sum(not twin.exact for twin in self.duplicates),
            "conflicting duplicates": len(self.conflicting_rows),
            "leaked exactly": sum(twin.exact for twin in self.leaks),
            "leaked nearly": sum(not twin.exact for twin in self.leaks),
        }

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values; the single rows are in the csv files."""
        return {
            **to_content(self),
            "least_accuracy": self.least_accuracy,
            "can_judge": self.can_judge,
            "noise_is": _RELIABLE if self.can_judge else _UNRELIABLE,
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_dict(),
            "counts": self.counts,
        }


@dataclass(frozen=True)
class Verdict:
    """What is said of the labels: the fields of the same names of an `AuditReport`."""

    accuracy: float
    majority: float
    noise: float
    judgements: tuple[Judgement, ...]
    unjudged: int = 0
    confusions: tuple[Confusion, ...] = ()
    several: SeveralLabels | None = None


def too_few(found: str) -> UserError:
    """The error where no label can be judged."""
    return UserError("too few texts to tell which labels are wrong", found=found, fix="audit more rows")


_RELIABLE, _UNRELIABLE = "a lower bound", "not reliable: the held-out accuracy is too low"
_BEGINNINGS = {
    LABEL_ERRORS: "row,line,given",
    QUALITY: "rank,suspect,row",
    DUPLICATES: "kind,row,line",
    LEAKAGE: "kind,row,line",
    REPORT: '{\n  "source"',
}
"""How the files of an audit begin."""


def require_free_folder(folder: Path) -> None:
    """Raise UserError unless the findings may go there: no file is replaced that an audit did not write.

    Neither is one in which an editor has filled in decisions.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file", fix="name a folder")
    require_no_way_out(folder, (*_BEGINNINGS, EMBEDDINGS))
    for name, beginning in _BEGINNINGS.items():
        path = folder / name
        if not path.exists():
            continue
        content = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if not content.removeprefix("\ufeff").startswith(beginning):
            raise UserError(
                f"{path} is there already, and no audit wrote it",
                fix="move it elsewhere, or choose another folder with --out",
            )
        if name in (LABEL_ERRORS, QUALITY) and _has_decisions(content):
            raise UserError(
                f"{path} holds decisions that someone filled in, which a new audit would replace",
                fix="move it elsewhere and give it by --decisions, or choose another folder with --out",
            )


def _has_decisions(content: str) -> bool:
    rows = csv.DictReader(io.StringIO(content.removeprefix("\ufeff")))
    try:
        return any((row.get(DECISION) or "").strip() for row in rows)
    except csv.Error:  # whatever someone made of it
        return True


def write_findings(report: AuditReport, folder: Path, provenance: dict[str, Any]) -> None:
    """Write the csv files and audit.json, each atomically; audit.json last."""
    columns = ("row", "line", "given", "suggested", "probability", "quality", DECISION, "text")
    if report.several is None:
        _write_csv(folder / LABEL_ERRORS, columns, map(_cells, report.suspects))
    else:
        heads = ("row", "line", "given", "suggested", FINDING, "label", "probability", DECISION, "text")
        _write_csv(folder / LABEL_ERRORS, heads, map(_cells_of_pair, report.several.findings))
    ranked = (
        (None if one.quality is None else rank, one.suspect, *_cells(one))
        for rank, one in enumerate(report.judgements, start=1)
    )
    _write_csv(folder / QUALITY, ("rank", "suspect", *columns), ranked)
    of_copies = [of.name for of in fields(Twin) if of.name != "exact"]
    for name, twins in ((DUPLICATES, report.duplicates), (LEAKAGE, report.leaks)):
        rows = (
            ("exact" if twin.exact else "near", *(getattr(twin, column) for column in of_copies))
            for twin in twins
        )
        _write_csv(folder / name, ("kind", *of_copies), rows)
    write_json(folder / REPORT, {**report.to_dict(), **provenance})


def _cells(one: Judgement) -> tuple[object, ...]:
    return (one.row, one.line, one.given, one.suggested, one.probability, one.quality, "", one.text)


def _cells_of_pair(one: PairFinding) -> tuple[object, ...]:
    known = (one.row, one.line, one.given, one.suggested, one.finding, one.label, one.probability)
    return (*known, "", one.text)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Truth values as yes and no, fractions with six decimals."""

    def written(value: object) -> object:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return round(value, 6) if isinstance(value, float) else value

    write_bytes(
        path, b"".join(delimited_lines([columns, *([written(value) for value in row] for row in rows)]))
    )
