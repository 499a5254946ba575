"""How often promises are kept, by features and by pairs of them, on simulated rows.

    python benchmarks/promises.py --draws 1000

Of a simulated population of texts everything is known. Calibration rows are drawn from it, a temperature is
fitted on them, and what predict would say of every text of the population is computed by newsdesk's own
functions. A promise of an error rate is broken where more of the answered texts are wrong; that may happen in
5 % of the draws. A promise of coverage is about the mean over draws. A draw that promises nothing answers
nothing, and breaks nothing; "gave" says how often there was a promise.

Laws differ in where the errors are, and in how that goes with the distance from the training topics.

A linear model stands beside the classifier in two more tables: stacked on it, by a part that is fitted on the
calibration rows themselves, and before it in a cascade, whose promised loss may be broken in 5 % of draws.

Last comes the choice of the best of several states of one training, all equally good: chosen and calibrated
on the same rows, as before, and chosen on one half and calibrated on the other, as training does.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.cli.tables import render_columns
from newsdesk.config import TrainingSection
from newsdesk.errors import UserError
from newsdesk.exports.parity import Limits, compare
from newsdesk.prediction.abstention import decision_rule
from newsdesk.prediction.cascade import CascadeRule, cascade_rule
from newsdesk.prediction.predictions import Predictions
from newsdesk.runs.calibration import HeldOutRows, fit_temperature, softmax
from newsdesk.runs.linear_model import stack_weight
from newsdesk.runs.off_topic import OffTopicScore
from newsdesk.training.held_out import HeldOut

POPULATION = 10_000
LEVEL = 0.1  # of --off-topic: high, so that the filter matters
SURE = 0.8  # of --confidence, where that is asked for
Z = 2.6  # of 100 lines in a table, one may lie beyond that many standard deviations by chance

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """Texts as a classifier sees them.

    Logits are (texts, classes); class ids, distances and whether a text says anything are (texts,).
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    distances: NDArray[np.float32]
    readable: NDArray[np.bool_]

    @cached_property
    def unreadable(self) -> tuple[str | None, ...]:
        """Why a text gets no answer, as `Predictions` has it."""
        return tuple(None if says else "empty text" for says in self.readable)

    def draw(self, rows: int, generator: np.random.Generator) -> HeldOutRows:
        return self.held_out(generator.integers(0, len(self.labels), rows))

    def held_out(self, at: NDArray[np.int64]) -> HeldOutRows:
        columns = (self.distances[at], self.readable[at])
        return HeldOutRows(self.logits[at], self.labels[at], "simulated", *columns)


@dataclass(frozen=True)
class Law:
    """A kind of population, and what to ask of it.

    Attributes:
        name: what is special about it.
        rows: how many calibration rows are drawn.
        rate: the error rate asked for with --abstain.
        make: the population, from a generator and the rate.
    """

    name: str
    rows: int
    rate: float
    make: Callable[[np.random.Generator, float], Population]
    coverage: float = 0.9


@dataclass
class Tally:
    """What the draws of one line of the table gave."""

    draws: int = 0
    gave: int = 0
    broken: int = 0
    coverages: list[float] = field(default_factory=list)


def population(
    generator: np.random.Generator,
    confidence: Values,
    wrong: Values,
    distances: Values,
    classes: int,
    unreadable: NDArray[np.bool_] | None = None,
    overconfident: float = 1.5,
) -> Population:
    """Texts of given confidences (texts,), wrong with given probabilities, at given distances.

    The wrong ones belong to other classes in the shares that the classifier gives these.
    """
    texts = len(confidence)
    others = generator.dirichlet(np.full(classes - 1, 0.5), texts) + 1e-6
    others *= ((1 - confidence) / others.sum(axis=1))[:, None]
    # No other class may be likelier than the predicted one.
    others = np.minimum(others, 0.999 * confidence[:, None])
    by_rank = np.column_stack([confidence, others])
    is_wrong = generator.random(texts) < wrong
    cumulative = others.cumsum(axis=1)
    other = (generator.random((texts, 1)) * cumulative[:, -1:] > cumulative).sum(axis=1) + 1
    true_rank = np.where(is_wrong, other, 0)
    order = generator.permuted(np.tile(np.arange(classes), (texts, 1)), axis=1)
    logits = np.empty_like(by_rank)
    np.put_along_axis(logits, order, overconfident * np.log(by_rank), axis=1)
    labels = np.take_along_axis(order, true_rank[:, None], axis=1)[:, 0]
    readable = np.ones(texts, dtype=np.bool_) if unreadable is None else ~unreadable
    columns = (labels.astype(np.int64), distances.astype(np.float32), readable)
    return Population(logits.astype(np.float32), *columns)


