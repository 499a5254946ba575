"""The page of a report: one HTML file that needs nothing else and makes no network request."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from newsdesk import __version__
from newsdesk.data.words import isolated, language_tag
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.significance import APPROXIMATE_BELOW
from newsdesk.files import write_bytes, write_text
from newsdesk.metrics import ClassMetrics, Metrics, wilson_interval
from newsdesk.prediction.classifier import Classifier
from newsdesk.reports.content import QuotedRow, ReportContent, gather
from newsdesk.reports.facts import Source, confusions, dataset_licence, duration
from newsdesk.reports.label_set_charts import draw_label_sets
from newsdesk.reports.label_sets import LabelSetContent, QuotedSet
from newsdesk.reports.parts import Missing, Texts
from newsdesk.reports.plots import (
    LARGEST_LABELLED_MATRIX,
    Chart,
    as_png,
    as_svg,
    draw_charts,
    for_page,
    is_drawing,
    tint,
)
from newsdesk.runs.folder import RunFolder, is_report

if TYPE_CHECKING:
    from jinja2 import Environment

EXCERPT = 600
"""Characters of a text that are quoted, at most."""
_SHOWN_FROM = 0.15  # of the weightiest word's weight: below, a word decided nothing worth a mark


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: the page.
        plots: the files of its charts, where they were asked for.
        content: what it says.
    """

    path: Path
    plots: tuple[Path, ...]
    content: ReportContent

    @property
    def gaps(self) -> list[str]:
        """What the page has no content for, and what to run to fill it, a sentence each."""
        return [
            f"{part.reason}; to fill this: {part.command}" if part.command else part.reason
            for part in dict.fromkeys(self.content.missing)
        ]


def report_path(folder: Path, split: str) -> Path:
    """Where a run's report is saved unless told otherwise: ``folder/report-<split>.html``."""
    return folder / f"report-{split}.html"


def write_report(
    run: RunFolder,
    split: str,
    *,
    texts: Texts,
    classifier: Callable[[], Classifier],
    out: Path,
    plots: Path | None,
    quote: bool,
) -> Report:
    """Gather, draw and write; arguments as for ``gather``. Each file is complete or absent.

    The run is sealed again where the report is inside it. Raises UserError when files of the run are damaged,
    matplotlib is missing, or a file is in the way that no report wrote.
    """
    content = gather(run, split, texts=texts, classifier=classifier, quote=quote)
    of = content.evaluation
    charts = draw_label_sets(content, of) if isinstance(of, LabelSetContent) else draw_charts(content)
    drawn: dict[Path, bytes] = {}
    if plots is not None:
        drawn |= {plots / f"{chart.name}.svg": as_svg(chart.figure) for chart in charts}
        drawn |= {plots / f"{chart.name}.png": as_png(chart.figure) for chart in charts}
    for path in (out, *drawn):
        if path.exists() and not (is_report(path) if path == out else is_drawing(path)):
            raise UserError(
                f"{path} already exists, and newsdesk report did not write it",
                fix=f"give {'--out' if path == out else '--plots'} another name, or move the file elsewhere",
            )
    write_text(out, render_page(content, charts))
    for path, data in drawn.items():
        write_bytes(path, data)
    if out.resolve().is_relative_to(run.path.resolve()):
        run.reseal()
    return Report(out, tuple(drawn), content)


def render_page(content: ReportContent, charts: Sequence[Chart]) -> str:
    """The report as one HTML document.

    Everything from the data is escaped, and the page's own policy forbids scripts and every request, to the
    network or to other files.
    """
    evaluation = None if isinstance(content.evaluation, Missing) else content.evaluation
    return rendered(
        "label_sets.html" if content.facts.labels.task == "multi" else "report.html",
        content=content,
        facts=content.facts,
        evaluation=evaluation,
        measured=evaluation.measured if evaluation else None,
        metrics=evaluation.measured.metrics if evaluation else None,
        charts={chart.name: chart for chart in charts},
    )


def rendered(template: str, **content: Any) -> str:
    """A page by one of the templates, in the style that all pages share, as one HTML document."""
    style = (files("newsdesk.reports") / "templates" / "report.css").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template(template)
        .render(
            **content,
            style=style,
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            version=__version__,
        )
    )
    return page.lstrip()  # the macros before the document leave their line ends


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("newsdesk.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent,
        chance=_chance,
        span=_span,
        count="{:,}".format,
        counted=counted,
        duration=duration,
        signed=lambda number: f"{number:+.2f}".replace("-", "−"),
        isolated=isolated,
        bdi=_bdi,
        lang=_lang,
        source=Source.of,
    )
    environment.tests["missing"] = lambda part: isinstance(part, Missing)
    environment.globals.update(
        drawing=_drawing,
        pieces=pieces,
        ruler=ruler,
        class_rows=class_rows,
        confusions=confusions,
        worst_pair=worst_pair,
        dataset_licence=dataset_licence,
        tint=tint,
        approximate_below=APPROXIMATE_BELOW,
        most_in_matrix=LARGEST_LABELLED_MATRIX,
    )
    return environment


