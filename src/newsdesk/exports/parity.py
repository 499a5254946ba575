"""What an export may change, measured on the run's own rows before anything is written for good."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import ceil
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.duplicates import KnownTexts
from newsdesk.data.examples import Examples, joined
from newsdesk.data.load import TrainingData
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.significance import LEVEL, paired_difference_interval
from newsdesk.label_set_metrics import Counts, bootstrap_intervals, resampled_counts
from newsdesk.metrics import wilson_interval
from newsdesk.runs.calibration import HeldOutRows
from newsdesk.runs.exported import Kind
from newsdesk.runs.label_decisions import LabelDecisions
from newsdesk.stored import OPTIONAL

LARGEST_DIFFERENCE = 1e-3
"""Between a float32 export's logits and the run's: rounding of sums in another order stays far below."""
LEAST_AGREEMENT = 0.99
LEAST_LABELS_SHARED = 0.95
"""Of the labels that the run or the export assigns, those that both do."""
MOST_ROWS = 5000
FEW_ROWS, FILLED_ROWS = 1000, 2000
"""Below so many validation rows, training rows are taken besides, up to so many in all."""

_Z = NormalDist().inv_cdf(1 - LEVEL / 2)
_OF_TRAINING_ROWS = "too few rows were held out; the run is more confident on training rows than on new texts"

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """The rows that an export is made and judged by.

    Attributes:
        examples: labelled rows to compare on: the validation rows, then training rows.
        validation_rows: how many of them the run did not learn from.
        choosing_rows: of these the last, which chose the run's state and cannot calibrate it.
    """

    examples: Examples
    validation_rows: int
    choosing_rows: int = 0

    @property
    def training_rows(self) -> int:
        """How many of the rows the run learned from."""
        return len(self.examples) - self.validation_rows

    @property
    def labels(self) -> NDArray[Any]:
        """Class ids, (rows,), or truth values, (rows, labels)."""
        assert self.examples.labels is not None  # every way to make one wants labelled rows
        return self.examples.labels

    def held_out(
        self,
        logits: Logits,
        distances: NDArray[np.float32] | None,
        readable: NDArray[np.bool_],
        linear: Logits | None = None,
    ) -> HeldOutRows | None:
        """What was computed of the rows that nothing was learned from or chosen by, of all rows' outputs.

        None where there are no such rows, or their logits are not finite.
        """
        count = self.validation_rows - self.choosing_rows
        if not count or not np.isfinite(logits[:count]).all():
            return None
        fingerprint = self.examples.select(range(count)).fingerprint()
        distances = None if distances is None else distances[:count]
        linear = None if linear is None else linear[:count]
        return HeldOutRows(
            logits[:count], self.labels[:count], fingerprint, distances, readable[:count], linear
        )

    @property
    def facts(self) -> EvidenceFacts:
        """What quality.json says of the rows."""
        note = _OF_TRAINING_ROWS if self.training_rows else None
        return EvidenceFacts(self.examples.source, self.validation_rows, self.training_rows, note)


@dataclass(frozen=True)
class EvidenceFacts:
    """The rows that an export was judged by: their source, how many of each kind, and why of both."""

    source: str
    validation: int
    training: int
    note: str | None = field(default=None, metadata=OPTIONAL)


def evidence_of(data: TrainingData) -> Evidence:
    """Up to 5,000 of a run's validation rows; fewer than 1,000 are filled up to 2,000 with training rows."""
    held_out = _sample(data.calibrating, MOST_ROWS)
    choosing = _sample(data.validation.select(data.choosing), MOST_ROWS - len(held_out))
    rows = joined([held_out, choosing])
    validation_rows = len(rows)
    if validation_rows < FEW_ROWS:
        rows = joined([rows, _sample(data.train, FILLED_ROWS - validation_rows)])
    return Evidence(rows, validation_rows, len(choosing))


def evidence_from(rows: Examples, known: KnownTexts | None = None) -> Evidence:
    """Up to 5,000 of labelled rows that the user gives; those of ``known`` training texts count as such."""
    taken = _sample(rows, MOST_ROWS)
    learned = np.zeros(len(taken), np.bool_) if known is None else known.in_training(taken.texts)
    return Evidence(taken.select(np.argsort(learned, kind="stable")), int((~learned).sum()))


