"""The verb push: a run goes to the Hugging Face Hub, when someone says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    Verb,
    data_flags,
    flag,
    note,
    say,
    shown_progress,
    terminal,
)
from newsdesk.data.words import isolated
from newsdesk.errors import counted

if TYPE_CHECKING:
    from rich.text import Text

    from newsdesk.prediction.explanation import Explanation
    from newsdesk.reports.push import PushPlan
    from newsdesk.runs.calibration import Calibration


KINDS = ("merged", "onnx-fp32", "onnx-int8")


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@flag("--to", "kind", type=click.Choice(KINDS), required=True, help="What to make of it.")
@flag(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder to write; default: RUN/export/KIND.",
    metavar="DIR",
)
@flag(
    "--data",
    help="Labelled rows to compare on; default: validation rows, filled up with training rows below 1,000.",
    metavar="NAME|PATH",
)
@flag("--max-loss", type=float, metavar="POINTS", help="Accuracy that onnx-int8 may lose; default: 0.2.")
@flag(
    "--max-loss-upper",
    type=float,
    metavar="POINTS",
    help="Accuracy that it may lose at the upper end of the 95 % interval; default: 0.5.",
)
@flag("--overwrite", is_flag=True, help="Replace the exported model that is there.")
@data_flags("text", "label", "template", "unknown_labels", "learned_rows", "dialect")
@JSON_FLAG
def export(
    run: Path,
    kind: Any,
    out: Path | None,
    data: str | None,
    max_loss: float | None,
    max_loss_upper: float | None,
    overwrite: bool,
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Write a run as transformers or ONNX files, once they are found to do what the run does."""
    from newsdesk import api
    from newsdesk.exports.parity import render_progress, render_tried
    from newsdesk.stored import to_content

    limits = {"max_loss": max_loss, "max_loss_upper": max_loss_upper}
    given: dict[str, Any] = {name: points for name, points in limits.items() if points is not None}
    if given and kind != "onnx-int8":
        raise click.UsageError(
            "--max-loss and --max-loss-upper go with --to onnx-int8; other kinds lose nothing."
        )
    console = terminal()
    with shown_progress(console) as progress:
        made = api.export(
            run,
            kind,
            out=out,
            data=data,
            **columns,
            **given,
            overwrite=overwrite,
            progress=progress,
            observe=lambda quality: note(console, render_progress(quality)),
            notice=lambda sentence: note(console, f"note: {sentence}"),
        )
    if as_json:
        say({"path": str(made.path), **to_content(made.quality)})
    else:
        quality = made.quality
        table = render_tried(quality.tried, quality.rows, quality.limits)
        say([*table, f"export saved to {made.path}"])


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@flag(
    "--data",
    multiple=True,
    help="Labelled rows that it did not learn from; may be given again. Default: a run's validation rows.",
    metavar="NAME|PATH",
)
@data_flags("text", "label", "template", "unknown_labels", "learned_rows", "dialect")
@JSON_FLAG
def calibrate(
    run: Path,
    data: tuple[str, ...],
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Fit the temperature of a run and its exports, or of one export, on labelled rows.

    Promises of predict --abstain and --sets stand on these rows, and hold for texts like them.
    """
    from newsdesk import api

    console = terminal()
    with shown_progress(console) as progress:
        made = api.calibrate(
            run,
            data,
            **columns,
            progress=progress,
            notice=lambda sentence: note(console, f"note: {sentence}"),
        )
    if as_json:
        say({str(folder): asdict(found) for folder, found in made.items()})
        return
    for folder, found in made.items():
        error, loss = found.expected_calibration_error, found.negative_log_likelihood
        say(
            [
                f"{folder}: temperature {found.temperature:.4f} by {found.source}",
                f"  calibration error {100 * error.before:.2f} points before, {100 * error.after:.2f} after",
                f"  negative log-likelihood {loss.before:.4f} nats a row before, {loss.after:.4f} after",
                *_for_other_programs(found),
            ]
        )


def _for_other_programs(found: Calibration) -> list[str]:
    """What transformers.js, optimum and pipelines make of an export that was calibrated anew."""
    if found.folded in (1.0, found.temperature):
        return []
    return [
        f"  other programs keep the export's own temperature, {found.folded:.4f}, which is in its weights; "
        "to give them this one: newsdesk export RUN --to KIND --overwrite --data FILE"
    ]


_FAINTEST = 0.15  # of the strongest weight: what is weaker stays uncoloured


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True, metavar="TEXT ...")
@flag("--top", type=click.IntRange(min=1), default=8, show_default=True, help="How many words to list.")
@flag("--target", help="The class to explain; default: the predicted one.", metavar="LABEL")
@JSON_FLAG
def explain(run: Path, texts: tuple[str, ...], top: int, target: str | None, as_json: bool) -> None:
    """Show which words of a text carried the decision.

    RUN is a run or an export of one. A word's weight is what the class's log-odds lose without it.
    """
    from newsdesk.prediction.explanation import explain as explain_text
    from newsdesk.prediction.open_model import open_model

    with shown_progress() as progress:
        classifier = open_model(run, progress=progress)
    explanations = [explain_text(classifier, text, target=target) for text in texts]
    if as_json:
        say({"explanations": [explanation.to_dict() for explanation in explanations]})
    else:
        say(_rendered(explanations, top))


def _rendered(explanations: Sequence[Explanation], top: int) -> list[str]:
    """What the terminal shows: in colour where standard output is one that wants it."""
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
    ranked = explanation.top(top)
    listed = [f"{word.weight:+7.2f}  {isolated(word.text)}" for word in ranked]
    odds = f"log-odds {explanation.log_odds:+.2f}, of an empty text {explanation.base_log_odds:+.2f}"
    lost, tokens = explanation.tokens_lost, explanation.tokens
    cut = [f"the last {lost:,} of {tokens:,} tokens ({lost / tokens:.1%}) were not read"] if lost else []
    says = f"{odds} (nats; + speaks for {target})"
    return [decision, _marked(explanation), *listed, says, *cut]


def _marked(explanation: Explanation) -> Text:
    """The text; what speaks for the class green, against it red, the stronger the brighter."""
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


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@flag("--split", default="test", show_default=True, help="Which evaluation to tell of.")
@flag(
    "--data",
    help="Its rows; the run is evaluated on them first where it was not yet. Default: as evaluated.",
    metavar="NAME|PATH",
)
@flag(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write; default: RUN/report-SPLIT.html.",
    metavar="FILE",
)
@flag(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the charts here, too, as SVG and PNG.",
    metavar="FOLDER",
)
@flag("--without-texts", is_flag=True, help="Quote none of the texts: many corpora may not be copied.")
@data_flags("text", "label", "template", "unknown_labels", "dialect")
@JSON_FLAG
def report(
    run: Path,
    split: str,
    data: str | None,
    out: Path | None,
    plots: Path | None,
    without_texts: bool,
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Write a run's figures, charts and errors as one HTML file."""
    from newsdesk import api

    console = terminal()
    with shown_progress(console) as progress:
        written = api.report(
            run,
            split=split,
            data=data,
            out=out,
            plots=plots,
            with_texts=not without_texts,
            progress=progress,
            **columns,
        )
    size = written.path.stat().st_size
    if as_json:
        files = [str(path) for path in written.plots]
        say({"report": str(written.path), "bytes": size, "plots": files, "missing": written.gaps})
        return
    for gap in written.gaps:
        note(console, f"note: {gap}")
    say([f"report saved to {written.path} ({size / 1e3:,.0f} kB)"])


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repo_id")
@flag("--private/--public", default=True, show_default=True, help="Who sees the repository.")
@flag("--revision", help="The branch to push to; default: main.", metavar="BRANCH")
@flag("--with-exports", is_flag=True, help="Send the run's exports too.")
@flag("--message", help="What the commit says.", metavar="TEXT")
@flag("--dry-run", is_flag=True, help="Show what would be sent; ask nobody.")
@JSON_FLAG
def push(
    run: Path,
    repo_id: str,
    private: bool,
    revision: str | None,
    with_exports: bool,
    message: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Upload a run to the Hugging Face Hub as REPO_ID, organisation/name; privately unless told otherwise."""
    from newsdesk.reports.push import plan_push
    from newsdesk.reports.push import push as pushing

    if dry_run:
        plan = plan_push(run, repo_id, with_exports=with_exports)
        say(plan.to_dict() if as_json else _listed(plan))
        return
    console = terminal()

    def show(plan: PushPlan) -> None:
        for line in _listed(plan):
            note(console, line)

    done = pushing(
        run,
        repo_id,
        private=private,
        revision=revision,
        with_exports=with_exports,
        message=message,
        observe=show,
        progress_bars=console.is_terminal,
    )
    seen = "private" if private else "public"
    ending = f"run pushed to {done.url} ({seen})" if done.changed else f"nothing new for {done.url}"
    say(done.to_dict() if as_json else [ending])


def _listed(plan: PushPlan) -> list[str]:
    """What goes, what stays and why, and what to know before."""
    from newsdesk.cli.tables import render_columns

    lines = render_columns(
        [{"bytes": upload.upload_info.size, "file": upload.path_in_repo} for upload in plan.uploads]
    )
    size = sum(upload.upload_info.size for upload in plan.uploads)
    lines += ["", f"{counted(len(plan.uploads), 'file')}, {size / 1e6:.1f} MB for {plan.repo_id}"]
    lines += [f"left out: {name} ({why})" for name, why in plan.left_out.items()]
    return [*lines, *(f"note: {text}" for text in plan.notes)]
