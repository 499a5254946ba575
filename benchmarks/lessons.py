"""What a sweep one key at a time says of each key: every value beside the published one, on the same rows.

    newsdesk sweep lessons --data ../shared/ag_news --out sweeps/lessons
    python benchmarks/lessons.py sweeps/lessons --out build/lessons   # tables, and a chart of the lessons

Differences are those of mean accuracy over the seeds, with 95 % intervals over rows and trainings; p-values
are adjusted for all pairs of one key's values (Holm, 1979), so that of equal values any is called another in
at most 5 % of keys. Works while the sweep runs, on what is complete.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.experiments.folder import begun
from newsdesk.experiments.noise import Against, against_best, intervals
from newsdesk.experiments.results import Answers
from newsdesk.experiments.space import Space
from newsdesk.experiments.study import Study

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import markdown_table

PUBLISHED: dict[str, dict[str, Any]] = {
    "lora.rank": {"lora.rank": 4},
    "lora.dropout": {"lora.dropout": 0.1},
    "training.warmup": {"training.warmup": 500, "training.epochs": 4.0},
    "training.batch_size": {"training.batch_size": 16},
}
"""The reference's four settings, by the key that the lesson is about."""


@dataclass(frozen=True)
class Value:
    """One value of a key: its mean accuracy, and what the published one has over it."""

    key: str
    name: str
    accuracy: float
    interval: tuple[float, float]
    spread: float
    seconds: float
    against: Against | None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="the folder of newsdesk sweep")
    parser.add_argument("--out", type=Path, default=Path("build/lessons"))
    arguments = parser.parse_args()
    found = read(arguments.sweep)
    for key, values in found.items():
        print(f"\n{key}\n{table(values)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw({key: values for key, values in found.items() if key in PUBLISHED}, arguments.out)


def read(folder: Path) -> dict[str, list[Value]]:
    """The values of each key that has two or more complete points, in the order of the sweep."""
    started = begun(folder)
    if started is None:
        raise SystemExit(f"{folder} holds no sweep")
    base, facts = started
    space = Space.of(base, facts.vary, facts.method, rows_are_given=False)
    study = Study(folder, space, facts)
    complete = {
        trial.number: space.values(trial.parameters) for trial in study.trials() if trial.state == "complete"
    }
    names = [str(label) for label in range(_classes(study, complete))]
    answers = {number: Answers.of(study, number, names) for number in complete}
    usual = dict(complete[min(complete)])
    found = {}
    for group, listed in map(_varied, facts.vary):
        kept = {key: value for key, value in usual.items() if key not in group}
        numbers = [
            number
            for number, values in complete.items()
            if all(values[key] == value for key, value in kept.items())
            and (values == usual or tuple(_text(values[key]) for key in group) in listed)
        ]
        if "training.epochs" in group:  # the others take one epoch
            numbers = [number for number in numbers if complete[number]["training.epochs"] > 1]
        if len(numbers) > 1:
            with suppress(TypeError):
                numbers.sort(key=lambda number: [complete[number][key] for key in group])
            points = [(complete[number], answers[number]) for number in numbers]
            found[group[0]] = _beside(group, points)
    return found


def _varied(vary: str) -> tuple[list[str], set[tuple[str, ...]]]:
    """The keys of one line of the sweep, and the values that it lists for them."""
    keys, _, values = vary.partition("=")
    listed = {tuple(_text(part) for part in value.split(":")) for value in values.split(",")}
    return [key.strip() for key in keys.split("+")], listed


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    with suppress(ValueError):
        return f"{float(value):g}"
    return str(value).strip().lower()


def _classes(study: Study, complete: dict[int, Any]) -> int:
    from newsdesk.runs.calibration import read_held_out_rows

    seed, fold = study.trainings()[0]
    rows = read_held_out_rows(study.training_folder(next(iter(complete)), seed, fold))
    assert rows is not None
    return rows.logits.shape[1]


def _beside(group: list[str], points: list[tuple[dict[str, Any], Answers]]) -> list[Value]:
    published = PUBLISHED.get(group[0], {})
    position = next(
        (n for n, (values, _) in enumerate(points) if published.items() <= values.items() and published), 0
    )
    values: list[NDArray[np.float64]] = [each.values("accuracy") for _, each in points]
    beside = against_best(values, position, shares=True)
    ranges = intervals(values, shares=True)
    return [
        Value(
            group[0],
            ", ".join(_text(point[key]) for key in group),
            float(of_rows.mean()),
            interval,
            float(of_rows.mean(axis=1).std(ddof=1)) if len(of_rows) > 1 else 0.0,
            float(np.mean([outcome.seconds for outcome in each.outcomes])),
            against,
        )
        for (point, each), of_rows, interval, against in zip(points, values, ranges, beside, strict=True)
    ]


def table(values: list[Value]) -> str:
    """The values of one key as a Markdown table."""
    rows = []
    for one in values:
        low, high = one.interval
        row = {
            "value": one.name,
            "accuracy": f"{one.accuracy:.2%} [{low:.2%}, {high:.2%}]",
            "spread of seeds": f"{100 * one.spread:.2f}",
        }
        if one.against is None:
            row |= {"beside the published one": "", "verdict": "as published"}
        else:
            difference, (least, most) = -one.against.difference, (-end for end in one.against.interval[::-1])
            gain = f"{100 * difference:+.2f} [{100 * least:+.2f}, {100 * most:+.2f}]"
            row["beside the published one"] = f"{gain}, p = {one.against.p_value:.2g}"
            row["verdict"] = "noise" if one.against.is_noise else ("better" if difference > 0 else "worse")
        rows.append(row)
    return markdown_table([*rows[0]], [list(row.values()) for row in rows])


def draw(lessons: dict[str, list[Value]], out: Path) -> None:
    """One panel a lesson: accuracy with its interval by value, the published one marked."""
    from matplotlib.figure import Figure

    if not lessons:
        return
    figure = Figure(figsize=(3.2 * len(lessons), 3.2), layout="constrained")
    panels = figure.subplots(1, len(lessons), sharey=True, squeeze=False)[0]
    for panel, (key, values) in zip(panels, lessons.items(), strict=True):
        places = np.arange(len(values))
        middle = np.array([100 * one.accuracy for one in values])
        ends = np.array([[100 * end for end in one.interval] for one in values]).T
        panel.errorbar(places, middle, np.abs(ends - middle), fmt="o", color="#22567a", capsize=3)
        marked = [place for place, one in enumerate(values) if one.against is None]
        panel.plot(places[marked], middle[marked], "o", color="#c8511b", markersize=9, zorder=3)
        panel.set_xticks(places, [one.name.split(",")[0] for one in values])
        panel.set_xlabel(key)
        panel.grid(axis="y", color="#dddddd")
    panels[0].set_ylabel("accuracy, % (orange: as published)")
    for ending in ("svg", "png"):
        figure.savefig(out.with_suffix(f".{ending}"), dpi=120)


if __name__ == "__main__":
    main()