def _confidences(generator: np.random.Generator) -> Values:
    return np.asarray(1 - 0.5 * generator.random(POPULATION) ** 2)


def _unsure(classes: int) -> Callable[[np.random.Generator, float], Population]:
    """Probabilities mean what they say, once they are cooled; distances tell nothing."""

    def make(generator: np.random.Generator, _rate: float) -> Population:
        sure = _confidences(generator)
        return population(generator, sure, 1 - sure, generator.chisquare(20, POPULATION), classes)

    return make


def _anywhere(generator: np.random.Generator, rate: float) -> Population:
    """Confidence tells nothing: every promise of the rate is a wrong one."""
    sure = _confidences(generator)
    wrong = np.full(POPULATION, 1.02 * rate)
    return population(generator, sure, wrong, generator.chisquare(20, POPULATION), 4)


def _far_ones_right(generator: np.random.Generator, rate: float) -> Population:
    """The texts that the filter stops are right, and surely so; of the others too many are wrong."""
    sure, distances = _confidences(generator), generator.chisquare(20, POPULATION)
    far = distances > np.quantile(distances, 1 - LEVEL)
    sure = np.where(far, 0.998 + 0.002 * sure, sure)
    return population(generator, sure, np.where(far, 0.0, 1.05 * rate), distances, 4)


def _far_ones_wrong(generator: np.random.Generator, _rate: float) -> Population:
    """The texts that the filter stops are mostly wrong, and the classifier is sure of them."""
    sure, distances = _confidences(generator), generator.chisquare(20, POPULATION)
    far = distances > np.quantile(distances, 1 - LEVEL)
    sure = np.where(far, 0.9 + 0.1 * sure, sure)
    return population(generator, sure, np.where(far, 0.6, (1 - sure)), distances, 4)


def _empty_ones_right(generator: np.random.Generator, rate: float) -> Population:
    """One text in ten says nothing, and is surely right; of the others too many are wrong."""
    sure, distances = _confidences(generator), generator.chisquare(20, POPULATION)
    empty = generator.random(POPULATION) < 0.1
    sure = np.where(empty, 0.99999, sure)
    distances = np.where(empty, 100.0, distances)
    return population(generator, sure, np.where(empty, 0.0, 1.05 * rate), distances, 4, empty)


def _distance_follows_confidence(generator: np.random.Generator, _rate: float) -> Population:
    """What the classifier is sure of lies far away."""
    sure = _confidences(generator)
    return population(generator, sure, 1 - sure, sure + 0.1 * generator.random(POPULATION), 4)


def _ties(generator: np.random.Generator, rate: float) -> Population:
    """Few different confidences and few different distances; the far ones are right."""
    sure = generator.choice([0.5, 0.7, 0.9, 0.99], POPULATION, p=[0.1, 0.2, 0.3, 0.4])
    distances = generator.integers(0, 12, POPULATION).astype(np.float64)
    return population(generator, sure, np.where(distances > 9, 0.0, 1.05 * rate), distances, 4)


def _wrong_where_surest(generator: np.random.Generator, rate: float) -> Population:
    sure = _confidences(generator)
    wrong = np.where(sure > 0.98, 1.2 * rate, 1 - sure)
    return population(generator, sure, wrong, generator.chisquare(20, POPULATION), 4)


LAWS = (
    Law("unsure where wrong", 500, 0.05, _unsure(4)),
    Law("unsure where wrong, few rows", 60, 0.1, _unsure(4)),
    Law("two classes", 500, 0.05, _unsure(2)),
    Law("60 classes", 500, 0.05, _unsure(60)),
    Law("60 classes, few rows", 60, 0.1, _unsure(60)),
    Law("wrong anywhere, at just the rate", 500, 0.1, _anywhere),
    Law("off-topic texts are right", 1000, 0.1, _far_ones_right),
    Law("off-topic texts are wrong and sure", 1000, 0.05, _far_ones_wrong),
    Law("empty texts are right", 1000, 0.1, _empty_ones_right),
    Law("sure texts are far", 500, 0.05, _distance_follows_confidence),
    Law("many ties, far ones right", 500, 0.1, _ties),
    Law("wrong where surest, too", 500, 0.1, _wrong_where_surest),
)