Interval = tuple[float, float]


class Ruler(NamedTuple):
    """Part of the scale of a share, such as accuracy: its ends in percent, and places along it, 0 to 100."""

    start: int
    end: int
    low: float
    high: float
    share: float
    baseline: float | None


def ruler(share: float, interval: Interval, baseline: float | None) -> Ruler:
    """Where a share, its interval and the baseline are; the scale starts at the five percent below them."""
    shares = [*interval, share, *([] if baseline is None else [baseline])]
    start = max(0, floor(100 * min(shares) / 5 - 0.5) * 5)
    low, high, middle, *others = (100 * (100 * each - start) / (100 - start) for each in shares)
    return Ruler(start, 100, low, high, middle, others[0] if others else None)


def class_rows(metrics: Metrics) -> Iterator[tuple[ClassMetrics, Interval | None, Interval | None]]:
    """Every class with the 95 % Wilson intervals of its precision and recall; None where there is no row."""
    given = [sum(column) for column in zip(*metrics.confusion, strict=True)]
    for number, entry in enumerate(metrics.per_class):
        right = metrics.confusion[number][number]
        precision = wilson_interval(right, given[number]) if given[number] else None
        yield entry, precision, wilson_interval(right, entry.support) if entry.support else None


def worst_pair(metrics: Metrics) -> tuple[str, str, float] | None:
    """The two classes most often taken for each other, and their share of all errors; None without errors."""
    errors = metrics.rows - metrics.correct
    sums = {
        (first, second): metrics.confusion[first][second] + metrics.confusion[second][first]
        for second in range(len(metrics.label_names))
        for first in range(second)
    }
    if not errors:
        return None
    (first, second), rows = max(sums.items(), key=lambda item: item[1])
    return metrics.label_names[first], metrics.label_names[second], rows / errors


class Piece(NamedTuple):
    """Part of a quoted text: plain, or a word that spoke for or against the predicted class.

    ``strength`` is 1 to 3, and 0 for plain text.
    """

    text: str
    side: Literal["plain", "for", "against"]
    strength: int


def pieces(row: QuotedRow | QuotedSet) -> Iterator[Piece]:
    """A row's text, cut to 600 characters; words that weigh at least 15 % of the weightiest are marked."""
    text = row.text or ""
    heaviest = max((abs(word.weight) for word in row.words or ()), default=0.0)
    position = 0
    for word in row.words or ():
        if word.end > EXCERPT or abs(word.weight) < _SHOWN_FROM * heaviest or not heaviest:
            continue
        yield Piece(text[position : word.start], "plain", 0)
        strength = min(3, 1 + int(3 * abs(word.weight) / heaviest))
        yield Piece(word.text, "for" if word.weight > 0 else "against", strength)
        position = word.end
    yield Piece(text[position:EXCERPT] + ("…" if len(text) > EXCERPT else ""), "plain", 0)


def _drawing(chart: Chart) -> Any:
    from markupsafe import Markup

    return Markup(for_page(as_svg(chart.figure), chart.name, chart.title, chart.description))


def _bdi(text: str) -> Any:
    """A name, word or label from the data, in an element that isolates its direction."""
    from markupsafe import Markup

    return Markup("<bdi{}>{}</bdi>").format(_lang(text, otherwise="en"), text)


def _lang(text: str, otherwise: str | None = None) -> Any:
    """The attribute lang for a text from the data: by its script, else ``otherwise``; empty where unknown.

    The page itself is English: for text of that language there is no attribute.
    """
    from markupsafe import Markup

    tag = language_tag(text) or otherwise or ""
    return "" if tag == "en" else Markup(' lang="{}"').format(tag)


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _chance(probability: float) -> str:
    """A probability in percent; never rounded to certainty."""
    if probability < 0.0005:
        return "under 0.1 %"
    return "over 99.9 %" if probability >= 0.9995 else _percent(probability, 1)


def _span(interval: Interval | None, digits: int = 1) -> str:
    """An interval of shares, in percent; a dash where there is none."""
    return "–" if interval is None else f"{100 * interval[0]:.{digits}f}–{100 * interval[1]:.{digits}f}"
