"""What an export may change, measured on the run's own rows before anything is written for good."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.calibration import HeldOutRows
from newsdesk.data.examples import Examples, joined
from newsdesk.data.load import TrainingData
from newsdesk.errors import UserError, counted
from newsdesk.inference.artefact import Kind
from newsdesk.metrics import wilson_interval
from newsdesk.stored import OPTIONAL

LARGEST_DIFFERENCE = 1e-3
"""Between a float32 export's logits and the run's: rounding of sums in another order stays far below."""
MOST_ACCURACY_LOST = 0.002
LEAST_AGREEMENT = 0.99
MOST_ROWS = 2000
FEW_ROWS = 500
CALIBRATION_ROWS = 128

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """The rows that an export is made and judged by.

    Attributes:
        examples: labelled rows to compare on: the validation rows, then training rows.
        validation_rows, training_rows: how many of each.
        calibration: texts that show a quantiser what to expect; not compared on where others can be had.
        choosing_rows: of the validation rows the last, which chose the run's state and cannot calibrate it.
    """

    examples: Examples
    validation_rows: int
    training_rows: int
    calibration: tuple[str, ...]
    choosing_rows: int = 0

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class ids, (rows,)."""
        assert self.examples.labels is not None  # every way to make one wants labelled rows
        return self.examples.labels

    @property
    def held_out_source(self) -> str:
        """Where the rows came from that nothing was learned from."""
        rows = counted(self.validation_rows - self.choosing_rows, "row")
        return f"{rows} held out from {self.examples.source}"

    def held_out(self, logits: Logits, distances: NDArray[np.float32] | None = None) -> HeldOutRows | None:
        """Of logits and distances of all rows, those that nothing was learned from or chosen by.

        None where there are no such rows, or their logits are no numbers.
        """
        count = self.validation_rows - self.choosing_rows
        if not count or not np.isfinite(logits[:count]).all():
            return None
        rows = self.examples.select(range(count))
        of_rows = None if distances is None else distances[:count]
        return HeldOutRows(logits[:count], self.labels[:count], rows.fingerprint(), of_rows)

    @property
    def facts(self) -> EvidenceFacts:
        """What quality.json says of the rows."""
        note = "training rows besides: too few rows were held out" if self.training_rows else None
        return EvidenceFacts(self.examples.source, self.validation_rows, self.training_rows, note)


@dataclass(frozen=True)
class EvidenceFacts:
    """The rows that an export was judged by: their source, how many of each kind, and why of both."""

    source: str
    validation: int
    training: int
    note: str | None = field(default=None, metadata=OPTIONAL)


def evidence_of(data: TrainingData, seed: int = 0) -> Evidence:
    """Up to 2,000 of a run's validation rows; where there are fewer than 500, training rows besides."""
    held_out = _sample(data.calibrating, MOST_ROWS, seed)
    choosing = _sample(data.validation.select(data.choosing), MOST_ROWS - len(held_out), seed)
    held_out = joined([held_out, choosing])
    calibration = _sample(data.train, CALIBRATION_ROWS, seed + 1).texts
    if len(held_out) >= FEW_ROWS:
        return Evidence(held_out, len(held_out), 0, calibration, len(choosing))
    seen = _sample(data.train, MOST_ROWS - len(held_out), seed)
    return Evidence(joined([held_out, seen]), len(held_out), len(seen), calibration, len(choosing))


def evidence_from(rows: Examples, seed: int = 0) -> Evidence:
    """Up to 2,000 of labelled rows that the user gives."""
    taken = _sample(rows, MOST_ROWS, seed)
    return Evidence(taken, len(taken), 0, taken.texts[:CALIBRATION_ROWS])


def _sample(rows: Examples, most: int, seed: int) -> Examples:
    if len(rows) <= most:
        return rows
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))[:most]
    return rows.select(np.sort(chosen))


