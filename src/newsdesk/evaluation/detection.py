"""How well a score tells a run's own texts from foreign ones: numpy in, plain numbers out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]


def area_under_roc(own: Scores, foreign: Scores) -> float:
    """Chance that a foreign text scores above one of the run's own, ties counting half (AUROC).

    Both (rows,), greater scores meaning more foreign. 1 tells them apart always, 0.5 not at all (Hanley &
    McNeil, 1982: the Mann-Whitney statistic). Raises ValueError where either is empty.
    """
    _require_rows(own, foreign)
    ordered = np.sort(own)
    below = np.searchsorted(ordered, foreign, side="left")
    not_above = np.searchsorted(ordered, foreign, side="right")
    return float((below + not_above).mean() / (2 * len(own)))


def false_positive_rate(own: Scores, foreign: Scores, recall: float = 0.95) -> float:
    """Share of foreign texts that pass where ``recall`` of the run's own do (FPR at 95 % recall).

    Both (rows,), greater scores meaning more foreign; the threshold is the lowest that lets so many of the
    run's own texts pass, and what equals it passes. Raises ValueError where either is empty.
    """
    _require_rows(own, foreign)
    threshold = np.sort(own)[math.ceil(recall * len(own)) - 1]
    return float((foreign <= threshold).mean())


def _require_rows(own: Scores, foreign: Scores) -> None:
    if len(own) == 0 or len(foreign) == 0:
        raise ValueError(f"{len(own)} own and {len(foreign)} foreign scores: both are needed")
