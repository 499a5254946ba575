"""The verb that puts a classifier to work: predict."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from newsdesk.cli.ray import predict_with_ray, ray_flags, refuse_ray_flags
from newsdesk.cli.shared import (
    JSON_FLAG,
    Verb,
    data_flags,
    flag,
    note_promise,
    note_reading,
    promise_flags,
    say,
    shown_progress,
    standard_output,
    terminal,
)
from newsdesk.data.words import isolated

if TYPE_CHECKING:
    from newsdesk.data.table import RowStream, Table
    from newsdesk.prediction.abstention import DecisionRule
    from newsdesk.prediction.classifier import Classifier
    from newsdesk.prediction.predictions import Prediction, Predictions

FORMATS = ("csv", "tsv", "jsonl", "parquet", "submission")
_COMMAND_LINE = Path("the command line")
ENGINES = ("auto", "onnx", "torch", "ray")


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
@flag(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="What computes a run: its ONNX export where it has one, or torch; ray: the export, on a cluster.",
)
@flag("--rejects", help="The file for rows that cannot be classified; default: beside the output.")
@flag("--strict", is_flag=True, help="Stop at the first row that cannot be classified.")
@flag("--answer-empty", is_flag=True, help="Label empty texts, and texts without a known token, too.")
@promise_flags
@ray_flags
@data_flags("text", "template", "dialect")
@JSON_FLAG
def predict(
    run: Path,
    texts: tuple[str, ...],
    source: str | None,
    output: str | None,
    form: Any,
    top_k: int,
    probabilities: bool,
    engine: Any,
    rejects: str | None,
    strict: bool,
    answer_empty: bool,
    as_json: bool,
    columns: Mapping[str, Any],
    promise: Mapping[str, Any],
    **ray: Any,
) -> None:
    """Classify texts given as arguments, on standard input, or in a file of any size.

    RUN is a run or an export of one. A file is read and written in pieces: the same command goes on
    where it was killed, and rows that cannot be classified are set aside with the reason.
    """
    if as_json and (output or form):
        raise click.UsageError("--json goes to standard output: give it, or --output and --format.")
    if texts and source:
        raise click.UsageError("Give texts or --input, not both.")
    layout = {"top_k": top_k, "all_probabilities": probabilities, "format": form, **columns}
    layout |= {"answer_empty": answer_empty}
    if engine == "ray":
        settings = {"one_machine_only": bool(texts or as_json or rejects), "strict": strict, **layout}
        predict_with_ray(run, source, output, promise=promise, **ray, **settings)
        return
    refuse_ray_flags(ray)
    target = _path_of(output)
    if target is not None:
        _check_output(target, _path_of(source), form)
    if not as_json and (not texts or output or form):
        given = _rows_of(texts) if texts else _path_of(source) or _piped()
        place = Path(rejects) if rejects else None
        _stream(_load(run, engine), given, target, place, {"strict": strict, **layout}, promise)
        return
    table = _table_in_memory(texts, _path_of(source), columns)
    predictor = _load(run, engine)
    rule = predictor.decision_rule(**promise, answer_empty=answer_empty)
    predictions = _classified(predictor, table, columns, rule, answer_empty=answer_empty)
    if as_json:
        say(_document(predictions, None if probabilities else top_k, predictor.max_length))
    else:
        say(render_predictions(texts, predictions, len(predictor.label_names) if probabilities else top_k))
        note_reading(predictions.truncation, predictor.max_length, int(predictions.silent.sum()))
        note_promise(rule, int((~predictions.answered).sum()), len(predictions))


def _load(run: Path, engine: Any) -> Classifier:
    from newsdesk.prediction.open_model import open_model

    with shown_progress() as progress:
        predictor = open_model(run, engine=engine, progress=progress)
    if predictor.path != run:
        click.echo(f"predicting with {predictor.path}; --engine torch computes the run itself", err=True)
    return predictor


def _classified(
    predictor: Classifier,
    table: Table,
    columns: Mapping[str, Any],
    rule: DecisionRule | None,
    *,
    answer_empty: bool,
) -> Predictions:
    from newsdesk import api

    layout = {"text": columns["text"], "template": columns["template"]}
    return api.predict_table(predictor, table, **layout, rule=rule, answer_empty=answer_empty)


def _document(predictions: Predictions, top_k: int | None, max_length: int | None) -> dict[str, Any]:
    """What --json prints: predictions, how much of the texts was read, and the rule of what was promised."""
    from dataclasses import asdict

    content: dict[str, Any] = {"predictions": predictions.to_dicts(top_k)}
    if predictions.truncation is not None:
        content["truncation"] = {**predictions.truncation.to_dict(), "max_length": max_length}
    return content if predictions.rule is None else content | {"rule": asdict(predictions.rule)}


def _stream(
    predictor: Classifier,
    source: Path | BinaryIO | RowStream,
    target: Path | None,
    rejects: Path | None,
    settings: Mapping[str, Any],
    promise: Mapping[str, Any],
) -> None:
    """Classify a file or pipe of any size, and say what became of its rows."""
    from newsdesk.cli.display import BulkDisplay
    from newsdesk.prediction.bulk import predict_file

    shown_rejects = rejects is None and target is None
    with standard_output() as stream, BulkDisplay(terminal(), names_rejects=shown_rejects) as display:
        done = predict_file(
            predictor,
            source,
            target or stream,
            **settings,
            **promise,
            rejects=rejects,
            observe=display.show,
        )
        display.finish(done, target, rejects)
    note_reading(done.truncation, predictor.max_length, done.unreadable)
    rule = predictor.decision_rule(**promise, answer_empty=settings["answer_empty"])
    note_promise(rule, done.unanswered, done.rows_written)


def _path_of(name: str | None) -> Path | None:
    """The file that a flag names; None for - and for none."""
    return None if name in (None, "-") else Path(str(name))


def _check_output(target: Path, source: Path | None, form: Any) -> None:
    from newsdesk.prediction.output_table import check_destination

    check_destination(target, source=source, format=form)


def _table_in_memory(texts: tuple[str, ...], source: Path | None, columns: Mapping[str, Any]) -> Table:
    """The texts given, or all rows of the file or pipe."""
    from newsdesk.data.stream import read_stream, read_table
    from newsdesk.data.table import Table

    if texts:
        lines = tuple(range(1, len(texts) + 1))
        rows = tuple((text,) for text in texts)
        return Table(_COMMAND_LINE, ("text",), rows, lines, has_header=False)
    dialect = columns["dialect"].asking(columns["text"], template=columns["template"])
    return read_table(source, dialect) if source else read_stream(_piped(), "txt", dialect)


def _rows_of(texts: Sequence[str]) -> RowStream:
    from newsdesk.data.table import Row, RowStream, Table

    head = Table(_COMMAND_LINE, ("text",), (), (), has_header=False)
    return RowStream(head, (Row(number, (text,)) for number, text in enumerate(texts, 1)))


def _piped() -> BinaryIO:
    if sys.stdin.isatty():
        raise click.UsageError("Nothing to classify: give texts, --input FILE, or pipe one text a line.")
    return sys.stdin.buffer


def render_predictions(texts: Sequence[str], predictions: Predictions, top_k: int) -> list[str]:
    """A line a text: its most probable classes with their probabilities, then the text.

    What is not answered begins with a question mark and names the classes in question.
    """
    from rich.cells import cell_len

    cells = [_shown(prediction, top_k) for prediction in predictions]
    width = max(map(cell_len, cells))
    padded = (cell + " " * (width - cell_len(cell)) for cell in cells)
    return [f"{cell}  {isolated(text)}" for cell, text in zip(padded, texts, strict=True)]


def _shown(prediction: Prediction, top_k: int) -> str:
    if prediction.label is None:
        in_question = _with_probability(prediction, prediction.candidates or ())
        return f"? {' or '.join(in_question) or prediction.reason}"
    ranked = ", ".join(_with_probability(prediction, [label for label, _ in prediction.top_k(top_k)]))
    if not prediction.candidates:
        return ranked
    return f"{ranked} of {{{', '.join(map(isolated, prediction.candidates))}}}"


def _with_probability(prediction: Prediction, labels: Sequence[str]) -> list[str]:
    return [f"{isolated(label)} {prediction.probabilities[label]:.1%}" for label in labels]
