"""The charts of a report: each a drawing, what it shows in words, and the numbers it is drawn from."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from math import floor, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from newsdesk.errors import missing_package
from newsdesk.evaluation.evaluate import Evaluation
from newsdesk.metrics import Metrics, ReliabilityBin
from newsdesk.prediction.abstention import RiskCoverage
from newsdesk.reports.content import EvaluationContent, ReportContent
from newsdesk.reports.parts import Lengths, Missing, TrainingContent
from newsdesk.runs.log import Validation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


COLOURS: Mapping[str, str] = {
    "ink": "#1f2933",
    "muted": "#5a6672",
    "rule": "#dcd7cc",
    "accent": "#0b6570",
    "second": "#a8480f",
    "paper": "#fffefb",
}
"""Roles of colours in a drawing, and what they are on paper. No two are equal: a page tells them apart so."""

PIXELS_AN_INCH = 220
_ROOT = re.compile(r".*?<svg[^>]*viewBox=\"(?P<box>[^\"]+)\"[^>]*>(?P<content>.*)</svg>\s*", re.DOTALL)
_NOT_FOR_PAGES = re.compile(
    r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->|(?<=<g) id=\"[^\"]*\"", re.DOTALL
)
_TAG = re.compile(r"<[^>]*>")
_REFERENCE = re.compile(r'(\bid="|href="#|url\(#)')
_FONT_FAMILY = re.compile(r" ?font-family: [^;\"]*;")


@contextmanager
def drawing_style() -> Iterator[None]:
    """What all drawings share, while they are made: quiet axes, and text that stands as it is.

    Raises UserError where matplotlib is missing.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise missing_package("matplotlib", "report", "drawing a report's charts") from None
    muted, paper, rule = COLOURS["muted"], COLOURS["paper"], COLOURS["rule"]
    with matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.size": 10.5,
            "text.color": COLOURS["ink"],
            "text.parse_math": False,
            "figure.facecolor": paper,
            "axes.facecolor": paper,
            "axes.edgecolor": muted,
            "axes.labelcolor": muted,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "grid.color": rule,
            "xtick.color": muted,
            "ytick.color": muted,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "ytick.major.size": 0,
            "lines.linewidth": 2.0,
            "legend.frameon": False,
        }
    ):
        yield


