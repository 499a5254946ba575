"""What a run's confidence is worth: calibration, promised error rates, and scores to abstain by.

    python benchmarks/abstention.py runs/best --data ../shared/ag_news

Temperature and scores are chosen on the run's validation rows, everything is told of the test rows. A promise
concerns the error rate over all texts, of which any held-out half is a noisy reading. So the rows of a pool
are taken for all the texts there are: calibration rows are drawn from them, with replacement, and the error
rate of the threshold found is then known exactly. Beside it stands what is usually counted: random halves,
one to calibrate, one to measure. A draw that promises nothing answers nothing, and breaks no promise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.examples import aligned_labels
from newsdesk.evaluation.rows import evaluation_rows, known_rows
from newsdesk.metrics import expected_calibration_error, wilson_interval
from newsdesk.prediction.abstention import Promise, promised_threshold, risk_coverage
from newsdesk.prediction.open_model import open_model
from newsdesk.runs.calibration import fit_temperature, negative_log_likelihood, softmax
from newsdesk.runs.folder import open_run

ERROR_RATES = (0.01, 0.02, 0.05)
PROMISED = (0.02, 0.05)
CONFIDENCE = 0.95

Values = NDArray[np.float64]
Draw = Callable[["Rows", np.random.Generator], tuple["Rows", "Rows"]]


@dataclass(frozen=True)
class Rows:
    """Logits (rows, classes) and class ids (rows,) of one set of rows."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.logits.argmax(axis=1) == self.labels

    def select(self, at: NDArray[np.int64]) -> Rows:
        return Rows(self.logits[at], self.labels[at])

    def confidence(self, temperature: float) -> Values:
        return softmax(self.logits, temperature).max(axis=1).astype(np.float64)


def main() -> None:
    arguments = parse_arguments()
    validation, test = rows_of(arguments.run, arguments.data)
    temperature = fit_temperature(validation.logits, validation.labels)
    print(f"{len(validation.labels):,} validation rows, {len(test.labels):,} test rows")
    show_calibration({"validation": validation, "test": test}, temperature)
    both = Rows(
        np.concatenate([validation.logits, test.logits]), np.concatenate([validation.labels, test.labels])
    )
    for name, pool in (("test", test), ("validation and test", both)):
        for rate in PROMISED:
            show_promise(name, pool, rate, arguments.draws)
    show_from_validation(validation, test, temperature)
    show_scores(validation, test, temperature)


def rows_of(path: Path, data: str) -> tuple[Rows, Rows]:
    """The run's validation rows and the test rows, as it computes them."""
    run = open_run(path)
    predictor = open_model(path, engine="torch")
    held_out = known_rows(run, purpose="this measures by", otherwise="train a run of your own").validation
    test = evaluation_rows(run, data, "test")
    validation, tested = (
        Rows(predictor.predict_logits(rows.texts), aligned_labels(rows, run.labels.names))
        for rows in (held_out, test)
    )
    return validation, tested


def show_calibration(parts: Mapping[str, Rows], temperature: float) -> None:
    print(f"\ncalibration, temperature {temperature:.4f} by the validation rows")
    print(f"{'rows':<22}{'accuracy':>10}{'error before':>14}{'after':>8}{'nats before':>13}{'after':>8}")
    for name, rows in parts.items():
        before, after = (
            expected_calibration_error(rows.confidence(t), rows.correct) for t in (1.0, temperature)
        )
        loss, loss_after = (negative_log_likelihood(rows.logits, rows.labels, t) for t in (1.0, temperature))
        print(
            f"{name:<22}{rows.correct.mean():>10.2%}{before:>14.4f}{after:>8.4f}{loss:>13.4f}{loss_after:>8.4f}"
        )


def show_promise(name: str, pool: Rows, rate: float, draws: int) -> None:
    """How often an error rate was kept, by both definitions."""
    print(f"\nat most {rate:.0%} wrong with {CONFIDENCE:.0%} confidence, {draws} draws from {name} rows")
    ways: dict[str, Draw] = {"the pool is all there is": with_replacement, "random halves": halves}
    for way, draw in ways.items():
        generator = np.random.default_rng(0)
        errors, coverages = [], []
        for _ in range(draws):
            calibration, measured = draw(pool, generator)
            temperature = fit_temperature(calibration.logits, calibration.labels)
            promise = promise_of(calibration, temperature, rate)
            error, coverage = outcome(promise, measured, temperature)
            errors.append(error)
            coverages.append(coverage)
        kept = int(np.sum(np.array(errors) <= rate))
        low, high = wilson_interval(kept, draws)
        answered = [error for error, coverage in zip(errors, coverages, strict=True) if coverage]
        print(
            f"  {way:<26}kept {kept} of {draws} ({low:.0%} to {high:.0%}), {draws - len(answered)} refused; "
            f"{np.mean(coverages):.1%} answered, {np.mean(answered or [0]):.2%} of them wrong"
        )


