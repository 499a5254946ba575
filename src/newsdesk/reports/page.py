"""The page of a report: one HTML file that needs nothing else and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from newsdesk import __version__
from newsdesk.data.examples import Examples
from newsdesk.data.words import isolated, language_tag
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.significance import APPROXIMATE_BELOW
from newsdesk.files import write_bytes, write_text
from newsdesk.metrics import Metrics, wilson_interval
from newsdesk.prediction.classifier import Classifier
from newsdesk.reports.content import EvaluationContent, LabelSuspects, Missing, QuotedRow, ReportContent
from newsdesk.reports.facts import RunFacts, confusions, duration
from newsdesk.reports.gather import Texts, gather
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
_NAMED_WORDS = 5


def render_page(content: ReportContent, charts: Sequence[Chart]) -> str:
    """The report as one HTML document.

    Whatever comes from data is escaped, and the page's own policy forbids scripts and every request, to the
    network or to other files. Raises UserError where Jinja2 is missing.
    """
    style = _resource("report.css")
    evaluation = content.evaluation if isinstance(content.evaluation, EvaluationContent) else None
    page = _environment().get_template("report.html")
    rendered = page.render(
        content=content,
        facts=content.facts,
        settings=settings(content.facts),
        ruler=None if evaluation is None else ruler(evaluation),
        evaluation=evaluation,
        metrics=None if evaluation is None else evaluation.metrics,
        charts={chart.name: chart for chart in charts},
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        version=__version__,
        fits_matrix=evaluation is not None and fits_matrix(evaluation.metrics),
    )
    return rendered.lstrip()  # the macros before the document leave their line ends


def settings(facts: RunFacts) -> list[tuple[str, str]]:
    """What of the recipe decides most, as (name, value)."""
    lora, training = facts.recipe.lora, facts.recipe.training
    epochs = facts.manifest.training.epochs if facts.manifest.training is not None else training.epochs
    return [
        ("adapters", f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}"),
        ("texts", f"cut at {facts.labels.max_length} tokens"),
        ("learning", f"{counted(epochs, 'epoch')}, batches of {training.batch_size}"),
        (
            "learning rate",
            f"{training.learning_rate:g}, {training.schedule} after a warm-up of {training.warmup:g}",
        ),
        ("seed", str(training.seed)),
    ]


@dataclass(frozen=True)
class Ruler:
    """A stretch of the scale of accuracy, its ends in percent, and what lies how far along it (0 to 100)."""

    start: int
    end: int
    low: float
    high: float
    accuracy: float
    baseline: float | None


def ruler(evaluation: EvaluationContent) -> Ruler:
    """Where accuracy, its interval and the baseline lie; the scale begins at the five percent below them."""
    metrics, baseline = evaluation.metrics, evaluation.baseline
    shares = [*metrics.accuracy_interval, metrics.accuracy, *([baseline.accuracy] if baseline else [])]
    start = max(0, floor(100 * min(shares) / 5 - 0.5) * 5)

    def along(share: float) -> float:
        return 100 * (100 * share - start) / (100 - start)

    low, high, accuracy = map(along, shares[:3])
    return Ruler(start, 100, low, high, accuracy, along(shares[3]) if baseline else None)


def fits_matrix(metrics: Metrics) -> bool:
    """Whether there is room for a confusion matrix with names and counts."""
    return len(metrics.label_names) <= LARGEST_LABELLED_MATRIX


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
        count=_count,
        duration=duration,
        signed=_signed,
        brief=_brief,
        isolated=isolated,
        bdi=_bdi,
        lang=_lang,
    )
    environment.tests["missing"] = lambda part: isinstance(part, Missing)
    environment.globals.update(
        drawing=_drawing,
        pieces=pieces,
        verdict=word_verdict,
        class_rows=class_rows,
        confusions=confusions,
        worst_pair=worst_pair,
        tint=tint,
        not_quoted_above=not_quoted_above,
        approximate_below=APPROXIMATE_BELOW,
    )
    return environment


@dataclass(frozen=True)
class ClassRow:
    """A class in the table: its figures, and the intervals of those that are shares of rows."""

    label: str
    precision: float
    precision_interval: tuple[float, float] | None
    recall: float
    recall_interval: tuple[float, float] | None
    f1: float
    support: int


def class_rows(metrics: Metrics) -> Iterator[ClassRow]:
    """Every class with 95 % Wilson intervals of precision and recall; None where there is no row."""
    given = [sum(column) for column in zip(*metrics.confusion, strict=True)]
    for number, entry in enumerate(metrics.per_class):
        right = metrics.confusion[number][number]
        yield ClassRow(
            entry.label,
            entry.precision,
            wilson_interval(right, given[number]) if given[number] else None,
            entry.recall,
            wilson_interval(right, entry.support) if entry.support else None,
            entry.f1,
            entry.support,
        )


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


@dataclass(frozen=True)
class Piece:
    """A stretch of a quoted text: plain, or a word that spoke for or against the predicted class.

    ``strength`` is 1 to 3, and 0 for plain text.
    """

    text: str
    side: Literal["plain", "for", "against"]
    strength: int


def pieces(row: QuotedRow) -> Iterator[Piece]:
    """A row's text, cut to 600 characters; words that weigh at least 15 % of the weightiest stand apart."""
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


