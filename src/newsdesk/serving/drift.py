"""Whether a stream of texts still looks like the rows that a model was calibrated on.

Each text falls into one of a few cells: its label, or how sure the model is of it. A detector compares the
cells of the stream with those of the reference rows, text by text, and forgets what is long past.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

SHIFT = 0.1
"""The change in the share of a cell that is looked for; larger ones are found sooner."""
LEVEL = 50_000.0
"""The evidence at which a stream counts as changed. One that has not raises less than one alarm in 100,000
texts, by simulation (tests/serving/test_drift.py)."""

_GROUP = 16  # texts that are looked at together
_MOST_CELLS = 12
_CONFIDENCE_CELLS = 4
_RAREST = 0.02  # share of the rows from which on a label is a cell of its own
_SEEN_RECENTLY = 500  # texts over which the gauge of the distance is a running mean
_TOLERANCE, _TOLERANCE_OF_FEW, _FEW = 1.0, 1.5, 1000
"""Standard errors of the reference's shares that are no change; and where it has fewer rows than the last."""

_HIGHEST = 1e3  # times the alarm's level: how far evidence can pile up, and has to fall again


class DriftDetector:
    """Watches one kind of cells.

    The evidence is that of Shiryaev (1963) and Roberts (1966): for each change looked for, the sum over all
    texts at which it may have begun of the likelihood ratio since. Of a stream that has not changed the
    mean over the changes grows by 1 a text and is a martingale beside that, so that it passes a level only
    every so many texts on average (Pollak, 1985). The changes are those that move `SHIFT` of all texts from
    one cell to another, from all others to one, or from one to all others. As the reference's shares are not
    known exactly, each ratio is divided by what it may be on average by their standard errors.

    Attributes:
        shares: of each cell among the reference rows, smoothed, (cells,).
        recent: the same of the latest texts, those long past counting less.
        texts: how many it saw.
        is_alarmed: whether the stream differs.
    """

    def __init__(self, reference: NDArray[np.integer], *, level: float = LEVEL) -> None:
        """Compare with the rows counted in ``reference``, (cells,). Raises ValueError without two cells."""
        counts = np.asarray(reference, dtype=np.float64)
        if len(counts) < 2 or counts.sum() < 1:
            raise ValueError("a reference has rows in two cells or more")
        self.shares: NDArray[np.float64] = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
        self.recent = self.shares.copy()
        self.texts, self.is_alarmed = 0, False
        self._ratios = _likelihood_ratios(self.shares, counts.sum())
        self._evidence = np.zeros(self._ratios.shape[1])
        self._level = level
        self._waiting: list[int] = []

    @property
    def distance(self) -> float:
        """By how much the recent shares differ from the reference, 0 to 1 (total variation)."""
        return float(np.abs(self.recent - self.shares).sum() / 2)

    def see(self, cells: Sequence[int]) -> bool:
        """Take texts by their cells, in order, looked at in groups of 16; whether an alarm begins."""
        self.texts += len(cells)
        self._waiting += cells
        begins = False
        while len(self._waiting) >= _GROUP:
            group, self._waiting = self._waiting[:_GROUP], self._waiting[_GROUP:]
            alarmed = self._look(group)
            begins |= alarmed and not self.is_alarmed
            self.is_alarmed = alarmed
        return begins

    def _look(self, group: Sequence[int]) -> bool:
        # What has been gathered before, and since each text of the group.
        since = np.cumprod(self._ratios[group[::-1]], axis=0)
        gathered = self._evidence * since[-1] + since.sum(axis=0)
        self._evidence = np.minimum(gathered, _HIGHEST * self._level)
        keep = (1 - 1 / _SEEN_RECENTLY) ** len(group)
        found = np.bincount(group, minlength=len(self.shares)) / len(group)
        self.recent = keep * self.recent + (1 - keep) * found
        return bool(self._evidence.mean() >= self._level)


def _likelihood_ratios(shares: NDArray[np.float64], rows: float) -> NDArray[np.float64]:
    """How much likelier each change makes a text of each cell, (cells, changes), errors of ``shares`` off."""
    cells = len(shares)
    changed = []
    for more, less in permutations(range(cells), 2):
        if shares[less] > SHIFT:
            moved = shares.copy()
            moved[more] += SHIFT
            moved[less] -= SHIFT
            changed.append(moved)
    for cell in range(cells):
        for new in (shares[cell] + SHIFT, shares[cell] - SHIFT):
            if 0 < new < 1:
                others = shares * (1 - new) / (1 - shares[cell])
                others[cell] = new
                changed.append(others)
    ratios = np.stack(changed, axis=1) / shares[:, None]
    # Of multinomial counts, a weighted mean of the ratios has this variance over draws of the reference.
    spread = np.sqrt(np.einsum("c,cm->m", shares, (ratios - 1) ** 2) / rows)
    tolerance = _TOLERANCE if rows >= _FEW else _TOLERANCE_OF_FEW
    return np.asarray(ratios / (1 + tolerance * spread), dtype=np.float64)


class StreamWatch:
    """Watches the labels of a model's answers and how sure they are."""

    def __init__(self, probabilities: NDArray[np.floating]) -> None:
        """Compare with what the model says of its calibration rows, (rows, classes)."""
        best, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
        counts = np.bincount(best, minlength=probabilities.shape[1])
        ranked = np.argsort(-counts, kind="stable")[: _MOST_CELLS - 1]
        common = ranked[counts[ranked] >= _RAREST * len(best)]
        cells = np.full(len(counts), len(common))
        cells[common] = np.arange(len(common))
        self._cell_of_label: NDArray[np.int64] = np.unique(cells, return_inverse=True)[1]
        self._edges = np.unique(np.quantile(sure, np.linspace(0, 1, _CONFIDENCE_CELLS + 1)[1:-1]))
        self.labels = DriftDetector(np.bincount(self._cell_of_label[best]))
        cells_of_sureness = np.searchsorted(self._edges, sure, side="right")
        self.confidence = DriftDetector(np.bincount(cells_of_sureness, minlength=len(self._edges) + 1))
        self._one_at_a_time = threading.Lock()

    def see(self, probabilities: NDArray[np.floating]) -> tuple[str, ...]:
        """Take answers, (texts, classes), from any thread; the kinds of alarms that begin."""
        labels = self._cell_of_label[probabilities.argmax(axis=1)].tolist()
        sure = np.searchsorted(self._edges, probabilities.max(axis=1), side="right").tolist()
        with self._one_at_a_time:
            seen = (
                (kind, self.kinds[kind].see(cells))
                for kind, cells in (("labels", labels), ("confidence", sure))
            )
            return tuple(kind for kind, begins in seen if begins)

    @property
    def kinds(self) -> dict[str, DriftDetector]:
        """The detectors by what they watch."""
        return {"labels": self.labels, "confidence": self.confidence}