ASKED: Mapping[str, tuple[str, ...]] = {
    "--abstain": ("abstain",),
    "--abstain --confidence": ("abstain", "confidence"),
    "--sets": ("sets",),
    "--off-topic": ("off_topic",),
    "--abstain --sets": ("abstain", "sets"),
    "--abstain --off-topic": ("abstain", "off_topic"),
    "--abstain --confidence --off-topic": ("abstain", "confidence", "off_topic"),
    "--sets --off-topic": ("sets", "off_topic"),
    "--abstain --sets --off-topic": ("abstain", "sets", "off_topic"),
    "--abstain --answer-empty": ("abstain", "answer_empty"),
    "--sets --answer-empty": ("sets", "answer_empty"),
    "--abstain --off-topic --answer-empty": ("abstain", "off_topic", "answer_empty"),
    "the hint": ("abstain", "hint"),
    "the hint without its --confidence": ("abstain", "bare hint"),
    "the hint --sets": ("abstain", "hint", "sets"),
    "the hint --off-topic": ("abstain", "hint", "off_topic"),
}
"""What is asked of predict, by what the table calls it."""


def main() -> int:
    arguments = parse_arguments()
    lines: list[dict[str, str]] = []
    for law in LAWS:
        of_law = list(simulate(law, arguments.draws, arguments.seed))
        print(f"{law.name}: {law.rows:,} calibration rows, an error rate of {law.rate:.0%} asked for\n")
        print("\n".join(render_columns(of_law)), end="\n\n", flush=True)
        lines += of_law
    for knows in KNOWLEDGE:
        beside = list(simulate_linear_model(knows, arguments.draws, arguments.seed))
        print(f"a linear model beside it whose scores know {knows:g} standard deviations of the class\n")
        print("\n".join(render_columns(beside)), end="\n\n", flush=True)
        lines += beside
    print("the best of several equal states, of 600 validation rows\n")
    chosen = [
        line
        for states in (10, 30)
        for rate in (0.02, 0.05, 0.1)
        for line in simulate_choice(states, rate, arguments.draws, arguments.seed)
    ]
    print("\n".join(render_columns(chosen)), end="\n\n")
    exported = list(simulate_export(arguments.draws, arguments.seed))
    print("an export, the first of three candidates to pass the gate, on 1,000 calibration rows\n")
    print("\n".join(render_columns(exported)), end="\n\n")
    lines += exported
    lines += [line for line in chosen if line["asked for"] != SAME_ROWS]
    beyond = sum(line["kept"] == "NO" for line in lines)
    print(f"{beyond} of {len(lines)} lines beyond what {arguments.draws:,} draws allow by chance")
    return 1 if beyond else 0


def simulate(
    law: Law, draws: int, seed: int = 0, asked: Mapping[str, Sequence[str]] = ASKED
) -> Iterator[dict[str, str]]:
    """A line of the table for each combination of features, under one law."""
    generator = np.random.default_rng(seed)
    texts = law.make(generator, law.rate)
    tallies = {name: Tally() for name in asked}
    for _ in range(draws):
        rows = texts.draw(law.rows, generator)
        temperature = fit_temperature(rows.logits, rows.labels)
        probabilities = softmax(texts.logits, temperature)
        for name, features in asked.items():
            tally(tallies[name], law, features, rows, temperature, texts, probabilities)
    for name, features in asked.items():
        yield from table_lines(law, name, features, tallies[name])


def tally(
    kept: Tally,
    law: Law,
    features: Sequence[str],
    rows: HeldOutRows,
    temperature: float,
    texts: Population,
    probabilities: NDArray[np.float32],
) -> None:
    """Ask for the features on these calibration rows, and see what becomes of all the texts."""
    assert rows.distances is not None
    score = _score(rows.distances)
    wanted: dict[str, Any] = {
        "abstain": law.rate,
        "sets": law.coverage,
        "off_topic": LEVEL,
        "confidence": SURE,
        "answer_empty": True,
    }
    flags = {name: wanted[name] for name in features if name in wanted}
    kept.draws += 1
    try:
        if {"hint", "bare hint"} & {*features}:
            flags = hinted(rows, temperature, score, flags, bare="bare hint" in features)
        rule = decision_rule(rows, temperature, **flags, score=score)
        kept.gave += 1
    except UserError:
        # The coverage is a mean over all draws, those that can promise no error rate included.
        flags = {name: share for name, share in flags.items() if name not in ("abstain", "confidence")}
        if "sets" not in flags:
            return
        rule = decision_rule(rows, temperature, **flags, score=score)
    names = tuple(map(str, range(probabilities.shape[1])))
    unreadable = None if "answer_empty" in flags else texts.unreadable
    predictions = Predictions(
        probabilities, names, rule, score.p_values(texts.distances), unreadable=unreadable
    )
    right = predictions.class_ids == texts.labels
    if "abstain" in flags and predictions.answered.any():
        kept.broken += float((~right)[predictions.answered].mean()) > flags["abstain"]
    passing = ~(predictions.is_off_topic | predictions.is_unreadable)
    if "sets" in flags:
        assert predictions.candidate_mask is not None
        holds = predictions.candidate_mask[np.arange(len(right)), texts.labels]
        kept.coverages.append(float(holds[passing].mean()))
    elif "abstain" not in flags:
        kept.coverages.append(float((~predictions.is_off_topic).mean()))