def word_verdict(row: QuotedRow) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The five words that spoke most for the predicted class, and those most against it, with weights."""
    ranked = sorted(((word.text, word.weight) for word in row.words or ()), key=lambda word: -abs(word[1]))
    carried = [word for word in ranked if word[1] > 0][:_NAMED_WORDS]
    return carried, [word for word in ranked if word[1] < 0][:_NAMED_WORDS]


def not_quoted_above(suspects: LabelSuspects, errors: Sequence[QuotedRow]) -> list[QuotedRow]:
    """The likely label errors that do not stand among the most confident errors already."""
    above = {error.row for error in errors}
    return [suspect for suspect in suspects.rows if suspect.row not in above]


def _drawing(chart: Chart) -> Any:
    from markupsafe import Markup

    return Markup(for_page(as_svg(chart.figure), chart.name, chart.title, chart.description))


def _bdi(text: str) -> Any:
    """A name, word or label from the data, in an element that keeps its direction from what is around it."""
    from markupsafe import Markup

    return Markup("<bdi{}>{}</bdi>").format(_lang(text, otherwise="en"), text)


def _lang(text: str, otherwise: str | None = None) -> Any:
    """The attribute lang for a text from the data: by its script, else ``otherwise``; empty where unknown.

    The page itself is English: for text of that language there is no attribute.
    """
    from markupsafe import Markup

    tag = language_tag(text) or otherwise or ""
    return "" if tag == "en" else Markup(' lang="{}"').format(tag)


def _resource(name: str) -> str:
    return (files("newsdesk.reports") / "templates" / name).read_text(encoding="utf-8")


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _chance(probability: float) -> str:
    """A probability in percent; never the certainty that rounding would make of it."""
    if probability < 0.0005:
        return "under 0.1 %"
    return "over 99.9 %" if probability >= 0.9995 else _percent(probability, 1)


def _span(interval: tuple[float, float] | None, digits: int = 1) -> str:
    """An interval of shares, in percent; a dash where there is none."""
    return "–" if interval is None else f"{100 * interval[0]:.{digits}f}–{100 * interval[1]:.{digits}f}"


def _count(number: int) -> str:
    return f"{number:,}"


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


def _brief(sha256: str | None) -> str:
    return "unknown" if sha256 is None else sha256[:16]


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: the page.
        plots: the files of its charts, where they were asked for.
        content: what it tells.
    """

    path: Path
    plots: tuple[Path, ...]
    content: ReportContent

    @property
    def gaps(self) -> list[str]:
        """What the page has nothing to tell of, and what to run to fill it, a sentence each."""
        return [
            f"{part.reason}; to fill this: {part.command}" if part.command else part.reason
            for part in dict.fromkeys(self.content.missing)
        ]


def report_path(folder: Path, split: str) -> Path:
    """Where a run's report lies unless told otherwise: ``folder/report-<split>.html``."""
    return folder / f"report-{split}.html"


def texts_of(find: Callable[[], Examples], fingerprint: str, *, split: str, given: bool) -> Texts:
    """The texts of the rows that ``find`` reads, if they are those that were evaluated; else why not.

    ``given`` says whether someone named these rows: then what is wrong with them is a UserError.
    """
    fix = "name the evaluated rows with --data, or evaluate these under another --split"
    try:
        rows = find()
        if rows.fingerprint() == fingerprint:
            return rows.texts
        raise UserError(
            f"these are not the rows that the run was evaluated on as {split}",
            found=f"{counted(len(rows), 'row')} in {rows.source} with another sha256 than metrics.json's",
            fix=fix,
        )
    except UserError as error:
        if given:
            raise
        return Missing(f"the evaluated texts are not to be had: {error.wrong}")


def write_report(
    run: RunFolder,
    split: str,
    *,
    texts: Callable[[str, str], Texts],
    classifier: Callable[[], Classifier],
    out: Path,
    plots: Path | None,
    quote: bool,
) -> Report:
    """Gather, draw and write; arguments as for ``gather``. Each file is whole or not there.

    The run is sealed anew where the report lies in it. Raises UserError when files of the run are damaged,
    matplotlib or Jinja2 is missing, or a file is in the way that no report wrote.
    """
    content = gather(run, split, texts=texts, classifier=classifier, quote=quote)
    charts = draw_charts(content)
    drawn = {} if plots is None else {plots / name: data for name, data in _files(charts)}
    for path in (out, *drawn):
        if path.exists() and not (is_report(path) if path == out else is_drawing(path)):
            raise UserError(
                f"{path} is there already, and newsdesk report did not write it",
                fix=f"give {'--out' if path == out else '--plots'} another name, or move the file elsewhere",
            )
    write_text(out, render_page(content, charts))
    for path, data in drawn.items():
        write_bytes(path, data)
    if out.resolve().is_relative_to(run.path.resolve()):
        run.reseal()
    return Report(out, tuple(drawn), content)


def _files(charts: Sequence[Chart]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files that charts are kept in."""
    for chart in charts:
        yield f"{chart.name}.svg", as_svg(chart.figure)
        yield f"{chart.name}.png", as_png(chart.figure)
