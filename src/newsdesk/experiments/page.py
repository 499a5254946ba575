"""The page of a sweep: its points, a chart for each varied key, and which differences are noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from newsdesk.errors import UserError
from newsdesk.experiments.folder import REPORT
from newsdesk.experiments.results import Point, SweepResults
from newsdesk.experiments.space import Axis, shown
from newsdesk.files import write_text
from newsdesk.reports.page import rendered
from newsdesk.reports.plots import COLOURS, Chart, canvas, dots, drawing_style, in_percent

_MOST_NAMES = 5
"""Values that fit below an axis upright."""
_MOST_TICKS, _MOST_DIGITS = 8, 4


def write_page(results: SweepResults) -> Path:
    """Write report.html into the folder of the sweep; without charts where matplotlib is missing."""
    charts, gap = [], ""
    try:
        with drawing_style():
            charts = [_chart(results, axis) for axis in results.study.space.axes if results.points]
    except UserError as error:
        gap = f"No charts: {error.wrong}. {error.fix}"
    page = rendered(
        "sweep.html",
        name=results.study.folder.resolve().name,
        results=results,
        best=results.points[0] if results.points else None,
        facts=results.study.facts,
        recipe=results.study.space.base.recipe,
        charts=charts,
        gap=gap,
        capital=lambda sentence: sentence[:1].upper() + sentence[1:],
    )
    path = results.study.folder / REPORT
    write_text(path, page)
    return path


def _chart(results: SweepResults, axis: Axis) -> Chart:
    """The points' scores by the values of an axis; of one-by-one those where the others are the recipe's."""
    points = list(results.points)
    if results.study.facts.method == "one-by-one":
        points = [point for point in points if _differs_only_in(results, point, axis)]
    points.sort(key=lambda point: _order(point, axis))
    places, numeric = _places(points, axis)
    figure, axes = canvas(xlabel=axis.name, ylabel=results.metric_name)
    for colour, marker, filled, chosen in (
        (
            COLOURS["muted"],
            "o",
            False,
            [each for each in points if each.against and not each.against.is_noise],
        ),
        (COLOURS["accent"], "o", True, [each for each in points if each.against and each.against.is_noise]),
        (COLOURS["second"], "D", True, [each for each in points if each.against is None]),
    ):
        if chosen:
            middle, spread = dots([(point.score, point.interval) for point in chosen])
            at = [places[point.trial.number] for point in chosen]
            fill = colour if filled else COLOURS["paper"]
            axes.errorbar(at, middle, spread, fmt=marker, color=colour, markerfacecolor=fill, elinewidth=1.2)
    if numeric:
        if min(places.values()) > 0 and max(places.values()) >= 8 * min(places.values()):
            axes.set_xscale("log")
        ticks = sorted(set(places.values()))
        if len(ticks) <= _MOST_TICKS:
            names = [f"{tick:g}" for tick in ticks]
            slanted = max(map(len, names)) > _MOST_DIGITS
            axes.set_xticks(ticks, names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
            axes.set_xticks([], minor=True)
    else:
        names = list(dict.fromkeys(_name(point, axis) for point in points))
        slanted = len(names) > _MOST_NAMES or max(map(len, names)) > 12
        axes.set_xticks(
            range(len(names)), names, rotation=40 if slanted else 0, ha="right" if slanted else "center"
        )
        axes.set_xlim(-0.5, len(names) - 0.5)
    if results.study.metric != "loss":
        in_percent(axes.yaxis)
    return Chart(
        f"sweep-{axis.name.replace('.', '-').replace('+', '-')}",
        axis.name,
        "Each dot is a point of the sweep"
        + (", all other keys as the recipe has them" if results.study.facts.method == "one-by-one" else "")
        + "; bars are its 95 % interval. A diamond is the best point, filled ones cannot be told from it, "
        "hollow ones are worse.",
        (axis.name, results.metric_name, "95 % interval", "verdict"),
        tuple(
            (
                _name(point, axis),
                results.shown(point.score),
                results.shown_interval(point.interval),
                point.verdict,
            )
            for point in points
        ),
        figure,
    )


def _differs_only_in(results: SweepResults, point: Point, axis: Axis) -> bool:
    own = results.study.space.own_point()
    return all(point.trial.parameters[name] == own[name] for name in own if name != axis.name)


def _name(point: Point, axis: Axis) -> str:
    return ":".join(shown(point.values[key]) for key in axis.keys)


def _order(point: Point, axis: Axis) -> Any:
    """By number, where the axis has numbers, else in the order asked for."""
    value = point.values[axis.keys[0]]
    if len(axis.keys) == 1 and _is_number(value):
        return (0, value, "")
    labels = list(axis.choices)
    name = _name(point, axis)
    return (1, labels.index(name) if name in labels else len(labels), name)


def _places(points: list[Point], axis: Axis) -> tuple[dict[int, float], bool]:
    """Where on the horizontal axis each trial is: its number, or the position of its name."""
    values = [point.values[axis.keys[0]] for point in points]
    if len(axis.keys) == 1 and all(map(_is_number, values)):
        return {point.trial.number: float(value) for point, value in zip(points, values, strict=True)}, True
    names = list(dict.fromkeys(_name(point, axis) for point in points))
    found: dict[int, float] = {}
    for place, name in enumerate(names):
        same = [point.trial.number for point in points if _name(point, axis) == name]
        for position, number in enumerate(same):  # side by side
            found[number] = place + 0.6 * ((position + 0.5) / len(same) - 0.5) * (len(same) > 1)
    return found, False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
