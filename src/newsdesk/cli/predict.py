"""The verbs that put a classifier to work: predict and explain."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    RUN,
    compute_small_products_alone,
    flag,
    note,
    promise_flags,
    reading_flags,
    say,
    shown_progress,
    standard_output,
    terminal,
    verb,
    watch_flags,
)
from newsdesk.data.words import isolated
from newsdesk.errors import counted

if TYPE_CHECKING:
    from rich.text import Text

    from newsdesk.data.table import RowStream, Table
    from newsdesk.model.tokenizer import Truncation
    from newsdesk.prediction.abstention import DecisionRule
    from newsdesk.prediction.classifier import Classifier
    from newsdesk.prediction.explanation import Explanation
    from newsdesk.prediction.predictions import Prediction, Predictions

FORMATS = ("csv", "tsv", "jsonl", "parquet", "ninjs", "submission")
_COMMAND_LINE = Path("the command line")
ENGINES = ("auto", "onnx", "torch", "cascade", "ray")
_FAINTEST = 0.15  # of the strongest weight: weaker words are not coloured


@verb()
@RUN
@click.argument("texts", nargs=-1, metavar="[TEXT ...]")
@flag(
    "--input", "source", help="A file of rows, or - for one text a line on standard input.", metavar="FILE|-"
)
@flag("--output", help="The file to write, or - for standard output.", metavar="FILE|-")
@watch_flags
@flag("--format", type=click.Choice(FORMATS), help="Output format; default: by the file's ending.")
@flag("--top-k", type=click.IntRange(min=1), default=1, show_default=True, help="How many classes to name.")
@flag("--probabilities", "all_probabilities", is_flag=True, help="Write every class's probability.")
@flag(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="What computes a run: its ONNX export where it has one, or torch; cascade: its linear model where "
    "that is sure; ray: the export, on a cluster.",
)
@flag(
    "--loss",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="With --engine cascade: how many more texts may be wrong than without, or how much micro F1 may be "
    "lost; default: 0.002.",
)
@flag(
    "--estimated",
    is_flag=True,
    help="With --engine cascade: keep to --loss as the calibration rows estimate it, without a promise.",
)
@flag(
    "--indicators",
    is_flag=True,
    help="Where a text may have several labels: a column of 0 and 1 for each, not a list of labels.",
)
@flag("--rejects", help="The file for rows that cannot be classified; default: beside the output.")
@flag("--strict", is_flag=True, help="Stop at the first row that cannot be classified.")
@flag("--answer-empty", is_flag=True, help="Label empty texts, and texts without a known token, too.")
@promise_flags
@flag(
    "--ray-address",
    "address",
    help="With --engine ray: the cluster; default: RAY_ADDRESS, else this machine.",
    metavar="HOST:PORT|ray://...",
)
@flag(
    "--ray-workers",
    "workers",
    type=click.IntRange(min=1),
    help="With --engine ray: how many; default: as many as the cluster has free cores for.",
)
@flag(
    "--ray-cores", "cores", type=click.IntRange(min=1), help="With --engine ray: of each worker; default: 1."
)
@reading_flags("text", "template", "dialect")
@JSON_FLAG
def predict(
    run: Path,
    texts: tuple[str, ...],
    source: str | None,
    output: str | None,
    engine: Any,
    rejects: str | None,
    loss: float | None,
    estimated: bool,
    as_json: bool,
    promise: Mapping[str, Any],
    watching: Mapping[str, Any],
    **settings: Any,
) -> None:
    """Classify texts given as arguments, on standard input, in a file of any size, or in a watched folder.

    RUN is a run, an export of one, or a classifier of newsdesk models list. A file is read and written in
    pieces: the same command resumes where it was killed, and rows that cannot be classified are set aside.
    """
    compute_small_products_alone()
    form, cluster = settings["format"], {name: settings.pop(name) for name in ("address", "workers", "cores")}
    if as_json and (output or form):
        raise click.UsageError("--json writes to standard output: give it, or --output and --format.")
    if texts and source:
        raise click.UsageError("Give texts or --input, not both.")
    if engine != "cascade" and (loss is not None or estimated):
        raise click.UsageError("--loss and --estimated need --engine cascade.")
    if engine == "ray":
        _refuse_for_ray(texts or as_json or rejects, source, output)
        cluster["cores"] = cluster["cores"] or 1
        _predict_on_ray(run, str(source), str(output), settings, promise, **cluster)
        return
    if wrong := [f"--ray-{name}" for name, value in cluster.items() if value is not None]:
        raise click.UsageError(f"{wrong[0]} needs --engine ray.")
    halves = bool({"abstain", "sets"} & promise.keys())
    opened = partial(_opened, run, engine, loss, estimated=estimated, halves=halves)
    if watching:
        _watch(opened, Path(str(output)), settings, promise, **watching)
        return
    given, target = _path_of(source), _path_of(output)
    if target is not None:
        from newsdesk.prediction.output_table import check_destination

        check_destination(target, source=given, format=form)
    if settings["indicators"] and (as_json or (texts and not (output or form))):
        raise click.UsageError("--indicators is for a file: give --output or --format.")
    if as_json or (texts and not (output or form)):
        _predict_in_memory(opened, texts, given, settings, promise, as_json=as_json)
    else:
        rows, place = _rows_of(texts) if texts else given or _piped(), Path(rejects) if rejects else None
        _predict_stream(opened(), rows, target, place, settings, promise)


def _opened(run: Path, engine: Any, loss: float | None, **how: bool) -> Classifier:
    from newsdesk.prediction.open_model import open_model
    from newsdesk.runs.ready_made import located

    with shown_progress() as progress:
        if engine == "cascade":
            from newsdesk.prediction.cascade import LOSS, open_cascade

            return open_cascade(run, loss=loss or LOSS, progress=progress, **how)
        classifier = open_model(run, engine=engine, progress=progress)
    if classifier.path != located(run):
        click.echo(f"predicting with {classifier.path}; --engine torch computes the run itself", err=True)
    return classifier


def _path_of(name: str | None) -> Path | None:
    """The file that a flag names; None for - and for none."""
    return None if name in (None, "-") else Path(str(name))


def _piped() -> BinaryIO:
    if sys.stdin.isatty():
        raise click.UsageError("Nothing to classify: give texts, --input FILE, or pipe one text a line.")
    return sys.stdin.buffer


def _predict_in_memory(
    opened: Callable[[], Classifier],
    texts: tuple[str, ...],
    source: Path | None,
    settings: Mapping[str, Any],
    promise: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Classify the texts given, or for --json all rows of the file or pipe, and print the predictions."""
    from newsdesk import api

    layout = {name: settings[name] for name in ("text", "template", "answer_empty")}
    table = _table_in_memory(texts, source, settings)
    classifier = opened()
    rule = classifier.decision_rule(**promise, answer_empty=settings["answer_empty"])
    predictions = api.predict_table(classifier, table, rule=rule, **layout)
    top_k, every = settings["top_k"], settings["all_probabilities"]
    if as_json:
        say(_document(predictions, None if every else top_k, classifier))
        return
    say(render_predictions(texts, predictions, len(classifier.label_names) if every else top_k))
    _note_reading(predictions.truncation, classifier.max_length, int(predictions.is_unreadable.sum()))
    _note_promise(rule, int((~predictions.answered).sum()), len(predictions))
    for line in classifier.describe():
        note(line)


