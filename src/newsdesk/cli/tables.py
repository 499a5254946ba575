"""What verbs print: tables and figures for a terminal of 80 columns, and an evaluation made of them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table

from newsdesk.data.words import isolated, printable
from newsdesk.errors import counted
from newsdesk.evaluation.evaluate import Evaluation, RowError, TextsRead
from newsdesk.evaluation.significance import PairedComparison
from newsdesk.metrics import Metrics, over_classes
from newsdesk.reports.facts import confusions
from newsdesk.training.linear_baseline import BaselineResult

if TYPE_CHECKING:
    from newsdesk.config import ModelSection
    from newsdesk.evaluation.label_sets import LabelSetDifference, LabelSetEvaluation
    from newsdesk.training.plan import Lengths, Plan

WIDTH = 80
LARGEST_MATRIX = 12
"""Up to how many classes the confusion matrix is shown; beyond, the worst classes and confusions."""
WORST_SHOWN = 10

_LABEL_WIDTH = 24
_LEAST_LABEL_WIDTH = 8
_FIGURE_AT = 28
_CORNER = "true \\ predicted"
_SMALLEST_P_SHOWN = 0.0001
_UNKNOWN_SHOWN_FROM = 0.01
_NUMBER = re.compile(r"[-+]?[\d,.]+( %)?")


def render_columns(
    rows: Sequence[Mapping[Any, object]], *, header: Sequence[str] | None = None, gap: int = 2
) -> list[str]:
    """A plain table under its keys or ``header``: numbers to the right, yes and no for booleans.

    ``gap`` cells stand between two columns.
    """
    cells = [[_cell(value) for value in row.values()] for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for name, column in zip(header or rows[0], zip(*cells, strict=True), strict=True):
        numbers = all(map(_NUMBER.fullmatch, column))
        table.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    for line in cells:
        table.add_row(*line)
    file = io.StringIO()
    console = Console(file=file, width=10_000, color_system=None, markup=False, emoji=False, highlight=False)
    console.print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value)


def figure(name: str, value: str) -> str:
    """A line with a name and a value; values stand under one another."""
    return f"{name}{' ' * (_FIGURE_AT - cell_len(name))}{value}"


def cut(text: str, width: int) -> str:
    """The text in at most ``width`` cells, an ellipsis where it was cut; right-to-left text set apart."""
    shown = printable(text)
    return isolated(shown if cell_len(shown) <= width else set_cell_size(shown, width - 1) + "…")


def render_evaluation(evaluation: Evaluation) -> list[str]:
    """The lines of a report: headline figures, the baseline beside them, classes, confusions.

    With more than 12 classes, the 10 with the lowest F1 and the 10 largest confusions stand for all.
    Lines are at most 80 cells wide, wide characters counted as two.
    """
    metrics, trust = evaluation.metrics, evaluation.calibration
    lines = [
        figure("accuracy", _accuracy(metrics.accuracy, metrics.accuracy_interval)),
        figure("rows", f"{metrics.rows:,}, of which {metrics.correct:,} right"),
        figure("macro F1", f"{_percent(metrics.macro_f1)}   over {metrics.over_classes}"),
        figure("negative log-likelihood", f"{metrics.negative_log_likelihood:.4f} nats a row"),
        figure("Brier score", f"{metrics.brier_score:.4f}"),
        figure("expected calibration error", f"{100 * metrics.expected_calibration_error:.2f} points"),
    ]
    if trust is not None:
        before = 100 * trust.expected_calibration_error.before
        effect = f"temperature {trust.temperature:.3f}; without it {before:.2f} points"
        lines.append(
            figure("calibration", "none yet: newsdesk calibrate" if trust.temperature == 1 else effect)
        )
    if evaluation.risk_coverage is not None:
        at_rates = evaluation.risk_coverage.coverage_at
        shares = (f"{at.coverage:.1%} at {100 * at.error_rate:g} %" for at in at_rates)
        lines.append(figure("answered at an error of", ", ".join(shares)))
    if evaluation.texts is not None:
        lines += _texts_read(evaluation.texts)
    if evaluation.baseline is not None:
        lines += ["", *_beside_baseline(metrics, evaluation.baseline, evaluation.comparison)]
    confusions = _confusion_matrix(metrics) if _matrix_fits(metrics) else _largest_confusions(metrics)
    return [*lines, "", *_class_table(metrics), "", *confusions]


def render_label_sets(evaluation: LabelSetEvaluation) -> list[str]:
    """The lines of a report where a text may have several labels: headline figures, labels, confusions."""
    found = evaluation.metrics
    low, high = found.micro_f1_interval
    lines = [
        figure("micro F1", _accuracy(found.micro_f1, (low, high))),
        figure("  precision, recall", f"{_percent(found.micro_precision)}, {_percent(found.micro_recall)}"),
        figure(
            "macro F1",
            f"{_accuracy(found.macro_f1, found.macro_f1_interval)}   over "
            f"{over_classes(found.macro_f1_labels, len(found.label_names), 'label')}",
        ),
        figure("all labels right", _accuracy(found.subset_accuracy, found.subset_accuracy_interval)),
        figure("texts", f"{found.rows:,}, of which {found.texts_without_labels:,} without a label"),
        figure("labels a text", f"{found.labels_per_text:.2f}; assigned {found.assigned_per_text:.2f}"),
        figure("ranking average precision", f"{found.label_ranking_average_precision:.4f}"),
        figure("coverage error", f"{found.coverage_error:.2f} labels"),
        figure("negative log-likelihood", f"{found.negative_log_likelihood:.4f} nats a label"),
        figure(
            "calibration error", f"{100 * found.assigned_calibration_error:.2f} points of assigned labels"
        ),
    ]
    if evaluation.texts is not None:
        lines += _texts_read(evaluation.texts)
    if evaluation.baseline is not None:
        lines += ["", *_sets_beside_baseline(evaluation.baseline, evaluation.comparison)]
    shown = [one for one in found.per_label if one.support or one.f1]
    title = ""
    if len(shown) > LARGEST_MATRIX:
        shown = sorted(shown, key=lambda one: (one.f1, -one.support))[:WORST_SHOWN]
        title = f"the {WORST_SHOWN} labels of the lowest F1"
    width = max([_LEAST_LABEL_WIDTH, *(min(_LABEL_WIDTH, cell_len(one.label)) for one in shown)])
    rows = [
        {
            "label": cut(one.label, width),
            "precision": f"{one.precision:.1%}",
            "recall": f"{one.recall:.1%}",
            "F1": f"{one.f1:.1%}",
            "95 % interval": f"{one.f1_interval[0]:.1%} to {one.f1_interval[1]:.1%}",
            "texts": one.support,
        }
        for one in shown
    ]
    lines += ["", *([title] if title else []), *(render_columns(rows) if rows else [])]
    for what, pairs in (
        ("assigned in place of", found.confused),
        ("assigned, and beside it missed", found.missed_beside),
    ):
        if pairs:
            lines += ["", f"{what} (texts)"]
            lines += [
                f"{pair.texts:>7,}  {cut(pair.assigned, _LABEL_WIDTH)} -> {cut(pair.missed, _LABEL_WIDTH)}"
                for pair in pairs[:WORST_SHOWN]
            ]
    return lines


def _sets_beside_baseline(baseline: BaselineResult, paired: LabelSetDifference | None) -> list[str]:
    lines = [figure("baseline", baseline.description)]
    if baseline.micro_f1 is not None and baseline.micro_f1_interval is not None:
        lines.append(figure("  micro F1", _accuracy(baseline.micro_f1, baseline.micro_f1_interval)))
    if baseline.macro_f1 is not None:
        lines.append(figure("  macro F1", _percent(baseline.macro_f1)))
    if paired is not None:
        gained, (low, high) = paired.micro_f1.difference, paired.micro_f1.interval
        gain = f"{100 * gained:+.2f} points   95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
        lines.append(figure("  micro F1 gained over it", f"{gain}, p = {paired.p_value:.2g}"))
    return lines


def render_notes(evaluation: Evaluation | LabelSetEvaluation) -> list[str]:
    """What a person should know of the rows behind the figures, wrapped."""
    sentences = (note if note.startswith("WARNING") else f"note: {note}" for note in evaluation.notes())
    notes = [line for sentence in sentences for line in wrap(sentence, WIDTH, break_on_hyphens=False)]
    return ["", *notes] if notes else []


def render_errors(errors: Sequence[RowError]) -> list[str]:
    """The most confident errors, two lines each: what was said against what is true, and the text."""
    lines = ["", "most confident errors"] if errors else []
    for error in errors:
        predicted, labelled = (
            cut(label, _LABEL_WIDTH) for label in (error.predicted_label, error.true_label)
        )
        verdict = f"{predicted} {_percent(error.probability)}, labelled {labelled}"
        lines += [f"  row {error.row:,}: {verdict}", f"    {cut(error.text, WIDTH - 4)}"]
    return lines


def _texts_read(texts: TextsRead) -> list[str]:
    cut = (
        f"{texts.cut:,} ({_percent(texts.share_cut)}), which lost {_percent(texts.share_lost)} of all tokens"
    )
    lines = [figure("texts cut", cut if texts.cut else "none")]
    if texts.unknown_tokens >= _UNKNOWN_SHOWN_FROM:
        lines.append(figure("unknown tokens", f"{_percent(texts.unknown_tokens)} of those read"))
    if texts.unreadable:
        guesses = f"{texts.unreadable:,}, counted by the best guess: {texts.unreadable_right:,} right"
        lines += [
            figure("empty or unknown texts", guesses),
            figure("", "predict gives them no label"),
        ]
    return lines


def _beside_baseline(
    metrics: Metrics, baseline: BaselineResult, comparison: PairedComparison | None
) -> list[str]:
    difference = 100 * (metrics.accuracy - baseline.accuracy)
    lines = [
        figure("baseline", _accuracy(baseline.accuracy, baseline.accuracy_interval)),
        *(figure("", line) for line in wrap(baseline.description, WIDTH - _FIGURE_AT)),
        *(
            figure("", f"{_percent(accuracy)} of held-out training rows: {features}")
            for features, accuracy in (baseline.validation or {}).items()
        ),
        figure("", f"trained and tested in {baseline.seconds:.0f} s"),
        figure("model minus baseline", f"{difference:+.2f} points"),
    ]
    if comparison is not None:
        lines += [
            figure("wrong: both", f"{comparison.both_wrong:,}"),
            figure("wrong: only the model", f"{comparison.only_model_wrong:,}"),
            figure("wrong: only the baseline", f"{comparison.only_baseline_wrong:,}"),
            figure("McNemar's exact test", f"p {_p_value(comparison.p_value)}"),
        ]
    return lines


def _class_table(metrics: Metrics) -> list[str]:
    title, shown = "class", metrics.per_class
    if len(shown) > LARGEST_MATRIX:
        occurring = (entry for entry in shown if entry.support)
        shown = tuple(sorted(occurring, key=lambda entry: entry.f1)[:WORST_SHOWN])
        title = f"worst {len(shown)} of {len(metrics.per_class)} classes"
    rows = [
        {
            title: cut(entry.label, _LABEL_WIDTH),
            "precision": _percent(entry.precision),
            "recall": _percent(entry.recall),
            "F1": _percent(entry.f1),
            "rows": entry.support,
        }
        for entry in shown
    ]
    return render_columns(rows, gap=4)


def _matrix_fits(metrics: Metrics) -> bool:
    classes = len(metrics.label_names)
    return classes <= LARGEST_MATRIX and classes * (_digits(metrics) + 1) + _LEAST_LABEL_WIDTH <= WIDTH


def _digits(metrics: Metrics) -> int:
    return len(str(max(map(max, metrics.confusion))))


def _confusion_matrix(metrics: Metrics) -> list[str]:
    names, classes = metrics.label_names, len(metrics.label_names)
    longest = max(map(cell_len, names))
    first = min(_LABEL_WIDTH, max(len(_CORNER), longest))
    width = max(_digits(metrics), min(longest, (WIDTH - first) // classes - 1))
    first = min(first, WIDTH - (width + 1) * classes)
    header = [cut(_CORNER, first), *(cut(name, width) for name in names)]
    rows = zip(names, metrics.confusion, strict=True)
    cells = [dict(enumerate([cut(name, first), *map(str, counts)])) for name, counts in rows]
    return render_columns(cells, header=header, gap=1)


def _largest_confusions(metrics: Metrics) -> list[str]:
    rows = [
        {
            "true": cut(pair.true_label, _LABEL_WIDTH),
            "predicted": cut(pair.predicted_label, _LABEL_WIDTH),
            "rows": pair.rows,
            "share of true": _percent(pair.share),
        }
        for pair in confusions(metrics)[:WORST_SHOWN]
    ]
    return render_columns(rows, gap=4) if rows else ["no confusions"]


def _accuracy(share: float, interval: tuple[float, float]) -> str:
    return f"{_percent(share)}   95 % interval {100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _p_value(p: float) -> str:
    return f"= {p:.2g}" if p >= _SMALLEST_P_SHOWN else f"< {_SMALLEST_P_SHOWN}"


def render_plan(plan: Plan) -> list[str]:
    """What a dry run shows: values, parameters, steps, learning rates, lengths, time; at most 80 columns."""
    rows, steps, training, time = plan.rows, plan.steps, plan.recipe.training, plan.time
    share = f"{100 * plan.trainable / plan.total:.2f} % trained"
    groups = [(group.name, group.trainable, group.total) for group in plan.parameters]
    parameters = [*groups, (f"all, {share}", plan.trainable, plan.total)]
    counted_from = "" if rows.rows_from == "data" else "  (catalogue; the data is not on this disk)"
    assumed = "  (assumed until the data is here)" if rows.classes_from == "assumed" else ""
    most = f"{rows.unlabelled:,} at most: those whose class is clear"
    points = [
        (f"after {counted(point.step, 'step')}", f"{point.learning_rate:.3e}", point.name)
        for point in plan.curve
    ]
    step_rows = counted(training.batch_size * training.accumulation, "row")
    sections = [
        wrap(plan.recipe.description, WIDTH),
        _given_values(plan),
        render_columns(
            [dict(zip(("parameters", "trainable", "total"), group, strict=True)) for group in parameters]
        ),
        [
            figure("training rows", f"{rows.train:,}{counted_from}"),
            *([] if not rows.unlabelled else [figure("unlabelled texts", most)]),
            figure("cross-validated", f"in {counted(rows.folds, 'fold')}, then trained on all rows")
            if rows.folds
            else figure("validation rows", f"{rows.validation:,}"),
            figure("classes", f"{rows.classes:,}{assumed}"),
            figure("steps", f"{steps.total:,}: {counted(steps.epochs, 'epoch')} of {steps.per_epoch:,}"),
            figure("a step", step_rows),
            figure("warm-up steps", f"{steps.warmup:,}"),
        ],
        render_columns(
            [dict(enumerate(point)) for point in points],
            header=("learning rate", training.schedule, ""),
        ),
        _token_lengths(plan.lengths, plan.recipe.model),
        ["time on this machine: not estimated"]
        if time is None
        else [
            figure("estimated time", f"{_duration(time.seconds[0])} to {_duration(time.seconds[1])}"),
            *wrap(f"on this machine ({time.where}): {time.basis}. Validation comes on top.", WIDTH),
        ],
        [line for remark in plan.remarks for line in wrap(f"note: {remark}", WIDTH)],
    ]
    return [line for section in sections if section for line in (*section, "")][:-1]


def _given_values(plan: Plan) -> list[str]:
    values, lines = plan.recipe.model_dump(), []
    for key, origin in plan.origins.items():
        section, name = key.split(".")
        value = json.dumps(values[section][name], ensure_ascii=False)
        text = figure(key, f"{value:<20}  {origin}")
        lines += wrap(text, WIDTH, subsequent_indent=" " * _FIGURE_AT)
    return lines or ["values: all default"]


def _token_lengths(lengths: Lengths, model: ModelSection) -> list[str]:
    """Tokens of a text, as measured or as the catalogue knows them."""
    basis = {
        "measured": f"measured on {counted(lengths.rows, 'row')}",
        "catalogue": "from the catalogue, in RoBERTa's tokens",
        "unknown": "unknown until data and base are here",
    }
    lines = [figure("tokens a text", basis[lengths.basis])]
    if lengths.before_cutting:
        shown = ", ".join(f"{name} {length:,}" for name, length in lengths.before_cutting.items())
        lines.append(figure("before cutting", shown))
    if lengths.mean is not None:
        how = {"cut": "cut to", "head-tail": "both ends, of", "windows": "in windows of"}[model.long_texts]
        lines.append(figure(f"mean, {how} {model.max_length}", f"{lengths.mean:.1f}"))
    if lengths.padding is not None:
        lines.append(figure("padding", f"{100 * lengths.padding:.1f} % of what is computed"))
    own, *others = lengths.choices or (None,)
    if own is not None:
        lines.append(figure(f"read by {own.choice}", f"{own.share:.1%} of all tokens"))
        lines += [
            figure(f"by {other.choice}", f"{other.share:.1%}, in {other.times(own):.2g} times the time")
            for other in others
        ]
    return lines


def _duration(seconds: float) -> str:
    """A length of time in its natural unit, to two digits: it is an estimate."""
    for unit, length, up_to in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < up_to * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds / 86400:.2g} days"
