"""The verb compare: runs beside one another on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import JSON_FLAG, Verb, data_flags, flag, note, say, shown_progress, terminal
from newsdesk.errors import counted

if TYPE_CHECKING:
    from newsdesk.evaluation.compare import ChangedRow, ClassChange, RunComparison
    from newsdesk.evaluation.predicted_rows import PredictedRows
    from newsdesk.evaluation.significance import Difference

_CHANGED_SHOWN = 3  # of each kind
_CLASSES_SHOWN = 12


@click.command(cls=Verb)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="RUN RUN [RUN ...]")
@flag("--split", default="test", show_default=True, help="Which evaluation to compare.")
@flag(
    "--data",
    help="Labelled rows: evaluates runs that were not yet, and shows texts.",
    metavar="NAME|PATH",
)
@flag(
    "--csv",
    "changed",
    type=click.Path(path_type=Path),
    help="A file to write all changed rows to.",
    metavar="FILE",
)
@data_flags("text", "label", "template", "unknown_labels", "dialect")
@JSON_FLAG
def compare(
    runs: tuple[Path, ...],
    split: str,
    data: str | None,
    changed: Path | None,
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Say which run is better on the same rows, by how much, or that it is noise.

    Each RUN is a run, an export, or a file predictions-SPLIT.csv; all are compared with the first.
    """
    from newsdesk.evaluation.compare import compare as compare_evaluated
    from newsdesk.evaluation.compare import compare_rows, write_changed_rows

    if len(runs) < 2:
        raise click.UsageError("Give two runs or more: the first is what the others are compared with.")
    if data is None:
        comparisons = compare_evaluated(runs[0], runs[1:], split=split)
    else:
        first, *others = (_evaluated_on(run, data, split, columns) for run in runs)
        comparisons = compare_rows(first, others)
    if changed is not None:
        write_changed_rows(comparisons, changed)
    if as_json:
        say({"split": split, "comparisons": [each.to_dict() for each in comparisons]})
    else:
        say([line for each in comparisons for line in render_comparison(each, several=len(comparisons) > 1)])


def _evaluated_on(run: Path, data: str, split: str, columns: Mapping[str, Any]) -> PredictedRows:
    """The run's predictions on these rows, made now where it has none; with the rows' texts.

    Raises UserError where it was evaluated on other rows under that name.
    """
    from newsdesk import api
    from newsdesk.errors import UserError
    from newsdesk.evaluation.evaluate import read_metrics
    from newsdesk.evaluation.predicted_rows import read_predicted_rows
    from newsdesk.evaluation.rows import evaluation_rows
    from newsdesk.runs.exported import find_exported
    from newsdesk.runs.folder import open_run

    if run.is_file():
        return read_predicted_rows(run, split)
    console = terminal()
    with shown_progress(console) as progress:
        folder = find_exported(run) or open_run(run)
        rows = evaluation_rows(
            folder,
            data,
            split,
            **columns,
            notice=lambda text: note(console, f"{run}: {text}"),
            progress=progress,
        )
        if split not in read_metrics(folder.metrics):
            api.evaluate(run, data, split=split, **columns, progress=progress)
    evaluated = read_predicted_rows(run, split)
    if evaluated.evaluation is None or evaluated.evaluation.fingerprint != rows.fingerprint():
        raise UserError(
            f"{run} was evaluated on other rows under the name {split!r}",
            found=evaluated.origin,
            fix=f"newsdesk evaluate {run} --data {data} --split {split}, which replaces that evaluation",
        )
    return replace(evaluated, texts=rows.texts)


def render_comparison(comparison: RunComparison, *, several: bool = False) -> list[str]:
    """The lines that a terminal shows of one comparison, its verdict last."""
    paired = comparison.paired
    adjusted = f", among several {comparison.adjusted_p_value:.2g} (Holm)" if several else ""
    both_wrong = len(comparison.changed) - paired.only_baseline_wrong - paired.only_model_wrong
    return [
        f"first: {comparison.first}",
        f"other: {comparison.other}",
        f"on the same {counted(comparison.rows, 'row')}{_few(comparison.rows)}",
        *(f"note: {text}" for text in comparison.notes),
        "",
        *_figures(comparison),
        "",
        f"fixed {counted(paired.only_baseline_wrong, 'row')}, broke {paired.only_model_wrong:,}, "
        f"erred otherwise in {both_wrong:,}",
        f"McNemar's exact test: p = {paired.p_value:.2g}{adjusted}",
        "",
        *_classes(comparison.per_class),
        "",
        *_examples(comparison.changed),
        comparison.verdict,
        *([""] if several else []),
    ]


def _few(rows: int) -> str:
    from newsdesk.evaluation.significance import APPROXIMATE_BELOW

    return "" if rows >= APPROXIMATE_BELOW else f"; below {APPROXIMATE_BELOW} rows intervals are approximate"


def _figures(comparison: RunComparison) -> list[str]:
    from newsdesk.cli.tables import render_columns

    rows = [
        _figure("accuracy", comparison.accuracy, 100, 2, "points"),
        _figure("macro F1", comparison.macro_f1, 100, 2, "points"),
    ]
    if comparison.negative_log_likelihood is not None:
        rows.append(_figure("negative log-likelihood", comparison.negative_log_likelihood, 1, 4, "nats"))
    return render_columns(rows)


def _figure(name: str, figure: Difference, scale: int, digits: int, unit: str) -> dict[str, str]:
    first, other, difference, low, high = (
        scale * value for value in (figure.first, figure.other, figure.difference, *figure.interval)
    )
    return {
        "": name,
        "first": f"{first:.{digits}f}",
        "other": f"{other:.{digits}f}",
        "difference": f"{difference:+.{digits}f} {unit}",
        "95 % interval": f"[{low:+.{digits}f}, {high:+.{digits}f}]",
        "without zero": "yes" if figure.excludes_zero else "no",
    }


def _classes(classes: Sequence[ClassChange]) -> list[str]:
    """A table of the classes; of many, those whose F1 changed most."""
    from newsdesk.cli.tables import cut, render_columns

    ranked = sorted(classes, key=lambda entry: -abs(entry.other_f1 - entry.first_f1))
    shown = classes if len(classes) <= _CLASSES_SHOWN else ranked[:_CLASSES_SHOWN]
    return render_columns(
        [
            {
                "class": cut(entry.label, 24),
                "F1 first": f"{100 * entry.first_f1:.2f}",
                "F1 other": f"{100 * entry.other_f1:.2f}",
                "change": f"{100 * (entry.other_f1 - entry.first_f1):+.2f}",
                "fixed": entry.fixed,
                "broken": entry.broken,
                "rows": entry.support,
            }
            for entry in shown
        ]
    )


def _examples(changed: Sequence[ChangedRow]) -> list[str]:
    """The first few changed rows of each kind."""
    lines: list[str] = []
    for change in ("fixed", "broken", "other error"):
        for row in [row for row in changed if row.change == change][:_CHANGED_SHOWN]:
            lines.append(
                f"{change}, row {row.row}: {row.first_label} -> {row.other_label}, labelled {row.true_label}"
            )
            lines += [f"  {row.text}"] if row.text else []
    return [*lines, ""] if lines else []