def as_svg(figure: Figure) -> bytes:
    """The drawing as a file of its own, in the colours of paper; text stays text."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "newsdesk"}):
        return _saved(figure, format="svg", metadata={"Date": None, "Creator": "newsdesk"})


def as_png(figure: Figure) -> bytes:
    """The drawing in pixels, 220 to the inch."""
    return _saved(figure, format="png", dpi=PIXELS_AN_INCH, metadata={"Software": "newsdesk"})


def is_drawing(path: Path) -> bool:
    """Whether a file was written from what ``as_svg`` or ``as_png`` give, by the creator that they name."""
    return path.is_file() and b"newsdesk" in path.read_bytes()


def _saved(figure: Figure, **settings: Any) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():  # a class's name may have letters that matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, **settings)
    return stream.getvalue()


def for_page(svg: bytes, name: str, title: str, description: str) -> str:
    """An SVG file from ``as_svg`` as an element of a page, with words for those who cannot see it.

    Its colours become the page's custom properties (``--ink`` and so on), so that one style sheet sets them
    for all charts and themes; its font becomes the page's own. ``name`` makes its ids unique in the page.
    """

    def themed(tag: re.Match[str]) -> str:
        changed = _FONT_FAMILY.sub("", _REFERENCE.sub(rf"\g<1>{name}-", tag[0]))
        for role, colour in COLOURS.items():
            changed = changed.replace(colour, f"var(--{role})")
        return changed

    found = _ROOT.fullmatch(svg.decode("utf-8"))
    assert found is not None  # matplotlib writes its root element so
    return (
        f'<svg viewBox="{found["box"]}" role="img" aria-labelledby="{name}-title {name}-description">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>'
        f"{_TAG.sub(themed, _NOT_FOR_PAGES.sub('', found['content']))}</svg>"
    )


WIDTH, HEIGHT = 4.2, 3.1
"""Of a drawing, in inches: so wide, its type reads well on a phone, and three fit side by side on a desk."""
LARGEST_LABELLED_MATRIX = 12
"""Up to how many classes a confusion matrix has room for names and counts."""

_NUMBERS = 25  # rows of the table beside a curve, at most
_LONGEST_NAME = 18  # letters of a class's name in a drawing
_MUTED, _ACCENT, _SECOND = (COLOURS[role] for role in ("muted", "accent", "second"))
Point = TypeVar("Point")


@dataclass(frozen=True)
class Chart:
    """A drawing for eyes, ears and other programs.

    Attributes:
        name: what its files are called.
        title: a few words.
        description: how to read it, in a sentence or two.
        columns: names of the numbers' columns.
        numbers: what is drawn, a row each, as text; of long curves every so many points.
        figure: the drawing.
    """

    name: str
    title: str
    description: str
    columns: tuple[str, ...]
    numbers: tuple[tuple[str, ...], ...]
    figure: Figure


def draw_charts(content: ReportContent) -> tuple[Chart, ...]:
    """All charts that the content has numbers for. Raises UserError where matplotlib is missing."""
    with drawing_style():
        return tuple(_charts(content))


def draw_training(training: TrainingContent) -> tuple[Chart, ...]:
    """The charts of a training alone. Raises UserError where matplotlib is missing."""
    with drawing_style():
        return tuple(training_charts(training))


def draw_evaluation(measured: Evaluation) -> tuple[Chart, ...]:
    """The charts that figures alone are enough for. Raises UserError where matplotlib is missing."""
    with drawing_style():
        matrix = _confusion_matrix(measured.metrics)
        curve = measured.risk_coverage
        return (matrix,) if curve is None else (matrix, risk_coverage_chart(curve))


def _charts(content: ReportContent) -> Iterator[Chart]:
    evaluation, training = content.evaluation, content.training
    if isinstance(evaluation, EvaluationContent):
        metrics = evaluation.measured.metrics
        yield _confusion_matrix(metrics)
        yield reliability_chart(
            evaluation.calibrated,
            evaluation.uncalibrated,
            "Rows in bins of equal size by confidence. On the dashed line, confidence is as high as "
            "accuracy; below it, the model is too sure. Bars are 95 % intervals.",
        )
        yield risk_coverage_chart(evaluation.risk_coverage)
        if isinstance(evaluation.lengths, Lengths):
            yield length_chart(evaluation.lengths, metrics.accuracy)
    if isinstance(training, TrainingContent):
        yield from training_charts(training)


def training_charts(training: TrainingContent) -> Iterator[Chart]:
    """Loss, validations and learning rate; while the drawing style is in force."""
    yield _loss(training)
    if training.validations:
        yield _validation_accuracy(training)
    yield _learning_rate(training)


def _confusion_matrix(metrics: Metrics) -> Chart:
    from matplotlib.patches import Rectangle

    classes = len(metrics.label_names)
    labelled = classes <= LARGEST_LABELLED_MATRIX
    figure, axes = canvas(height=WIDTH)
    for true, counts in enumerate(metrics.confusion):
        for predicted in np.flatnonzero(counts).tolist():
            share = counts[predicted] / sum(counts)
            colour = _ACCENT if predicted == true else _SECOND
            cell = Rectangle((predicted, true), 1, 1, color=colour, alpha=tint(share), linewidth=0)
            axes.add_patch(cell)
            if labelled:
                centre = (predicted + 0.5, true + 0.5)
                axes.text(*centre, f"{counts[predicted]:,}", ha="center", va="center")
    axes.set(xlim=(0, classes), ylim=(classes, 0), xlabel="predicted class", ylabel="true class")
    axes.set_aspect("equal")
    axes.grid(False)
    names = [short_name(name) for name in metrics.label_names] if labelled else []
    middles = [number + 0.5 for number in range(len(names))]
    slanted = len(names) > 5
    axes.set_xticks(middles, names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(middles, names)
    return Chart(
        "confusion-matrix",
        "Confusion matrix",
        "A row for each true class, a column for each predicted one, in the order of the table above. "
        "The stronger the tint, the larger the share of the true class; off the diagonal lie the errors.",
        ("true class", *metrics.label_names),
        tuple(
            (name, *(f"{count:,}" for count in counts))
            for name, counts in zip(metrics.label_names, metrics.confusion, strict=True)
        ),
        figure,
    )


def tint(share: float) -> float:
    """How opaque the cell of a confusion matrix is: small shares show, large ones leave text readable."""
    return 0.08 + 0.47 * sqrt(share)


def reliability_chart(
    calibrated: Sequence[ReliabilityBin],
    uncalibrated: Sequence[ReliabilityBin] | Missing,
    description: str,
    *,
    before: str = "before the temperature",
    columns: tuple[str, str, str] = ("rows", "confidence", "accuracy"),
) -> Chart:
    """Confidence against accuracy, with their names among ``columns``, and what it was before calibration."""
    _rows, of_confidence, of_accuracy = columns
    figure, axes = canvas(xlabel=of_confidence, ylabel=of_accuracy)
    curves = {"as predicted": calibrated}
    if not isinstance(uncalibrated, Missing):
        curves[before] = uncalibrated
    low = min(min(one.mean_confidence, one.accuracy) for curve in curves.values() for one in curve)
    low = floor(low * 10) / 10
    axes.plot([low, 1], [low, 1], color=_MUTED, linewidth=1, dashes=(4, 3))
    for name, curve in list(curves.items())[1:]:
        points = [(one.mean_confidence, one.accuracy) for one in curve]
        axes.plot(*np.transpose(points), "s", color=_SECOND, markerfacecolor="none", label=name)
    middle, spread = dots([(one.accuracy, one.accuracy_interval) for one in calibrated])
    confidence = [one.mean_confidence for one in calibrated]
    axes.errorbar(confidence, middle, spread, fmt="o", color=_ACCENT, elinewidth=1.2, label="as predicted")
    axes.set(xlim=(low - 0.02, 1.02), ylim=(low - 0.02, 1.02))
    in_percent(axes.xaxis, axes.yaxis)
    axes.legend(loc="upper left")
    return Chart(
        "reliability",
        "Reliability",
        description,
        ("probabilities", *columns, "95 % interval"),
        tuple(
            (
                name,
                f"{one.rows:,}",
                percent(one.mean_confidence),
                percent(one.accuracy),
                interval_in_percent(one.accuracy_interval),
            )
            for name, curve in curves.items()
            for one in curve
        ),
        figure,
    )


def risk_coverage_chart(
    curve: RiskCoverage,
    *,
    answered: str = "rows answered, the most confident first",
    description: str = "What is left wrong when only the most confident rows are answered and the rest "
    "go to a person.",
    short: str = "answered",
) -> Chart:
    """The share wrong among the most confident, named by what is ``answered``, in a ``short`` word too."""
    figure, axes = canvas(xlabel=answered, ylabel="of these, wrong")
    axes.plot(*np.transpose(curve.curve), color=_ACCENT)
    settled = [risk for coverage, risk in curve.curve if coverage >= 0.1]  # the first few rows jump
    top = max(max(settled, default=0.01) * 1.2, 0.01)
    axes.set(xlim=(0, 1.02), ylim=(0, top))
    for at in curve.coverage_at:
        if 0 < at.coverage < 1 and at.error_rate < top:
            place = (at.coverage, at.error_rate)
            axes.plot(*place, "o", color=_SECOND, markersize=6)
            label = f"{100 * at.coverage:.0f} % {short}"
            axes.annotate(label, place, (-9, 3), textcoords="offset points", ha="right")
    in_percent(axes.xaxis, axes.yaxis)
    return Chart(
        "risk-coverage",
        "Risk and coverage",
        f"{description} The area under the curve is {curve.area:.4f}; smaller is better.",
        (short, "of these, wrong"),
        tuple((percent(coverage), percent(risk)) for coverage, risk in _thinned(curve.curve)),
        figure,
    )


def length_chart(lengths: Lengths, accuracy: float, *, name: str = "accuracy") -> Chart:
    """Accuracy, by that ``name``, of texts of similar length, beside that of all."""
    figure, axes = canvas(
        xlabel="tokens of the text", ylabel=f"{name} (dashed: all rows, {percent(accuracy)})"
    )
    middle, spread = dots([(one.accuracy, one.interval) for one in lengths.bins])
    axes.axhline(accuracy, color=_MUTED, linewidth=1, dashes=(4, 3))
    axes.errorbar(range(len(middle)), middle, spread, color=_ACCENT, fmt="o", markersize=7, elinewidth=1.5)
    names = [f"{one.shortest}–{one.longest}" for one in lengths.bins]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    in_percent(axes.yaxis)
    return Chart(
        "length-accuracy",
        f"{name.capitalize()} by length",
        "Rows in bins of about equal size, the shortest texts first; bars are 95 % intervals. "
        f"The model reads {lengths.reach} tokens: {percent(lengths.cut)} of the texts are cut there.",
        ("tokens", "rows", name, "95 % interval"),
        tuple(
            (name, f"{one.rows:,}", percent(one.accuracy), interval_in_percent(one.interval))
            for name, one in zip(names, lengths.bins, strict=True)
        ),
        figure,
    )


def _loss(training: TrainingContent) -> Chart:
    figure, axes = canvas(xlabel="epochs", ylabel="loss, nats")
    epochs, losses = zip(*((point.epoch, point.loss) for point in training.points), strict=True)
    axes.plot(epochs, losses, color=_ACCENT, linewidth=1.4, label="training")
    if training.validations:
        points = [(one.epoch, one.loss) for one in training.validations]
        axes.plot(*np.transpose(points), "s-", color=_SECOND, markersize=5, label="validation")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    size = training.steps_per_point
    averaged = f", each point the mean of {size} steps" if size > 1 else ""
    return Chart(
        "loss",
        "Loss",
        f"How surprised the model was by the rows it learned from{averaged} and by rows held out.",
        ("epochs", "training loss", "learning rate"),
        tuple(
            (f"{point.epoch:.2f}", f"{point.loss:.4f}", f"{point.learning_rate:.2e}")
            for point in _thinned(training.points)
        ),
        figure,
    )


def _validation_accuracy(training: TrainingContent) -> Chart:
    several = any(one.micro_f1 is not None for one in training.validations)
    name = "micro F1" if several else "accuracy"

    def share(of: Validation) -> float:
        return of.accuracy if of.micro_f1 is None else of.micro_f1

    figure, axes = canvas(xlabel="epochs", ylabel=f"validation {name}")
    points = [(one.epoch, share(one)) for one in training.validations]
    axes.plot(*np.transpose(points), "o-", color=_ACCENT, markersize=6)
    best = [one for one in training.validations if one.best][-1:]
    for one in best:
        axes.plot(one.epoch, share(one), "o", color=_SECOND, markersize=9)
        label = f"kept: {percent(share(one))}"
        axes.annotate(label, (one.epoch, share(one)), (0, 9), textcoords="offset points", ha="right")
    axes.margins(y=0.16)
    in_percent(axes.yaxis)
    return Chart(
        "validation-f1" if several else "validation-accuracy",
        f"Validation {name}",
        f"{'Micro F1' if several else 'Accuracy'} on rows held out of training; the kept state is marked.",
        ("epochs", name, "macro F1", "loss"),
        tuple(
            (f"{one.epoch:.2f}", percent(share(one)), percent(one.macro_f1), f"{one.loss:.4f}")
            for one in _thinned(training.validations)
        ),
        figure,
    )


def _learning_rate(training: TrainingContent) -> Chart:
    figure, axes = canvas(xlabel="epochs", ylabel="learning rate")
    points = [(point.epoch, point.learning_rate) for point in training.points]
    axes.plot(*np.transpose(points), color=_ACCENT)
    epoch, peak = max(points, key=lambda point: point[1])
    axes.annotate(f"{peak:.1e}", (epoch, peak), (4, 5), textcoords="offset points")
    axes.set_ylim(0, 1.12 * peak if peak else 1)
    axes.ticklabel_format(axis="y", style="plain")
    return Chart(
        "learning-rate",
        "Learning rate",
        "How far each step moved the weights: it warms up, then falls.",
        ("epochs", "learning rate"),
        tuple((f"{epoch:.2f}", f"{rate:.2e}") for epoch, rate in _thinned(points)),
        figure,
    )


def canvas(*, height: float = HEIGHT, xlabel: str = "", ylabel: str = "") -> tuple[Figure, Axes]:
    """An empty drawing with one pair of axes; while the drawing style is in force."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_title(ylabel, loc="left", color=_MUTED, fontsize=10.5)  # upright, above the axis it names
    return figure, axes


def in_percent(*sides: Axis) -> None:
    """Write the numbers of these sides, which are shares, in percent."""
    from matplotlib.ticker import MaxNLocator

    for side in sides:
        side.set_major_locator(MaxNLocator(5))
        side.set_major_formatter(lambda share, _position: f"{100 * share:.5g} %")


def dots(points: Sequence[tuple[float, tuple[float, float]]]) -> tuple[list[float], list[list[float]]]:
    """Middles, and the distances down and up to the ends of their intervals, as error bars want them."""
    middles = [middle for middle, _ in points]
    below = [middle - low for middle, (low, _) in points]
    above = [high - middle for middle, (_, high) in points]
    return middles, [below, above]


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Every so many points, the last among them: no more than a table beside a chart should have."""
    every = -(-len(points) // _NUMBERS)
    return points[::-1][::every][::-1]


def percent(share: float) -> str:
    """A share in percent, with two digits."""
    return f"{100 * share:.2f} %"


def interval_in_percent(interval: tuple[float, float]) -> str:
    """An interval of shares in percent, with one digit."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def short_name(name: str) -> str:
    """A class's name that leaves room for the drawing, in letters that any file may hold."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"