def with_replacement(pool: Rows, generator: np.random.Generator) -> tuple[Rows, Rows]:
    return pool.select(generator.integers(0, len(pool.labels), len(pool.labels) // 2)), pool


def halves(pool: Rows, generator: np.random.Generator) -> tuple[Rows, Rows]:
    order = generator.permutation(len(pool.labels))
    middle = len(order) // 2
    return pool.select(order[:middle]), pool.select(order[middle:])


def promise_of(rows: Rows, temperature: float, rate: float) -> Promise | None:
    return promised_threshold(rows.confidence(temperature), rows.correct, rate, CONFIDENCE)


def outcome(promise: Promise | None, rows: Rows, temperature: float) -> tuple[float, float]:
    """Share wrong of the answered, and share answered."""
    answered = rows.confidence(temperature) >= (2.0 if promise is None else promise.threshold)
    return float((~rows.correct)[answered].mean()) if answered.any() else 0.0, float(answered.mean())


def show_from_validation(validation: Rows, test: Rows, temperature: float) -> None:
    print("\nthe threshold that predict uses, by the validation rows, on the test rows")
    for rate in ERROR_RATES:
        promise = promise_of(validation, temperature, rate)
        if promise is None:
            print(f"  {rate:.0%}: refused")
            continue
        error, coverage = outcome(promise, test, temperature)
        low, high = wilson_interval(
            round(error * coverage * len(test.labels)), round(coverage * len(test.labels))
        )
        print(
            f"  {rate:.0%}: threshold {promise.threshold:.4f}, answers {coverage:.1%}, {error:.2%} wrong "
            f"({low:.2%} to {high:.2%})"
        )


def show_scores(validation: Rows, test: Rows, temperature: float) -> None:
    print(
        "\nscores to abstain by: area under risk-coverage, coverage at an error rate by the rows' own labels"
    )
    print(f"{'score':<22}{'validation area':>16}{'at 2 %':>9}{'test area':>12}", end="")
    print("".join(f"{f'at {rate:.0%}':>9}" for rate in ERROR_RATES))
    found = {}
    for name, score in SCORES.items():
        one, other = (
            risk_coverage(score(rows.logits / temperature), rows.correct, ERROR_RATES)
            for rows in (validation, test)
        )
        found[name] = one.area
        answered = {at.error_rate: at.coverage for at in one.coverage_at}[0.02]
        print(f"{name:<22}{one.area:>16.5f}{answered:>9.1%}{other.area:>12.5f}", end="")
        print("".join(f"{at.coverage:>9.1%}" for at in other.coverage_at))
    print(f"least area on the validation rows: {min(found, key=lambda name: found[name])}")


def maximum_probability(logits: NDArray[np.floating]) -> Values:
    return softmax(logits).max(axis=1).astype(np.float64)


def margin(logits: NDArray[np.floating]) -> Values:
    second, first = np.sort(softmax(logits), axis=1)[:, -2:].T.astype(np.float64)
    return first - second


def negative_entropy(logits: NDArray[np.floating]) -> Values:
    probabilities = softmax(logits).astype(np.float64)
    return (probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(axis=1)


def energy(logits: NDArray[np.floating]) -> Values:
    """Log of the summed exponentials (Liu et al., 2020)."""
    exact = logits.astype(np.float64)
    highest = exact.max(axis=1)
    return highest + np.log(np.exp(exact - highest[:, None]).sum(axis=1))


SCORES: dict[str, Callable[[NDArray[np.floating]], Values]] = {
    "maximum probability": maximum_probability,
    "margin": margin,
    "negative entropy": negative_entropy,
    "energy": energy,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="the data set whose test split is measured on")
    parser.add_argument("--draws", type=int, default=100)
    return parser.parse_args()


if __name__ == "__main__":
    main()
