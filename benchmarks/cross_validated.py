"""What holds for a classifier by the answers of its folds: intervals, error rates, sets, off-topic texts.

    python benchmarks/cross_validated.py --draws 200
    python benchmarks/cross_validated.py --draws 200 --worth 1

Classes are Gaussian clusters, a share of the labels is wrong. In every draw a linear classifier learns from
few rows, and its folds answer them, as `newsdesk train --folds` has it; its temperature and its promises rest
on these answers, each of which counts as --worth rows. What then holds is measured on many more rows. Heads
that overfit (logistic regression with little regularisation) are among them: there the folds' models differ
most from the one that learned from all rows.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from newsdesk.cli.tables import render_columns
from newsdesk.errors import UserError
from newsdesk.metrics import wilson_interval
from newsdesk.prediction.abstention import decision_rule
from newsdesk.runs import calibration
from newsdesk.runs.calibration import HeldOutRows, cross_validated_counts, fit_temperature, softmax

FOLDS, DIMENSIONS, POPULATION = 5, 64, 10_000
RATES = (0.05, 0.1, 0.2)
COVERAGE = 0.9
HEADS = {
    "discriminant": lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "logistic": lambda: LogisticRegression(C=1.0, max_iter=100),
    "overfitted": lambda: LogisticRegression(C=100.0, max_iter=100),
}

Values = NDArray[np.float64]
Head = Callable[[], LinearDiscriminantAnalysis | LogisticRegression]


@dataclass
class Tally:
    """What came of some draws: accuracies, how many intervals covered, how many promises were broken."""

    truth: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    sets: list[float] = field(default_factory=list)
    covered: int = 0
    gave: dict[float, int] = field(default_factory=lambda: dict.fromkeys(RATES, 0))
    broken: dict[float, int] = field(default_factory=lambda: dict.fromkeys(RATES, 0))

    @property
    def draws(self) -> int:
        return len(self.truth)


def rows_of(
    means: Values, rows: int, noise: float, generator: np.random.Generator
) -> tuple[Values, NDArray[np.int64]]:
    """Features (rows, dimensions) and labels (rows,), of which a share is drawn at random."""
    classes = generator.integers(0, len(means), rows)
    labels = np.where(generator.random(rows) < noise, generator.integers(0, len(means), rows), classes)
    return means[classes] + generator.normal(size=(rows, means.shape[1])), labels


def simulated(
    head: Head, *, rows: int, classes: int, distance: float, noise: float, draws: int, seed: int = 0
) -> Tally:
    """Draw, learn and promise so many times; ``distance`` is that of each class from the centre of all."""
    generator, tally = np.random.default_rng(seed), Tally()
    means = generator.normal(size=(classes, DIMENSIONS))
    means *= distance / np.linalg.norm(means, axis=1, keepdims=True)
    population, truth = rows_of(means, POPULATION, noise, generator)
    while tally.draws < draws:
        features, labels = rows_of(means, rows, noise, generator)
        fold_of = generator.permutation(rows) % FOLDS
        if any(len(np.unique(labels[fold_of != fold])) < classes for fold in range(FOLDS)):
            continue
        answers = np.zeros((rows, classes), dtype=np.float32)
        for fold in range(FOLDS):
            held_out = fold_of == fold
            learned = head().fit(features[~held_out], labels[~held_out])
            answers[held_out] = learned.decision_function(features[held_out])
        logits = head().fit(features, labels).decision_function(population).astype(np.float32)
        take(tally, HeldOutRows(answers, labels, "simulated", folds=FOLDS), logits, truth)
    return tally


def take(tally: Tally, kept: HeldOutRows, logits: NDArray[np.float32], truth: NDArray[np.int64]) -> None:
    """Add one draw: what its folds' answers say, and what holds."""
    temperature = fit_temperature(kept.logits, kept.labels)
    probabilities = softmax(logits, temperature)
    right = probabilities.argmax(axis=1) == truth
    of_folds = kept.logits.argmax(axis=1) == kept.labels
    tally.truth.append(float(right.mean()))
    tally.measured.append(float(of_folds.mean()))
    low, high = wilson_interval(*cross_validated_counts(int(of_folds.sum()), len(of_folds)))
    tally.covered += low <= right.mean() <= high
    for rate in RATES:
        try:
            rule = decision_rule(kept, temperature, abstain=rate)
        except UserError:  # the rows cannot promise it
            continue
        assert rule is not None
        answered = rule.confident(probabilities)
        tally.gave[rate] += 1
        tally.broken[rate] += bool(answered.any() and (~right[answered]).mean() > rate)
    rule = decision_rule(kept, temperature, sets=COVERAGE)
    assert rule is not None
    tally.sets.append(float(rule.candidate_mask(probabilities)[np.arange(len(truth)), truth].mean()))


SETTINGS: tuple[dict[str, Any], ...] = (
    {"rows": 400, "classes": 4, "distance": 2.6, "noise": 0.02},
    {"rows": 400, "classes": 20, "distance": 4.0, "noise": 0.02},
    {"rows": 150, "classes": 4, "distance": 3.0, "noise": 0.02},
)


def lines(draws: int) -> Iterator[dict[str, str]]:
    for settings in SETTINGS:
        for name, head in HEADS.items():
            tally = simulated(head, **settings, draws=draws)
            yield {
                "rows": f"{settings['rows']}, {settings['classes']} classes",
                "head": name,
                "accuracy": f"{np.mean(tally.truth):.1%}",
                "by folds": f"{np.mean(tally.measured):.1%}",
                "interval covers": f"{tally.covered / draws:.1%}",
                **{
                    f"{rate:.0%} wrong: broken/gave": f"{tally.broken[rate] / draws:.1%} / "
                    f"{tally.gave[rate] / draws:.0%}"
                    for rate in RATES
                },
                f"sets of {COVERAGE:.0%}": f"{np.mean(tally.sets):.1%}",
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--worth", type=float, default=calibration.CROSS_VALIDATED_WORTH)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    with patch.object(calibration, "CROSS_VALIDATED_WORTH", arguments.worth):
        print("\n".join(render_columns(list(lines(arguments.draws)))))


if __name__ == "__main__":
    main()