def _table_in_memory(texts: tuple[str, ...], source: Path | None, settings: Mapping[str, Any]) -> Table:
    if texts:
        from newsdesk.data.table import Table

        rows = tuple((text,) for text in texts)
        lines = tuple(range(1, len(texts) + 1))
        return Table(_COMMAND_LINE, ("text",), rows, lines, has_header=False)
    from newsdesk.data.stream import read_stream, read_table  # one text must not wait for these

    dialect = settings["dialect"].asking(settings["text"], template=settings["template"])
    return read_table(source, dialect) if source else read_stream(_piped(), "txt", dialect)


def _rows_of(texts: Sequence[str]) -> RowStream:
    from newsdesk.data.table import Row, RowStream, Table

    head = Table(_COMMAND_LINE, ("text",), (), (), has_header=False)
    return RowStream(head, (Row(number, (text,)) for number, text in enumerate(texts, 1)))


def _document(predictions: Predictions, top_k: int | None, classifier: Classifier) -> dict[str, Any]:
    """What --json prints: predictions, how much of the texts was read, and the rules behind promises.

    ``top_k`` says how many classes are named; None: the probabilities of all.
    """
    content: dict[str, Any] = {"predictions": predictions.to_dicts(top_k)}
    if predictions.truncation is not None:
        content["truncation"] = {**predictions.truncation.to_dict(), "max_length": classifier.max_length}
    if notes := classifier.describe():
        content["notes"] = notes
    return content if predictions.rule is None else content | {"rule": asdict(predictions.rule)}


