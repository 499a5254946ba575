"""The verbs that say how good a run is: evaluate, calibrate, compare and report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    PATH,
    RUN,
    RUNS,
    flag,
    note,
    notice,
    reading_flags,
    say,
    shown_progress,
    verb,
)
from newsdesk.errors import UserError, counted
from newsdesk.stored import to_content

if TYPE_CHECKING:
    from newsdesk.evaluation.compare import ChangedRow, ClassChange, LabelSetComparison, RunComparison
    from newsdesk.evaluation.predicted_rows import PredictedRows
    from newsdesk.evaluation.significance import Difference
    from newsdesk.runs.calibration import Calibration

_CHANGED_SHOWN = 3  # of each kind
_CLASSES_SHOWN = 12


@verb()
@RUN
@flag(
    "--data", required=True, help="Labelled rows: a named data set, a file, or a folder.", metavar="NAME|PATH"
)
@flag("--split", default="test", show_default=True, help="Which split; the key in metrics.json.")
@flag("--baseline", is_flag=True, help="Also fit TF-IDF + linear SVM on the training rows, and compare.")
@flag("--with-text", is_flag=True, help="Put the texts into the predictions file.")
@reading_flags("text", "label", "template", "unknown_labels", "dialect")
@JSON_FLAG
def evaluate(run: Path, data: str, split: str, as_json: bool, **settings: Any) -> None:
    """Measure a run on labelled rows, with intervals."""
    from newsdesk import api
    from newsdesk.cli.tables import render_errors, render_evaluation, render_label_sets, render_notes
    from newsdesk.evaluation.label_sets import LabelSetEvaluation
    from newsdesk.evaluation.predicted_rows import predictions_path
    from newsdesk.runs.ready_made import located, name_of

    with shown_progress() as progress:
        result = api.evaluate(run, data, split=split, tell=notice, progress=progress, **settings)
    if as_json:
        say(to_content(result))
        return
    if isinstance(result, LabelSetEvaluation):
        say([*render_label_sets(result), *render_notes(result)])
    else:
        say([*render_evaluation(result), *render_errors(result.errors), *render_notes(result)])
    if name := name_of(located(run)):
        note(
            f"not kept: newsdesk models pull {name} --out runs/{name} makes a run of your own, which keeps it"
        )
    else:
        note(f"every row's probabilities are in {predictions_path(run, split)}")


@verb()
@RUN
@flag(
    "--data",
    multiple=True,
    help="Labelled rows that it did not learn from; may be repeated. Default: a run's validation rows.",
    metavar="NAME|PATH",
)
@flag(
    "--stack/--no-stack",
    default=None,
    help="Add a linear model's scores to the encoder's from now on, or no longer.  [default: as it is]",
)
@reading_flags("text", "label", "template", "unknown_labels", "learned_rows", "dialect")
@JSON_FLAG
def calibrate(run: Path, data: tuple[str, ...], stack: bool | None, as_json: bool, **reading: Any) -> None:
    """Fit the temperature of a run and its exports, or of one export, on labelled rows.

    Promises of predict --abstain and --sets rest on these rows, and hold for texts like them.
    """
    from newsdesk import api

    with shown_progress() as progress:
        made = api.calibrate(run, data, stack=stack, progress=progress, notice=notice, **reading)
    if as_json:
        say({str(folder): asdict(found) for folder, found in made.items()})
    else:
        say([line for folder, found in made.items() for line in _render_calibration(folder, found)])


def _render_calibration(folder: Path, found: Calibration) -> list[str]:
    error, loss = found.expected_calibration_error, found.negative_log_likelihood
    by = f"temperature {found.temperature:.4f}"
    if found.decisions is not None:
        by = f"probabilities and thresholds of {len(found.decisions):,} labels"
    unit = "row" if found.decisions is None else "label of a text"
    lines = [
        f"{folder}: {by} by {found.source}",
        f"  calibration error {100 * error.before:.2f} points before, {100 * error.after:.2f} after",
        f"  negative log-likelihood {loss.before:.4f} nats per {unit} before, {loss.after:.4f} after",
    ]
    if found.folded not in (1.0, found.temperature):
        lines.append(
            f"  other programs keep the export's own temperature, {found.folded:.4f}, which is in its "
            "weights; to give them this one: newsdesk export RUN --to KIND --overwrite --data FILE"
        )
    return lines


@verb()
@RUNS
@flag("--split", default="test", show_default=True, help="Which evaluation to compare.")
@flag(
    "--data",
    help="Labelled rows: evaluates runs that were not yet evaluated, and shows texts.",
    metavar="NAME|PATH",
)
@flag("--csv", "changed", type=PATH, help="A file to write all changed rows to.", metavar="FILE")
@reading_flags("text", "label", "template", "unknown_labels", "dialect")
@JSON_FLAG
def compare(
    runs: tuple[Path, ...], split: str, data: str | None, changed: Path | None, as_json: bool, **reading: Any
) -> None:
    """Say which run is better on the same rows, by how much, or that it is noise.

    Each RUN is a run, an export, or a file predictions-SPLIT.csv; all are compared with the first.
    """
    from newsdesk.evaluation.compare import compare as compare_evaluated
    from newsdesk.evaluation.compare import compare_rows, write_changed_rows

    if len(runs) < 2:
        raise click.UsageError("Give two runs or more: the others are compared with the first.")
    if data is None:
        comparisons = compare_evaluated(runs[0], runs[1:], split=split)
    else:
        classes = _classes_of(runs)
        first, *others = (_evaluated_on(run, data, split, reading, classes) for run in runs)
        comparisons = compare_rows(first, others)
    if changed is not None:
        write_changed_rows(comparisons, changed)
    if as_json:
        say({"split": split, "comparisons": [each.to_dict() for each in comparisons]})
    else:
        say([line for each in comparisons for line in render_comparison(each, several=len(comparisons) > 1)])


def _classes_of(runs: Sequence[Path]) -> tuple[str, ...]:
    """The classes that any of the runs and exported models has."""
    from newsdesk.prediction.open_model import find_model

    folders = [find_model(run) for run in runs if not run.is_file()]
    return tuple(dict.fromkeys(name for folder in folders for name in folder.labels.names))


def _evaluated_on(
    run: Path, data: str, split: str, reading: dict[str, Any], classes: Sequence[str]
) -> PredictedRows:
    """The run's predictions on these rows, computed now where it has none; with the rows' texts.

    Rows of ``classes`` that another run has and this one does not are left out. Raises UserError where it was
    evaluated on other rows under that name.
    """
    from newsdesk import api
    from newsdesk.evaluation.label_sets import read_evaluations
    from newsdesk.evaluation.predicted_rows import read_predicted_rows
    from newsdesk.evaluation.rows import evaluation_rows
    from newsdesk.prediction.open_model import find_model
    from newsdesk.runs.ready_made import require_own

    if run.is_file():
        return read_predicted_rows(run, split)
    with shown_progress() as progress:
        folder = find_model(run)
        if reading["unknown_labels"] is None and set(classes) - set(folder.labels.names):
            reading = {**reading, "unknown_labels": "drop"}
        rows = evaluation_rows(
            folder, data, split, notice=lambda text: note(f"{run}: {text}"), progress=progress, **reading
        )
        if split not in read_evaluations(folder.metrics):
            require_own(folder.path, f"the evaluation {split!r}")
            api.evaluate(run, data, split=split, progress=progress, **reading)
    evaluated = read_predicted_rows(run, split)
    if evaluated.evaluation is None or evaluated.evaluation.fingerprint != rows.fingerprint():
        raise UserError(
            f"{run} was evaluated on other rows under the name {split!r}",
            found=evaluated.origin,
            fix=f"newsdesk evaluate {run} --data {data} --split {split}, which replaces that evaluation",
        )
    return replace(evaluated, texts=rows.texts)


def render_comparison(comparison: RunComparison | LabelSetComparison, *, several: bool = False) -> list[str]:
    """The lines that a terminal shows of one comparison, its verdict last."""
    from newsdesk.evaluation.compare import LabelSetComparison
    from newsdesk.evaluation.significance import APPROXIMATE_BELOW

    adjusted = f", among several {comparison.adjusted_p_value:.2g} (Holm)" if several else ""
    kinds = Counter(row.change for row in comparison.changed)
    test = "McNemar's exact test"
    if isinstance(comparison, LabelSetComparison):
        test = "paired bootstrap of micro F1"
    few = f"; below {APPROXIMATE_BELOW} rows intervals are approximate"
    few = few if comparison.rows < APPROXIMATE_BELOW else ""
    return [
        f"first: {comparison.first}",
        f"other: {comparison.other}",
        f"on the same {counted(comparison.rows, 'row')}{few}",
        *(f"note: {text}" for text in comparison.notes),
        "",
        *_figures(comparison),
        "",
        f"fixed {counted(kinds['fixed'], 'row')}, broke {kinds['broken']:,}, "
        f"erred otherwise in {kinds['other error']:,}",
        f"{test}: p = {comparison.p_value:.2g}{adjusted}",
        "",
        *_classes(comparison.per_class),
        "",
        *_examples(comparison.changed),
        comparison.verdict,
        *([""] if several else []),
    ]


def _figures(comparison: RunComparison | LabelSetComparison) -> list[str]:
    from newsdesk.cli.tables import render_columns
    from newsdesk.evaluation.compare import LabelSetComparison

    if isinstance(comparison, LabelSetComparison):
        rows = [_figure("micro F1", comparison.micro_f1, 100, 2, "points")]
    else:
        rows = [_figure("accuracy", comparison.accuracy, 100, 2, "points")]
    rows.append(_figure("macro F1", comparison.macro_f1, 100, 2, "points"))
    if not isinstance(comparison, LabelSetComparison) and comparison.negative_log_likelihood is not None:
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
                **_recalls(entry),
                "fixed": entry.fixed,
                "broken": entry.broken,
                "rows": entry.support,
            }
            for entry in shown
        ]
    )


def _recalls(entry: ClassChange) -> dict[str, str]:
    """What became of a class's recall, where the two do not have the same classes."""
    if entry.first_recall is None or entry.other_recall is None:
        return {}
    first, other = 100 * entry.first_recall, 100 * entry.other_recall
    return {"recall first": f"{first:.2f}", "recall other": f"{other:.2f}", "lost": f"{first - other:+.2f}"}