@dataclass(frozen=True)
class Quality:
    """How one candidate compares with the run in float32, on the same rows.

    Attributes:
        setting: what was tried, in words.
        rows: how many were compared.
        accuracy: the candidate's, 0 to 1.
        accuracy_lost: the run's minus the candidate's.
        agreement: share of rows to which both give the same class.
        largest_difference: between their logits, absolute.
        megabytes: size of the model file, 10**6 bytes.
        accuracy_interval: 95 % Wilson interval of the accuracy.
        agreement_interval: likewise, of the agreement.
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

    @property
    def is_exact(self) -> bool:
        """Whether it computes what the run computes, up to rounding."""
        return self.largest_difference <= LARGEST_DIFFERENCE

    @property
    def is_close(self) -> bool:
        """Whether what was lost by quantising stays within the gate."""
        # The tenth of a row undoes the rounding of a difference of two shares.
        lost_rows = self.accuracy_lost * self.rows
        return lost_rows <= MOST_ACCURACY_LOST * self.rows + 0.1 and self.agreement > LEAST_AGREEMENT


@dataclass(frozen=True)
class Measurer:
    """What computed an export as it was measured: engine and version, processor."""

    engine: str
    processor: str


@dataclass(frozen=True)
class ExportQuality:
    """The content of an export's quality.json: what it was found to be worth.

    Attributes:
        kind: what was exported.
        setting: the one that was taken, in words.
        rows: what it was measured on.
        run_accuracy: the run's own accuracy on these rows, 0 to 1.
        tried: every setting that was measured; the last is the one taken.
        measured_with: engine and machine.
    """

    kind: Kind
    setting: str
    rows: EvidenceFacts
    run_accuracy: float
    tried: tuple[Quality, ...]
    measured_with: Measurer


def compare(
    setting: str, reference: Logits, logits: Logits, labels: NDArray[np.int64], megabytes: float
) -> Quality:
    """Hold a candidate's logits against the run's, both (rows, classes); ``labels`` are (rows,)."""
    expected, given = reference.argmax(axis=1), logits.argmax(axis=1)
    rows, right = len(labels), int((given == labels).sum())
    # Not a number is neither close nor equal, and argmax would take it for a class.
    sound = bool(np.isfinite(logits).all())
    same = int((given == expected).sum()) if sound else 0
    return Quality(
        setting=setting,
        rows=rows,
        accuracy=right / rows,
        accuracy_lost=float((expected == labels).mean()) - right / rows,
        agreement=same / rows,
        largest_difference=float(np.abs(reference - logits).max()) if sound else float("inf"),
        megabytes=megabytes,
        accuracy_interval=wilson_interval(right, rows),
        agreement_interval=wilson_interval(same, rows),
    )


def measured_with(kind: Kind) -> Measurer:
    """Engine and machine: integer arithmetic differs between processors with and without VNNI."""
    engine = "transformers" if kind == "merged" else "onnxruntime"
    return Measurer(f"{engine} {version(engine)}", _processor())


def _processor() -> str:
    """Architecture, and those of its instructions that decide how whole numbers are multiplied."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.is_file() else []
    deciding = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
    return " ".join([platform.machine(), *(name for name in deciding if name in flags)])


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
    return (
        f"{quality.setting}: {quality.accuracy_lost * 100:+.2f} points lost, "
        f"{quality.agreement:.2%} agreement with the run on {counted(quality.rows, 'row')}, "
        f"{quality.megabytes:.1f} MB"
    )


def render_tried(tried: Sequence[Quality]) -> list[str]:
    """The table of settings tried, a line each, the gate's limits in its head."""
    width = max((len(quality.setting) for quality in tried), default=0)
    lines = [f"{'setting':<{width}} {'lost':>6} {'agreement':>9} {'95 % interval':>15} {'MB':>6}"]
    for quality in tried:
        low, high = quality.agreement_interval
        interval = f"{low:.2%}-{high:.2%}"
        lines.append(
            f"{quality.setting:<{width}} {quality.accuracy_lost * 100:>6.2f} {quality.agreement:>9.2%} "
            f"{interval:>15} {quality.megabytes:>6.1f}"
        )
    rows = tried[0].rows if tried else 0
    limits = f"at most {MOST_ACCURACY_LOST * 100:g} points lost, more than {LEAST_AGREEMENT:.0%} agreement"
    return [*lines, f"allowed: {limits}; measured on {counted(rows, 'row')}"]
