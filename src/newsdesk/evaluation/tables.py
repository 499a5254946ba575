"""Evaluations as plain lines for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from rich.cells import cell_len, set_cell_size

from newsdesk.data.words import isolated
from newsdesk.evaluation.baseline import BaselineResult
from newsdesk.evaluation.evaluate import Evaluation, RowError, TextsRead, Trust
from newsdesk.evaluation.significance import PairedComparison
from newsdesk.metrics import Metrics
from newsdesk.prediction.abstention import RiskCoverage

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


def render_evaluation(evaluation: Evaluation) -> list[str]:
    """The lines of a report: headline figures, the baseline beside them, classes, confusions.

    With more than 12 classes, the 10 with the lowest F1 and the 10 largest confusions stand for all.
    Lines are at most 80 cells wide, wide characters counted as two.
    """
    metrics = evaluation.metrics
    lines = _headline(metrics)
    if evaluation.calibration is not None:
        lines.append(_calibration(evaluation.calibration))
    if evaluation.risk_coverage is not None:
        lines.append(_coverage(evaluation.risk_coverage))
    if evaluation.texts is not None:
        lines += _texts_read(evaluation.texts)
    if evaluation.baseline is not None:
        lines += ["", *_beside_baseline(metrics, evaluation.baseline, evaluation.comparison)]
    lines += ["", *_class_table(metrics)]
    confusions = _confusion_matrix(metrics) if _matrix_fits(metrics) else _largest_confusions(metrics)
    return [*lines, "", *confusions]


def render_notes(evaluation: Evaluation) -> list[str]:
    """What a person should know of the rows behind the figures, wrapped."""
    sentences = (note if note.startswith("WARNING") else f"note: {note}" for note in evaluation.notes())
    notes = [line for sentence in sentences for line in wrap(sentence, WIDTH, break_on_hyphens=False)]
    return ["", *notes] if notes else []


def render_errors(errors: Sequence[RowError]) -> list[str]:
    """The most confident errors, two lines each: what was said against what is true, and the text."""
    lines = ["", "most confident errors"] if errors else []
    for error in errors:
        predicted, labelled = (
            isolated(cut(label, _LABEL_WIDTH)) for label in (error.predicted_label, error.true_label)
        )
        verdict = f"{predicted} {_percent(error.probability)}, labelled {labelled}"
        lines += [f"  row {error.row:,}: {verdict}", f"    {isolated(cut(error.text, WIDTH - 4))}"]
    return lines


def _headline(metrics: Metrics) -> list[str]:
    return [
        _figure("accuracy", _accuracy(metrics.accuracy, metrics.accuracy_interval)),
        _figure("rows", f"{metrics.rows:,}, of which {metrics.correct:,} right"),
        _figure("macro F1", f"{_percent(metrics.macro_f1)}   over {metrics.over_classes}"),
        _figure("negative log-likelihood", f"{metrics.negative_log_likelihood:.4f} nats a row"),
        _figure("Brier score", f"{metrics.brier_score:.4f}"),
        _figure("expected calibration error", f"{100 * metrics.expected_calibration_error:.2f} points"),
    ]


def _calibration(trust: Trust) -> str:
    before = 100 * trust.expected_calibration_error.before
    effect = f"temperature {trust.temperature:.3f}; without it {before:.2f} points"
    return _figure("calibration", "none yet: newsdesk calibrate" if trust.temperature == 1 else effect)


def _coverage(found: RiskCoverage) -> str:
    shares = (f"{at.coverage:.1%} at {100 * at.error_rate:g} %" for at in found.coverage_at)
    return _figure("answered at an error of", ", ".join(shares))


def _texts_read(texts: TextsRead) -> list[str]:
    cut = (
        f"{texts.cut:,} ({_percent(texts.share_cut)}), which lost {_percent(texts.share_lost)} of all tokens"
    )
    lines = [_figure("texts cut", cut if texts.cut else "none")]
    if texts.unknown_tokens >= _UNKNOWN_SHOWN_FROM:
        lines.append(_figure("unknown tokens", f"{_percent(texts.unknown_tokens)} of those read"))
    if texts.unreadable:
        guesses = f"{texts.unreadable:,}, counted by the best guess: {texts.unreadable_right:,} right"
        lines += [
            _figure("empty or unknown texts", guesses),
            _figure("", "predict gives them no label"),
        ]
    return lines


def _beside_baseline(
    metrics: Metrics, baseline: BaselineResult, comparison: PairedComparison | None
) -> list[str]:
    difference = 100 * (metrics.accuracy - baseline.accuracy)
    lines = [
        _figure("baseline", _accuracy(baseline.accuracy, baseline.accuracy_interval)),
        *(_figure("", line) for line in wrap(baseline.description, WIDTH - _FIGURE_AT)),
        *(
            _figure("", f"{_percent(accuracy)} of held-out training rows: {features}")
            for features, accuracy in (baseline.validation or {}).items()
        ),
        _figure("", f"trained and tested in {baseline.seconds:.0f} s"),
        _figure("model minus baseline", f"{difference:+.2f} points"),
    ]
    if comparison is not None:
        lines += [
            _figure("wrong: both", f"{comparison.both_wrong:,}"),
            _figure("wrong: only the model", f"{comparison.only_model_wrong:,}"),
            _figure("wrong: only the baseline", f"{comparison.only_baseline_wrong:,}"),
            _figure("McNemar's exact test", f"p {_p_value(comparison.p_value)}"),
        ]
    return lines


def _class_table(metrics: Metrics) -> list[str]:
    title, shown = "class", metrics.per_class
    if len(shown) > LARGEST_MATRIX:
        occurring = (entry for entry in shown if entry.support)
        shown = tuple(sorted(occurring, key=lambda entry: entry.f1)[:WORST_SHOWN])
        title = f"worst {len(shown)} of {len(metrics.per_class)} classes"
    lines = [f"{title:<{_LABEL_WIDTH}}  precision     recall         F1       rows"]
    for entry in shown:
        shares = "".join(f"{_percent(share):>11}" for share in (entry.precision, entry.recall, entry.f1))
        lines.append(f"{_cell(entry.label, _LABEL_WIDTH)}{shares}{entry.support:>11,}")
    return lines


def _matrix_fits(metrics: Metrics) -> bool:
    classes = len(metrics.label_names)
    return classes <= LARGEST_MATRIX and classes * (_digits(metrics) + 1) + _LEAST_LABEL_WIDTH <= WIDTH


def _digits(metrics: Metrics) -> int:
    return len(str(max(map(max, metrics.confusion))))


def _confusion_matrix(metrics: Metrics) -> list[str]:
    classes = len(metrics.label_names)
    longest = max(map(cell_len, metrics.label_names))
    first = min(_LABEL_WIDTH, max(len(_CORNER), longest))
    width = max(_digits(metrics), min(longest, (WIDTH - first) // classes - 1))
    first = min(first, WIDTH - (width + 1) * classes)
    header = "".join(" " + _cell(name, width, right=True) for name in metrics.label_names)
    lines = [_cell(_CORNER, first) + header]
    for name, row in zip(metrics.label_names, metrics.confusion, strict=True):
        lines.append(_cell(name, first) + "".join(f" {count:>{width}}" for count in row))
    return lines


def _largest_confusions(metrics: Metrics) -> list[str]:
    pairs = [
        (count, true.label, predicted, count / true.support)
        for true, row in zip(metrics.per_class, metrics.confusion, strict=True)
        for predicted, count in zip(metrics.label_names, row, strict=True)
        if count and predicted != true.label
    ]
    largest = sorted(pairs, key=lambda pair: -pair[0])[:WORST_SHOWN]
    lines = [f"{'true':<{_LABEL_WIDTH}}  {'predicted':<{_LABEL_WIDTH}}       rows  share of true"]
    for count, true_label, predicted, share in largest:
        names = f"{_cell(true_label, _LABEL_WIDTH)}  {_cell(predicted, _LABEL_WIDTH)}"
        lines.append(f"{names}{count:>11,}{_percent(share):>15}")
    return lines if largest else ["no confusions"]


def _figure(name: str, value: str) -> str:
    return f"{name:<{_FIGURE_AT}}{value}"


def _accuracy(share: float, interval: tuple[float, float]) -> str:
    return f"{_percent(share)}   95 % interval {100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _p_value(p: float) -> str:
    return f"= {p:.2g}" if p >= _SMALLEST_P_SHOWN else f"< {_SMALLEST_P_SHOWN}"


def cut(text: str, width: int) -> str:
    """The text in at most ``width`` terminal cells; cut text ends in an ellipsis."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if cell_len(shown) <= width else set_cell_size(shown, width - 1) + "…"


def _cell(text: str, width: int, *, right: bool = False) -> str:
    """The text in exactly ``width`` terminal cells."""
    shown = isolated(cut(text, width))
    padding = " " * (width - cell_len(shown))
    return padding + shown if right else shown + padding