def _examples(changed: Sequence[ChangedRow]) -> list[str]:
    """The first few changed rows of each kind."""
    lines: list[str] = []
    for change in ("fixed", "broken", "other error"):
        for row in [row for row in changed if row.change == change][:_CHANGED_SHOWN]:
            given = (label or "no label" for label in (row.first_label, row.other_label, row.true_label))
            lines.append("{}, row {}: {} -> {}, labelled {}".format(change, row.row, *given))
            lines += [f"  {row.text}"] if row.text else []
    return [*lines, ""] if lines else []


@verb()
@RUN
@flag("--split", default="test", show_default=True, help="Which evaluation to report.")
@flag(
    "--data",
    help="Its rows; the run is evaluated on them first if it was not yet. Default: as evaluated.",
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
    help="Also write the charts here, as SVG and PNG.",
    metavar="FOLDER",
)
@flag("--without-texts", is_flag=True, help="Quote none of the texts: many corpora may not be copied.")
@reading_flags("text", "label", "template", "unknown_labels", "dialect")
@JSON_FLAG
def report(run: Path, without_texts: bool, as_json: bool, **settings: Any) -> None:
    """Write a run's figures, charts and errors as one HTML file."""
    from newsdesk import api

    with shown_progress() as progress:
        written = api.report(run, with_texts=not without_texts, progress=progress, **settings)
    size = written.path.stat().st_size
    if as_json:
        files = [str(path) for path in written.plots]
        say({"report": str(written.path), "bytes": size, "plots": files, "missing": written.gaps})
        return
    for gap in written.gaps:
        notice(gap)
    say([f"report saved to {written.path} ({size / 1e3:,.0f} kB)"])