def _sample(rows: Examples, most: int) -> Examples:
    if len(rows) <= most:
        return rows
    chosen = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))[:most]
    return rows.select(np.sort(chosen))


@dataclass(frozen=True)
class Limits:
    """What quantising may cost: shares of all rows whose answers it turns from right to wrong, net.

    Attributes:
        loss: the most that may be measured.
        loss_upper: the most that the upper end of its 95 % interval may be.
    """

    loss: float = 0.002
    loss_upper: float = 0.005

    def __post_init__(self) -> None:
        """Refuse limits that nothing could meet. Raises UserError."""
        if not (0 <= self.loss <= 1 and 0 < self.loss_upper <= 1):
            raise UserError(
                "limits of what an export may lose are points of accuracy, 0 to 100",
                found=f"--max-loss {100 * self.loss:g} --max-loss-upper {100 * self.loss_upper:g}",
                fix="for example --max-loss 0.2 --max-loss-upper 0.5, which are the defaults",
            )

    @property
    def rows_needed(self) -> int:
        """The fewest rows on which an export that changes no answer passes."""
        near = ceil(_Z**2 * (1 - self.loss_upper) / self.loss_upper)
        tried = range(max(1, near - 1), near + 3)
        return next(n for n in tried if paired_difference_interval(0, 0, n)[1] <= self.loss_upper)

    def describe(self, *, of_sets: bool = False) -> str:
        """The limits in words; ``of_sets`` where a text may have several labels."""
        agreement = f"{LEAST_LABELS_SHARED if of_sets else LEAST_AGREEMENT:.0%} agreement"
        points = "points of micro F1 lost" if of_sets else "points lost"
        return (
            f"at most {100 * self.loss:g} {points} and {100 * self.loss_upper:g} at the upper end of the "
            f"interval, more than {agreement}"
        )


@dataclass(frozen=True)
class Loss:
    """How many answers an export changes, and what that costs.

    Attributes:
        to_wrong, to_right: of ``rows``, those that only the run and only the export answers rightly.
        interval: 95 % interval of the accuracy lost, ``(to_wrong - to_right) / rows`` (Tango, 1998).
    """

    rows: int
    to_wrong: int
    to_right: int
    interval: tuple[float, float]

    @property
    def lost(self) -> float:
        """The run's accuracy minus the export's."""
        return (self.to_wrong - self.to_right) / self.rows


@dataclass(frozen=True)
class LostF1:
    """What a candidate loses of the run's micro F1 where a text may have several labels.

    Attributes:
        rows: the texts compared.
        interval: 95 % interval of the loss, by drawing texts with replacement.
        validation: the loss on the validation rows alone; None without any.
    """

    rows: int
    interval: tuple[float, float]
    validation: float | None = None