def _predict_stream(
    classifier: Classifier,
    source: Path | BinaryIO | RowStream,
    target: Path | None,
    rejects: Path | None,
    settings: Mapping[str, Any],
    promise: Mapping[str, Any],
) -> None:
    """Classify a file or pipe of any size, and say what became of its rows."""
    from newsdesk.cli.display import BulkDisplay
    from newsdesk.prediction.bulk import predict_file

    names_rejects = rejects is None and target is None
    with standard_output() as stream, BulkDisplay(terminal(), names_rejects=names_rejects) as display:
        done = predict_file(
            classifier,
            source,
            target or stream,
            **settings,
            **promise,
            rejects=rejects,
            observe=display.show,
        )
        display.finish(done, target, rejects)
    _note_reading(done.truncation, classifier.max_length, done.unreadable)
    rule = classifier.decision_rule(**promise, answer_empty=settings["answer_empty"])
    _note_promise(rule, done.unanswered, done.rows_written)
    for line in classifier.describe():
        note(line)


def _watch(
    opened: Callable[[], Classifier],
    output: Path,
    settings: Mapping[str, Any],
    promise: Mapping[str, Any],
    **watching: Any,
) -> None:
    """Classify what is dropped into a folder until a signal comes, and say what became of it."""
    from newsdesk.cli.display import WatchDisplay
    from newsdesk.prediction.watched_folder import require_apart, watch_folder

    require_apart(watching["folder"], output)
    classifier = opened()
    rule = classifier.decision_rule(**promise, answer_empty=settings["answer_empty"])
    for line in (*(rule.describe() if rule is not None else ()), *classifier.describe()):
        note(line)
    with WatchDisplay(terminal()) as display:
        observe = display.show_watch
        done = watch_folder(classifier, output=output, observe=observe, **watching, **settings, **promise)
    failed = f", {done.failed:,} failed" if done.failed else ""
    unsettled = f", {done.unsettled:,} still being written" if done.unsettled else ""
    note(f"{counted(done.files, 'file')}, {counted(done.rows_read, 'row')}{failed}{unsettled}")
    _note_reading(done.truncation, classifier.max_length, done.unreadable)
    if watching.get("once") and (done.stopped or done.failed):
        raise click.exceptions.Exit(130 if done.stopped else 1)


def _refuse_for_ray(others: object, source: str | None, output: str | None) -> None:
    if others or source in (None, "-") or output in (None, "-"):
        raise click.UsageError(
            "--engine ray takes --input FILE|FOLDER|URI and --output FOLDER|URI; texts, pipes, --json "
            "and --rejects are for one machine (bad rows go to _rejects in the output folder)."
        )


def _predict_on_ray(
    run: Path,
    source: str,
    output: str,
    settings: Mapping[str, Any],
    promise: Mapping[str, Any],
    **cluster: Any,
) -> None:
    """Classify files on a Ray cluster, and say what became of them."""
    from newsdesk.cli.display import RayDisplay
    from newsdesk.prediction.open_model import open_model
    from newsdesk.prediction.ray_bulk import predict_on_ray

    display = RayDisplay(terminal())
    classifier = open_model(run, engine="onnx")
    totals = predict_on_ray(
        classifier, source, output, observe=display.show, **cluster, **settings, **promise
    )
    rejected = f"; {totals.rejected:,} rejected, see {output}/_rejects" if totals.rejected else ""
    note(f"{counted(totals.shards, 'file')}, {counted(totals.rows_read, 'row')}{rejected}")
    _note_reading(totals.truncation, classifier.max_length, totals.unreadable)
    if promise:
        rule = classifier.decision_rule(**promise, answer_empty=settings["answer_empty"])
        _note_promise(rule, totals.unanswered, totals.rows_written)


def _note_reading(read: Truncation | None, max_length: int | None, unreadable: int) -> None:
    """Say how many texts were cut, and how many had nothing in them; nothing if all were read whole."""
    if unreadable:
        texts = "text has" if unreadable == 1 else "texts have"
        why = "empty, or without a known token; --answer-empty labels such texts too"
        note(f"{unreadable:,} {texts} no label: {why}")
    if read is not None and read.cut and max_length is not None:
        note(read.describe(max_length))


def _note_promise(rule: DecisionRule | None, unanswered: int, rows: int) -> None:
    """Say how many rows were left unanswered, and what is promised for the others; nothing without a rule."""
    if rule is not None and rule.promise is not None:
        note(f"{unanswered:,} of {rows:,} left unanswered")
    for line in rule.describe() if rule is not None else ():
        note(line)