def simulate_export(draws: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """A line for each promise of an export that is the first of several to pass the gate, on the same rows.

    The first candidate differs most from the run: in 38 answers of 1,000, the others in 9 and 1.
    """
    generator, law = np.random.default_rng(seed), Law("unsure where wrong", 1000, 0.05, _unsure(4))
    run = law.make(generator, law.rate)
    noise = generator.normal(size=run.logits.shape).astype(np.float32)
    candidates = [replace(run, logits=run.logits + size * noise) for size in (0.7, 0.3, 0.1)]
    asked = {
        name: ASKED[name] for name in ("--abstain", "--sets", "--abstain --off-topic", "--sets --off-topic")
    }
    tallies = {name: Tally() for name in asked}
    for _ in range(draws):
        at = generator.integers(0, POPULATION, law.rows)
        for taken in candidates:
            found = compare("", run.logits[at], taken.logits[at], run.labels[at], 1.0, law.rows)
            if found.is_close(Limits()):
                break
        rows = taken.held_out(at)
        temperature = fit_temperature(rows.logits, rows.labels)
        for name, features in asked.items():
            probabilities = softmax(taken.logits, temperature)
            tally(tallies[name], law, features, rows, temperature, taken, probabilities)
    for name, features in asked.items():
        yield from table_lines(law, f"an export's {name}", features, tallies[name])


KNOWLEDGE = (0.0, 1.0, 2.0)
"""By how many standard deviations a linear model's score of the true class is above those of the others."""
CASCADE_LOSS = 0.01


def simulate_linear_model(knows: float, draws: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """A line for each promise with a linear model stacked on a classifier, and of a cascade of the two."""
    generator, law = np.random.default_rng(seed), Law("unsure where wrong", 1000, 0.05, _unsure(4))
    alone = law.make(generator, law.rate)
    scores = generator.normal(size=alone.logits.shape).astype(np.float32)
    scores[np.arange(POPULATION), alone.labels] += knows
    asked = {name: ASKED[name] for name in ("--abstain", "--sets")}
    tallies = {f"{how} {name}": Tally() for how in ("stacked", "cascade") for name in asked}
    loss = Tally()
    for _ in range(draws):
        at = generator.integers(0, POPULATION, law.rows)
        part = np.float32(stack_weight(alone.logits[at], scores[at], alone.labels[at]))
        stacked = replace(alone, logits=alone.logits + part * scores)
        rows = replace(stacked.held_out(at), linear=scores[at])
        temperature = fit_temperature(rows.logits, rows.labels)
        variants = {"stacked": (stacked, rows)}
        loss.draws += 1
        with suppress(UserError):
            mixed = _in_cascade(cascade_rule(rows, CASCADE_LOSS), stacked, scores, temperature)
            right = [(texts.logits.argmax(axis=1) == alone.labels).mean() for texts in (stacked, mixed)]
            loss.gave += 1
            loss.broken += bool(right[0] - right[1] > CASCADE_LOSS)
            choosing, others = rows.halves()
            rule = cascade_rule(choosing, CASCADE_LOSS)
            assert others.linear is not None
            logits = rule.mixed(others.logits, others.linear, temperature)
            variants["cascade"] = (
                _in_cascade(rule, stacked, scores, temperature),
                replace(others, logits=logits),
            )
        for how, (texts, held_out) in variants.items():
            probabilities = softmax(texts.logits, temperature)
            for name, features in asked.items():
                kept = tallies[f"{how} {name}"]
                tally(kept, law, features, held_out, temperature, texts, probabilities)
    for name, kept in tallies.items():
        if kept.draws:
            yield from table_lines(law, name, asked[name.split()[1]], kept)
    share, most = loss.broken / draws, 0.05 + Z * sqrt(0.05 * 0.95 / draws)
    yield _line("cascade --loss", loss, f"broken {share:.1%}", "5%", share <= most)


def _in_cascade(
    rule: CascadeRule, texts: Population, scores: NDArray[np.float32], temperature: float
) -> Population:
    return replace(texts, logits=rule.mixed(texts.logits, scores, temperature))


SAME_ROWS, HALVES = "chosen and calibrated on the same rows", "chosen on one half, calibrated on the other"


def simulate_choice(
    states: int, rate: float, draws: int, seed: int = 0, rows: int = 600
) -> Iterator[dict[str, str]]:
    """A line for either way to use validation rows, when the best of so many equal states is kept.

    Of every state a little more than the rate is wrong, whatever it answers: each promise is a broken one.
    """
    generator = np.random.default_rng(seed)
    training = TrainingSection()
    tallies = {SAME_ROWS: Tally(), HALVES: Tally()}
    for _ in range(draws):
        # Each state errs on its own texts, as often wherever it is surer or less sure: just beyond the rate.
        wrong = generator.random((states, rows)) < 1.02 * rate
        sure = 1 - 0.5 * generator.random(rows) ** 2
        everything = np.arange(rows)
        parts = HeldOut.of(generator.integers(0, 4, rows), states, training)
        for kept, choosing, calibrating in (
            (tallies[SAME_ROWS], everything, everything),
            (tallies[HALVES], parts.choosing, parts.calibrating),
        ):
            best = wrong[wrong[:, choosing].sum(axis=1).argmin()]
            of_best = population(generator, sure, best.astype(np.float64), np.zeros(rows), 4)
            held_out = HeldOutRows(of_best.logits[calibrating], of_best.labels[calibrating], "simulated")
            temperature = fit_temperature(held_out.logits, held_out.labels)
            kept.draws += 1
            try:
                decision_rule(held_out, temperature, abstain=rate)
            except UserError:
                continue
            kept.gave += 1
            kept.broken += 1  # whatever it answers, more than the rate is wrong
    for name, kept in tallies.items():
        share, most = kept.broken / kept.draws, 0.05 + Z * sqrt(0.05 * 0.95 / kept.draws)
        line = _line(name, kept, f"broken {share:.1%}", "5%", share <= most)
        yield {"states": str(states), "error rate": f"{rate:.0%}", **line}


def hinted(
    rows: HeldOutRows, temperature: float, score: OffTopicScore, flags: dict[str, Any], *, bare: bool
) -> dict[str, Any]:
    """What is asked for after an impossible request was refused with a hint. Raises UserError without one."""
    try:
        decision_rule(rows, temperature, **flags | {"abstain": 0.001}, score=score)
    except UserError as refused:
        named = re.search(r"--abstain ([\d.]+) --confidence ([\d.]+)", refused.fix or "")
        if named is None:
            raise
        rate, confidence = map(float, named.groups())
        return flags | {"abstain": rate} | ({} if bare else {"confidence": confidence})
    return flags | {"abstain": 0.001}


def _score(distances: NDArray[np.float32]) -> OffTopicScore:
    square = np.eye(1, dtype=np.float32)
    return OffTopicScore(square, square, np.zeros(1, np.float32), 0.1, distances[:0]).with_reference(
        distances
    )


def table_lines(law: Law, name: str, features: Sequence[str], kept: Tally) -> Iterator[dict[str, str]]:
    """What a tally says: of broken promises, of coverage, of the share that passes the filter."""
    if "abstain" in features:
        allowed = 1 - SURE if "confidence" in features else 0.05
        most = allowed + Z * sqrt(allowed * (1 - allowed) / kept.draws)
        share = kept.broken / kept.draws
        yield _line(name, kept, f"broken {share:.1%}", f"{allowed:.0%}", share <= most)
    if "sets" in features or "abstain" not in features:
        what, promised = ("coverage", law.coverage) if "sets" in features else ("on topic", 1 - LEVEL)
        given = np.array(kept.coverages or [1.0])
        mean, least_spread = float(given.mean()), sqrt(promised * (1 - promised) / law.rows)
        error = max(float(given.std()), least_spread) / sqrt(len(given))
        yield _line(name, kept, f"{what} {mean:.2%}", f"{promised:.0%}", mean >= promised - Z * error)


def _line(name: str, kept: Tally, found: str, promised: str, ok: bool) -> dict[str, str]:
    return {
        "asked for": name,
        "gave": f"{kept.gave / kept.draws:.0%}",
        "found": found,
        "allowed": promised,
        "kept": "yes" if ok else "NO",
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=1000, help="calibration sets drawn under each law")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