@dataclass(frozen=True)
class Quality:
    """How one candidate compares with the run in float32, on the same rows.

    Attributes:
        setting, rows: what was tried, in words, and how many rows were compared.
        accuracy, accuracy_interval: the candidate's, 0 to 1, and its 95 % Wilson interval.
        accuracy_lost: the run's minus the candidate's.
        agreement, agreement_interval: share of rows to which both give the same class.
        largest_difference: between their logits, absolute.
        megabytes: size of the model file, 10**6 bytes.
        loss: what the accuracy lost rests on; None in an export made before this was kept.
        validation_loss: the same of the validation rows alone; None without any.
        f1_lost: where a text may have several labels, what is lost of micro F1, by which ``accuracy`` and
            ``accuracy_lost`` count then; agreement is the share of labels that both assign, of those that
            either does. None: a text has one label.
    """

    setting: str
    rows: int
    accuracy: float
    accuracy_lost: float
    agreement: float
    largest_difference: float
    megabytes: float
    accuracy_interval: tuple[float, float]
    agreement_interval: tuple[float, float]
    loss: Loss | None = None
    validation_loss: Loss | None = None
    f1_lost: LostF1 | None = field(default=None, metadata=OPTIONAL)

    @property
    def lost_interval(self) -> tuple[float, float] | None:
        """95 % interval of what is lost; None in an export made before this was kept."""
        if self.f1_lost is not None:
            return self.f1_lost.interval
        return None if self.loss is None else self.loss.interval

    @property
    def is_exact(self) -> bool:
        """Whether it computes what the run computes, up to rounding."""
        return self.largest_difference <= LARGEST_DIFFERENCE

    def is_close(self, limits: Limits) -> bool:
        """Whether what was lost by quantising stays within the gate.

        As measured on the validation rows alone it may not lose more than the limit of the upper end, either:
        training rows, on which the run is more confident, could outvote them.
        """
        interval = self.lost_interval
        if not self.keeps_answers(limits) or interval is None or interval[1] > limits.loss_upper:
            return False
        alone = None if self.validation_loss is None else self.validation_loss.lost
        alone = alone if self.f1_lost is None else self.f1_lost.validation
        return alone is None or alone <= limits.loss_upper

    def keeps_answers(self, limits: Limits) -> bool:
        """Whether it is close as measured, were there no chance in it."""
        least = LEAST_AGREEMENT if self.f1_lost is None else LEAST_LABELS_SHARED
        return self.accuracy_lost <= limits.loss + 1e-12 and self.agreement > least


@dataclass(frozen=True)
class Measurer:
    """What computed an export as it was measured: engine with version, and processor."""

    engine: str
    processor: str


@dataclass(frozen=True)
class ExportQuality:
    """The content of an export's quality.json: what it was found to be worth.

    Attributes:
        kind, setting: what was exported, and by which of the settings, in words.
        rows, measured_with: what it was measured on, and by what.
        run_accuracy: the run's own accuracy on these rows, 0 to 1.
        tried: every setting that was measured; the last is the one taken.
        limits: what it was allowed to lose; None for kinds that lose nothing.
        without_linear, f1_without_linear: what programs other than newsdesk lose on the calibration rows,
            which compute the encoder without the linear model stacked on it, where a text has one label or
            may have several; None where none is stacked, or there are no such rows.
    """

    kind: Kind
    setting: str
    rows: EvidenceFacts
    run_accuracy: float
    tried: tuple[Quality, ...]
    measured_with: Measurer
    limits: Limits | None = field(default=None, metadata=OPTIONAL)
    without_linear: Loss | None = field(default=None, metadata=OPTIONAL)
    f1_without_linear: LostF1 | None = field(default=None, metadata=OPTIONAL)


def compare(
    setting: str,
    reference: Logits,
    logits: Logits,
    labels: NDArray[np.int64],
    megabytes: float,
    validation_rows: int = 0,
) -> Quality:
    """Compare a candidate's logits with the run's, both (rows, classes); ``labels`` are (rows,).

    The first ``validation_rows`` of them are also compared alone.
    """
    expected, given = reference.argmax(axis=1), logits.argmax(axis=1)
    rows, right = len(labels), int((given == labels).sum())
    # Not a number is neither close nor equal, and argmax would take it for a class.
    finite = bool(np.isfinite(logits).all())
    same = int((given == expected).sum()) if finite else 0
    only_run, only_export = (expected == labels) & (given != labels), (expected != labels) & (given == labels)
    first = slice(validation_rows)
    return Quality(
        setting=setting,
        rows=rows,
        accuracy=right / rows,
        accuracy_lost=float((expected == labels).mean()) - right / rows,
        agreement=same / rows,
        largest_difference=float(np.abs(reference - logits).max()) if finite else float("inf"),
        megabytes=megabytes,
        accuracy_interval=wilson_interval(right, rows),
        agreement_interval=wilson_interval(same, rows),
        loss=_loss(only_run, only_export),
        validation_loss=_loss(only_run[first], only_export[first]) if validation_rows else None,
    )


