"""The verb that puts a classifier to work: predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    Verb,
    data_flags,
    flag,
    names_of,
    say,
    shown_fetching,
    standard_output,
    terminal,
)

if TYPE_CHECKING:
    from newsdesk.data.table import Table

FORMATS = ("csv", "tsv", "jsonl", "parquet", "submission")


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, metavar="[TEXT ...]")
@flag(
    "--input", "source", help="A file of rows, or - for one text a line on standard input.", metavar="FILE|-"
)
@flag("--output", help="The file to write, or - for standard output.", metavar="FILE|-")
@flag("--format", "form", type=click.Choice(FORMATS), help="Output format; default: by the file's ending.")
@flag("--top-k", type=click.IntRange(min=1), default=1, show_default=True, help="How many classes to name.")
@flag("--probabilities", is_flag=True, help="Write every class's probability.")
@data_flags("text", "template", "header")
@JSON_FLAG
def predict(
    run: Path,
    texts: tuple[str, ...],
    source: str | None,
    output: str | None,
    form: Any,
    top_k: int,
    probabilities: bool,
    text: str | None,
    template: str | None,
    header: bool | None,
    as_json: bool,
) -> None:
    """Classify texts given as arguments, on standard input, or in a file."""
    from newsdesk import api
    from newsdesk.display import RowCounter, render_predictions
    from newsdesk.inference.writers import check_destination, write_predictions

    if as_json and (output or form):
        raise click.UsageError("--json goes to standard output: give it, or --output and --format.")
    source_path = Path(source) if source not in (None, "-") else None
    target = Path(output) if output not in (None, "-") else None
    if target is not None:
        check_destination(target, source=source_path, format=form)
    table = _table_to_classify(texts, source, header)
    console = terminal()
    with shown_fetching(console) as progress, RowCounter(console, "classifying") as rows:
        predictor = api.load(run, progress=progress)
        rows.start(len(table))
        predictions = api.predict_table(
            predictor, table, text=names_of(text), template=template, count=rows.count
        )
    if as_json:
        say({"predictions": predictions.to_dicts(None if probabilities else top_k)})
    elif texts and output is None and form is None:
        say(render_predictions(texts, predictions, len(predictor.label_names) if probabilities else top_k))
    else:
        with standard_output() as output_stream:
            write_predictions(
                table.rows,
                table.columns,
                predictions,
                target or output_stream,
                format=form,
                top_k=top_k,
                all_probabilities=probabilities,
                source=source_path,
            )


def _table_to_classify(texts: tuple[str, ...], source: str | None, header: bool | None) -> Table:
    """The rows that ``predict`` was asked about, wherever they come from."""
    from newsdesk.data.readers import read_stream, read_table
    from newsdesk.data.table import Table

    if texts and source:
        raise click.UsageError("Give texts or --input, not both.")
    if texts:
        lines = tuple(range(1, len(texts) + 1))
        return Table(
            Path("the command line"), ("text",), tuple((text,) for text in texts), lines, has_header=False
        )
    if source not in (None, "-"):
        return read_table(Path(str(source)), header=header)
    if sys.stdin.isatty():
        raise click.UsageError("Nothing to classify: give texts, --input FILE, or pipe one text a line.")
    return read_stream(sys.stdin.buffer, "txt")
