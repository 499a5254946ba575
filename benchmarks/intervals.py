"""How often the 95 % intervals of figures cover what they are of, by the number of rows, on simulated rows.

    python benchmarks/intervals.py --draws 1000

Of a simulated population every figure is known. Rows are drawn from it, and newsdesk's own functions give the
intervals that report and compare would show. A cell is the share of draws whose interval covers the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from newsdesk.cli.tables import render_columns
from newsdesk.evaluation.significance import (
    accuracy_difference,
    macro_f1_difference,
    macro_f1_interval,
    mean_difference,
    mean_interval,
)
from newsdesk.metrics import wilson_interval

POPULATION = 100_000
ROWS = (25, 50, 100, 200, 500, 2000)

Interval = tuple[float, float]
Values = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Kind:
    """A classifier and its data.

    Attributes:
        name: what is special about it.
        signal: how far the true class stands out, in standard deviations.
        shares: of the classes.
    """

    name: str
    signal: float
    shares: tuple[float, ...]


KINDS = (
    Kind("4 classes, 89 % right", 2.4, (0.25,) * 4),
    Kind("4 classes, 64 % right", 1.3, (0.25,) * 4),
    Kind("5 uneven classes, 87 % right", 2.2, (0.5, 0.3, 0.1, 0.06, 0.04)),
    Kind("20 classes, 85 % right", 3.0, (0.05,) * 20),
    Kind("2 classes, 97 % right", 2.7, (0.5, 0.5)),
)


@dataclass(frozen=True)
class Rows:
    """Rows under two classifiers: true and predicted ids, and by the first the losses, all (rows,)."""

    labels: Ids
    first: Ids
    other: Ids
    log_loss: Values
    other_log_loss: Values
    brier: Values
    classes: int

    def select(self, at: NDArray[np.int64]) -> Rows:
        columns = (self.labels, self.first, self.other, self.log_loss, self.other_log_loss, self.brier)
        return Rows(*(column[at] for column in columns), self.classes)  # type: ignore[arg-type]


def population(kind: Kind, generator: np.random.Generator) -> Rows:
    """Rows whose class stands out from noise, seen by a classifier that is too sure, and by another."""
    classes = len(kind.shares)
    labels = generator.choice(classes, POPULATION, p=kind.shares)
    seen = generator.normal(size=(POPULATION, classes))
    seen[np.arange(POPULATION), labels] += kind.signal
    logits = 1.15 * kind.signal * seen + np.log(kind.shares)
    first = _probabilities(logits)
    other = _probabilities(0.9 * logits + 0.35 * generator.normal(size=logits.shape))
    losses = [-np.log(rows[np.arange(POPULATION), labels]) for rows in (first, other)]
    brier = ((first - np.eye(classes)[labels]) ** 2).sum(axis=1)
    return Rows(labels, first.argmax(axis=1), other.argmax(axis=1), losses[0], losses[1], brier, classes)


def _probabilities(logits: Values) -> Values:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(np.maximum(powers / powers.sum(axis=1, keepdims=True), 1e-15))


def _accuracy(rows: Rows) -> Interval:
    return wilson_interval(int((rows.first == rows.labels).sum()), len(rows.labels))


def _mean(values: Values, most: float = np.inf) -> Interval:
    found = mean_interval(values, most=most)
    assert found is not None
    return found


FIGURES: Mapping[str, Callable[[Rows], Interval]] = {
    "accuracy": _accuracy,
    "macro F1": lambda rows: macro_f1_interval(rows.labels, rows.first, rows.classes),
    "log-loss": lambda rows: _mean(rows.log_loss),
    "Brier score": lambda rows: _mean(rows.brier, 2.0),
    "difference of accuracies": lambda rows: (
        accuracy_difference(rows.labels, rows.first, rows.other).interval
    ),
    "difference of macro F1": lambda rows: (
        macro_f1_difference(rows.labels, rows.first, rows.other, rows.classes).interval
    ),
    "difference of log-losses": lambda rows: mean_difference(rows.log_loss, rows.other_log_loss).interval,
}
"""The intervals that are shown, by the figure that they are of."""


def truth(figure: str, rows: Rows) -> float:
    """What a figure is on the whole population."""
    right, other_right = (float((given == rows.labels).mean()) for given in (rows.first, rows.other))
    f1 = macro_f1_difference(rows.labels, rows.first, rows.other, rows.classes)
    return {
        "accuracy": right,
        "macro F1": f1.first,
        "log-loss": float(rows.log_loss.mean()),
        "Brier score": float(rows.brier.mean()),
        "difference of accuracies": other_right - right,
        "difference of macro F1": f1.difference,
        "difference of log-losses": float((rows.other_log_loss - rows.log_loss).mean()),
    }[figure]


def coverage(
    kind: Kind, rows: int, draws: int, seed: int = 0, figures: Sequence[str] = tuple(FIGURES)
) -> dict[str, float]:
    """The share of draws of so many rows in which each figure's interval covers the truth."""
    generator = np.random.default_rng(seed)
    whole = population(kind, generator)
    true = {figure: truth(figure, whole) for figure in figures}
    covered = dict.fromkeys(figures, 0)
    for _ in range(draws):
        drawn = whole.select(generator.integers(0, len(whole.labels), rows))
        for figure in figures:
            low, high = FIGURES[figure](drawn)
            covered[figure] += low - 1e-12 <= true[figure] <= high + 1e-12
    return {figure: count / draws for figure, count in covered.items()}


def table(draws: int, seed: int, numbers: Sequence[int] = ROWS) -> Iterator[dict[str, str]]:
    """A line for each kind and figure, a column for each number of rows."""
    for kind in KINDS:
        found = {rows: coverage(kind, rows, draws, seed) for rows in numbers}
        for figure in FIGURES:
            shares = {f"{rows:,} rows": f"{100 * found[rows][figure]:.1f}" for rows in numbers}
            yield {"classifier": kind.name, "95 % interval of": figure, **shares}


def main() -> None:
    parser = argparse.ArgumentParser(description="How often intervals cover the truth, on simulated rows.")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("\n".join(render_columns(list(table(arguments.draws, arguments.seed)))))


if __name__ == "__main__":
    main()