def compare_sets(
    setting: str,
    outputs: tuple[Logits, Logits],
    decisions: tuple[LabelDecisions, LabelDecisions],
    labels: NDArray[Any],
    megabytes: float,
    validation_rows: int = 0,
) -> Quality:
    """As `compare` of the run's and a candidate's logits, each (rows, labels), by the decisions of each."""
    rows, finite = len(labels), bool(np.isfinite(outputs[1]).all())
    expected, given = (
        rule.assigned(rule.probabilities(np.nan_to_num(logits)))
        for rule, logits in zip(decisions, outputs, strict=True)
    )
    either = int((expected | given).sum())
    both = int((expected & given).sum()) if finite else 0
    of_run, of_export = _micro_f1(expected, labels), _micro_f1(given, labels)
    drawn = [mine.micro_f1() - its.micro_f1() for mine, its in resampled_counts(labels, [expected, given], 0)]
    low, high = np.quantile(np.concatenate(drawn), [LEVEL / 2, 1 - LEVEL / 2])
    ((export_low, export_high),) = bootstrap_intervals(given, labels, [Counts.micro_f1])
    first = slice(validation_rows)
    alone = _micro_f1(expected[first], labels[first]) - _micro_f1(given[first], labels[first])
    return Quality(
        setting=setting,
        rows=rows,
        accuracy=of_export if finite else 0.0,
        accuracy_lost=of_run - of_export if finite else 1.0,
        agreement=both / either if either else 1.0,
        largest_difference=float(np.abs(outputs[0] - outputs[1]).max()) if finite else float("inf"),
        megabytes=megabytes,
        accuracy_interval=(export_low, export_high),
        agreement_interval=wilson_interval(both, either) if either else (1.0, 1.0),
        f1_lost=LostF1(rows, (float(low), float(high)), alone if validation_rows else None),
    )


def _micro_f1(assigned: NDArray[np.bool_], labels: NDArray[np.bool_]) -> float:
    return float(Counts.of(assigned, labels).micro_f1())


def _loss(only_run: NDArray[np.bool_], only_export: NDArray[np.bool_]) -> Loss:
    rows, to_wrong, to_right = len(only_run), int(only_run.sum()), int(only_export.sum())
    return Loss(rows, to_wrong, to_right, paired_difference_interval(to_wrong, to_right, rows))


def require_enough_rows(evidence: Evidence, limits: Limits) -> None:
    """Raise UserError where not even an export that changes no answer could pass."""
    rows = len(evidence.labels)
    if rows < limits.rows_needed:
        might = 100 * paired_difference_interval(0, 0, rows)[1]
        raise UserError(
            f"{counted(rows, 'row')} cannot tell how much an int8 export loses",
            found=f"even if it changed no answer on them, it might lose {might:.2f} points (95 % interval); "
            f"{100 * limits.loss_upper:g} are allowed",
            fix=f"give {limits.rows_needed:,} or more labelled rows, which the run did not learn from, with "
            f"--data FILE; allow more with --max-loss-upper {ceil(10 * might) / 10:g}; or export with "
            "--to onnx-fp32, which loses nothing",
        )


def no_setting_passes(tried: Sequence[Quality], rows: EvidenceFacts, limits: Limits) -> UserError:
    """The error where every int8 setting failed, with the table of what was tried."""
    found = "\n" + "\n".join(render_tried(tried, rows, limits))
    enough = min(filter(None, (rows_to_tell(quality, limits) for quality in tried)), default=None)
    if enough is None:
        return UserError(
            "no way to quantise this model keeps its quality; nothing was written",
            found=found,
            fix="deploy it with --to onnx-fp32, or allow more with --max-loss and --max-loss-upper",
        )
    return UserError(
        "the rows are too few to tell whether an int8 export keeps the quality; nothing was written",
        found=found,
        fix=f"give about {enough:,} labelled rows, which the run did not learn from, with --data FILE; allow "
        "more with --max-loss-upper; or deploy it with --to onnx-fp32",
    )


