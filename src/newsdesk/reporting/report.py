"""The report of a run as files: one page, and its charts as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from newsdesk.data.examples import Examples
from newsdesk.errors import UserError, counted
from newsdesk.files import write_bytes, write_text
from newsdesk.inference.text_classifier import TextClassifier
from newsdesk.reporting.content import Missing, ReportContent
from newsdesk.reporting.gather import Texts, gather
from newsdesk.reporting.page import render_page
from newsdesk.reporting.plots import Chart, draw_charts
from newsdesk.reporting.svg import as_png, as_svg, is_drawing
from newsdesk.training.run_folder import RunFolder, is_report


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
    classifier: Callable[[], TextClassifier],
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