def render_predictions(texts: Sequence[str], predictions: Predictions, top_k: int) -> list[str]:
    """A line a text: its most probable classes with their probabilities, then the text.

    An unanswered one begins with a question mark and names the classes in question.
    """
    cells = [_shown(prediction, top_k) for prediction in predictions]
    widths = list(map(_width, cells))
    padded = (cell + " " * (max(widths) - width) for cell, width in zip(cells, widths, strict=True))
    return [f"{cell}  {isolated(text)}" for cell, text in zip(padded, texts, strict=True)]


def _width(text: str) -> int:
    """How many cells of a terminal a text takes; rich, slow to import, is asked where letters may be wide."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _shown(prediction: Prediction, top_k: int) -> str:
    def with_probability(labels: Sequence[str]) -> list[str]:
        return [f"{isolated(label)} {prediction.probabilities[label]:.1%}" for label in labels]

    if prediction.labels is not None:
        unsure = with_probability(prediction.unsure or ())
        shown = ", ".join(with_probability(prediction.labels)) or ("" if unsure else "no label")
        shown += f"{'; ' if shown else ''}unsure: {', '.join(unsure)}" if unsure else ""
        likeliest = with_probability([label for label, _ in prediction.top_k(top_k)])
        return shown if top_k == 1 else f"{shown} of {', '.join(likeliest)}"
    if prediction.label is None:
        return f"? {' or '.join(with_probability(prediction.candidates or ())) or prediction.reason}"
    ranked = ", ".join(with_probability([label for label, _ in prediction.top_k(top_k)]))
    if not prediction.candidates:
        return ranked
    return f"{ranked} of {{{', '.join(map(isolated, prediction.candidates))}}}"


@verb()
@RUN
@click.argument("texts", nargs=-1, required=True, metavar="TEXT ...")
@flag("--top", type=click.IntRange(min=1), default=8, show_default=True, help="How many words to list.")
@flag("--target", help="The class to explain; default: the predicted one.", metavar="LABEL")
@JSON_FLAG
def explain(run: Path, texts: tuple[str, ...], top: int, target: str | None, as_json: bool) -> None:
    """Show which words of a text carried the decision.

    RUN is as for predict. A word's weight is what the class's log-odds lose without it.
    """
    from newsdesk.prediction.explanation import explain as explain_text
    from newsdesk.prediction.open_model import open_model

    with shown_progress() as progress:
        classifier = open_model(run, progress=progress)
    explanations = [explain_text(classifier, text, target=target) for text in texts]
    if as_json:
        say({"explanations": [explanation.to_dict() for explanation in explanations]})
    else:
        say(render_explanations(explanations, top))


def render_explanations(explanations: Sequence[Explanation], top: int) -> list[str]:
    """What the terminal shows: in colour if standard output is one that wants it."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    with console.capture() as captured:
        for number, explanation in enumerate(explanations):
            console.print(*([""] if number else []), *_lines(explanation, top), sep="\n")
    return captured.get().removesuffix("\n").split("\n")


def _lines(explanation: Explanation, top: int) -> list[Text | str]:
    """The decision, the text with its words marked, and the weightiest words with their numbers."""
    if explanation.label is None:
        return [f"nothing to explain: {explanation.reason}", isolated(explanation.text)]
    target = isolated(explanation.target)
    decision = f"{isolated(explanation.label)} {explanation.probability:.1%}"
    if explanation.target != explanation.label:
        decision += f"; explained: {target} {explanation.target_probability:.1%}"
    listed = [f"{word.weight:+7.2f}  {isolated(word.text)}" for word in explanation.top(top)]
    odds = f"log-odds {explanation.log_odds:+.2f}, of an empty text {explanation.base_log_odds:+.2f}"
    lost, tokens = explanation.tokens_lost, explanation.tokens
    cut = [f"the last {lost:,} of {tokens:,} tokens ({lost / tokens:.1%}) were not read"] if lost else []
    return [decision, _marked(explanation), *listed, f"{odds} (nats; + speaks for {target})", *cut]


def _marked(explanation: Explanation) -> Text:
    """The text; what speaks for the class green, against it red, stronger words brighter."""
    from rich.text import Text

    marked = Text(explanation.text)
    strongest = max((abs(word.weight) for word in explanation.words), default=0.0)
    for word in explanation.words:
        share = abs(word.weight) / strongest if strongest else 0.0
        if share >= _FAINTEST:
            colour = "green" if word.weight > 0 else "red"
            marked.stylize(f"bold {colour} reverse" if share > 0.5 else colour, word.start, word.end)
    shown = isolated(explanation.text)
    return marked if shown == explanation.text else Text.assemble(shown[0], marked, shown[-1])