def rows_to_tell(quality: Quality, limits: Limits) -> int | None:
    """On how many rows it would pass if all went as on these; None where more rows would not help."""
    if quality.f1_lost is not None:
        lost, (_low, high) = quality.accuracy_lost, quality.f1_lost.interval
        if not quality.keeps_answers(limits) or lost >= limits.loss_upper:
            return None
        return ceil(quality.rows * max(1.0, (high - lost) / (limits.loss_upper - lost)) ** 2)
    loss = quality.loss
    if loss is None or not quality.keeps_answers(limits) or loss.lost >= limits.loss_upper:
        return None
    for times in range(1, 1000):
        counts = (times * loss.to_wrong, times * loss.to_right, times * loss.rows)
        if paired_difference_interval(*counts)[1] <= limits.loss_upper:
            return counts[2]
    return None


def measured_with(kind: Kind) -> Measurer:
    """Engine and machine: integer arithmetic differs between processors with and without VNNI."""
    engine = "transformers" if kind == "merged" else "onnxruntime"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.is_file() else []
    deciding = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
    processor = " ".join([platform.machine(), *(name for name in deciding if name in flags)])
    return Measurer(f"{engine} {version(engine)}", processor)


def require_exact(quality: Quality) -> None:
    """Raise UserError unless a float32 export computes what the run computes."""
    if not quality.is_exact:
        raise UserError(
            f"the {quality.setting} export does not compute what the run computes; nothing was written",
            found=f"logits differ by up to {quality.largest_difference:.2g} on "
            f"{counted(quality.rows, 'row')}, where {LARGEST_DIFFERENCE:g} is allowed",
            fix="this is a defect of newsdesk: please report it with the base model's name",
        )


def render_progress(quality: Quality) -> str:
    """A line for a setting that was just measured."""
    lost = f"{quality.accuracy_lost * 100:+.2f} points lost{_interval_of(quality.lost_interval)}"
    return (
        f"{quality.setting}: {lost}, "
        f"{quality.agreement:.2%} agreement with the run on {counted(quality.rows, 'row')}, "
        f"{quality.megabytes:.1f} MB"
    )


def render_tried(tried: Sequence[Quality], rows: EvidenceFacts, limits: Limits | None) -> list[str]:
    """The table of settings tried, a line each, what is allowed, and the rows that it rests on."""
    width = max((len(quality.setting) for quality in tried), default=0)
    of_sets = any(quality.f1_lost is not None for quality in tried)
    lines = [f"{'setting':<{width}} {'points lost':>11} {'95 % interval':>15} {'agreement':>9} {'MB':>6}"]
    for quality in tried:
        low, high = quality.lost_interval or (0.0, 0.0)
        interval = f"{100 * low:.2f} to {100 * high:.2f}"
        lines.append(
            f"{quality.setting:<{width}} {quality.accuracy_lost * 100:>11.2f} {interval:>15} "
            f"{quality.agreement:>9.2%} {quality.megabytes:>6.1f}"
        )
    exact = f"logits within {LARGEST_DIFFERENCE:g} of the run's"
    lines.append(f"allowed: {exact if limits is None else limits.describe(of_sets=of_sets)}")
    kinds = {"row": (rows.validation, " held out"), "training row": (rows.training, "")}
    measured = " and ".join(counted(n, row) + where for row, (n, where) in kinds.items() if n)
    of_validation = tried[-1].validation_loss if tried else None
    if limits is None or not rows.training or of_validation is None:
        return [*lines, f"measured on {measured}"]
    alone = f"{100 * of_validation.lost:.2f} points lost{_interval_of(of_validation.interval)}"
    return [
        *lines,
        f"measured on {measured}: {_OF_TRAINING_ROWS}",
        f"on the validation rows alone: {alone}",
    ]


def render_without_linear(loss: Loss | LostF1) -> str:
    """What other programs lose, a sentence."""
    lost, of = (loss.lost, "") if isinstance(loss, Loss) else (loss.validation or 0.0, " of micro F1")
    return (
        "programs other than newsdesk compute the encoder without the linear model stacked on it: "
        f"{100 * lost:+.2f} points{of} lost{_interval_of(loss.interval)} on "
        f"{counted(loss.rows, 'calibration row')}"
    )


def _interval_of(interval: tuple[float, float] | None) -> str:
    ends = [f"{100 * end:.2f}" for end in interval or ()]
    return f" (95 % interval {' to '.join(ends)})" if ends else ""
