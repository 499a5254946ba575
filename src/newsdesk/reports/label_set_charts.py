"""The charts of a report where a text may have several labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from newsdesk.reports.content import ReportContent
from newsdesk.reports.label_sets import LabelLine, LabelSetContent
from newsdesk.reports.parts import Lengths, TrainingContent
from newsdesk.reports.plots import (
    COLOURS,
    LARGEST_LABELLED_MATRIX,
    Chart,
    canvas,
    dots,
    drawing_style,
    in_percent,
    interval_in_percent,
    length_chart,
    percent,
    reliability_chart,
    risk_coverage_chart,
    short_name,
    training_charts,
)

_ALL_RIGHT = "all labels right"


def draw_label_sets(content: ReportContent, of: LabelSetContent) -> tuple[Chart, ...]:
    """All charts that the content has numbers for. Raises UserError where matplotlib is missing."""
    with drawing_style():
        return tuple(_charts(content, of))


def _charts(content: ReportContent, of: LabelSetContent) -> Iterator[Chart]:
    if lines := [line for line in of.labels if line.figures.support]:
        yield _f1_by_label(lines, of.measured.metrics.macro_f1)
    if of.calibrated:
        yield reliability_chart(
            of.calibrated,
            of.uncalibrated,
            "Labels of all texts, those below 10 % left out, in bins of equal size by probability. On the "
            "dashed line, as many are true as the probability says; below it, the model is too sure. "
            "Bars are 95 % intervals.",
            before="before calibration",
            columns=("labels", "probability", "true"),
        )
    if of.risk_coverage is not None:
        yield risk_coverage_chart(
            of.risk_coverage,
            answered="assigned labels kept, the most probable first",
            description="What is left wrong when only the most probable of the assigned labels are kept and "
            "the rest go to a person.",
            short="kept",
        )
    if isinstance(of.lengths, Lengths):
        yield length_chart(of.lengths, of.measured.metrics.subset_accuracy, name=_ALL_RIGHT)
    if isinstance(content.training, TrainingContent):
        yield from training_charts(content.training)


def _f1_by_label(lines: Sequence[LabelLine], macro_f1: float) -> Chart:
    """F1 of each label by its texts; where there is room, by its name."""
    figures = [line.figures for line in lines]
    named = len(figures) <= LARGEST_LABELLED_MATRIX
    figure, axes = canvas(
        xlabel="" if named else "texts with the label",
        ylabel=f"F1 (dashed: macro F1, {percent(macro_f1)})",
    )
    middle, spread = dots([(one.f1, one.f1_interval) for one in figures])
    places = list(range(len(figures))) if named else [one.support for one in figures]
    axes.axhline(macro_f1, color=COLOURS["muted"], linewidth=1, dashes=(4, 3))
    axes.errorbar(
        places, middle, spread, fmt="o", color=COLOURS["accent"], markersize=5 if named else 4,
        elinewidth=1.2 if named else 0.7,
    )  # fmt: skip
    if named:
        slanted = len(figures) > 5
        names = [short_name(one.label) for one in figures]
        axes.set_xticks(places, names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
        axes.set_xlim(-0.5, len(names) - 0.5)
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda count, _position: f"{count:g}")
    axes.set_ylim(-0.03, 1.03)
    in_percent(axes.yaxis)
    return Chart(
        "f1-by-label",
        "F1 by label",
        "Each dot is a label, those with the most texts "
        f"{'first' if named else 'on the right'}; bars are 95 % intervals.",
        ("label", "texts", "F1", "95 % interval"),
        tuple(
            (one.label, f"{one.support:,}", percent(one.f1), interval_in_percent(one.f1_interval))
            for one in figures
        ),
        figure,
    )
