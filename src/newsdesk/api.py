"""The verbs as plain functions: what the command line calls, and what a program may call without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from newsdesk.errors import UserError
from newsdesk.prediction.open_model import find_model, needing_train_extra, open_model
from newsdesk.prediction.predictions import Predictions
from newsdesk.runs.folder import ModelFolder, RunFolder, open_run
from newsdesk.runs.ready_made import name_of, require_own

# Predicting one text must not wait for what trains and evaluates: that is imported where it is used.
if TYPE_CHECKING:
    from newsdesk.config import ResolvedRecipe
    from newsdesk.data.table import Table
    from newsdesk.evaluation.evaluate import Evaluation
    from newsdesk.evaluation.label_sets import LabelSetEvaluation
    from newsdesk.evaluation.rows import LearnedRowsRule, Reading
    from newsdesk.experiments.results import SweepResults
    from newsdesk.experiments.sweep import SweepEvent, SweepSettings
    from newsdesk.exports.export import Export
    from newsdesk.exports.parity import Quality
    from newsdesk.prediction.abstention import DecisionRule
    from newsdesk.prediction.classifier import Classifier
    from newsdesk.progress import Progress
    from newsdesk.reports.page import Report
    from newsdesk.runs.calibration import Calibration
    from newsdesk.runs.exported import Kind
    from newsdesk.runs.log import Event

__all__ = [
    "calibrate",
    "copy_run",
    "evaluate",
    "export",
    "predict_table",
    "report",
    "sweep",
    "train",
]


def train(
    recipe: str | ResolvedRecipe | None = None,
    *,
    out: str | Path,
    flags: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    observe: Callable[[Event], None] = lambda _event: None,
    track: str | Sequence[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    tables: tuple[Table, Table | None] | None = None,
) -> RunFolder:
    """Train a classifier and return its run folder.

    ``newsdesk.train("quick", out="runs/wire", overrides=["data.train=wire.csv", "lora.rank=16"])``

    Args:
        recipe: a recipe's name or TOML file, or what :func:`recipe_for` gave; None: the defaults.
        out: the folder to write.
        flags: dotted recipe keys and values, such as ``{"training.epochs": 2.0}``.
        overrides: the same as texts, ``section.key=value``.
        observe: called with every training event.
        track: where to show the training: ``tensorboard``, ``mlflow``, ``wandb``, or several of them. What
            they fail in is a remark given to ``observe``.
        overwrite: replace a run that is at ``out`` already, once the new one has finished.
        resume: continue the training at ``out``; with neither recipe, flags nor overrides, by its own recipe.
        progress: called while base model and data are fetched.
        tables: training and validation rows that a program gives instead of naming files.

    Raises:
        UserError: for anything that recipe, data or machine do not allow, in words for the user.
    """
    from newsdesk.reports.model_card import refresh_card
    from newsdesk.reports.tracking import Tracking
    from newsdesk.training import rank, restarted

    out = Path(out)
    if recipe is None or isinstance(recipe, str):
        recipe = recipe_for(out, recipe, flags, overrides, resume=resume)
    with (
        needing_train_extra("training"),
        Tracking(track, out, observe, resume=resume or restarted()) as tracking,
    ):
        from newsdesk.training.run import run_training  # the first import of torch

        run = run_training(
            _grown(recipe),
            out,
            observe=tracking.observe,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
            tables=tables,
        )
        # The lead alone writes; a run that waits to replace another has no card yet.
        if rank() == 0 and run.path == out:
            refresh_card(run, retrained=True)
        tracking.finish(run)
    return run


def sweep(
    recipe: str | ResolvedRecipe | None = None,
    *,
    out: str | Path,
    vary: Sequence[str],
    flags: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    observe: Callable[[SweepEvent], None] = lambda _event: None,
    progress: Progress | None = None,
    **asked: Unpack[SweepSettings],
) -> SweepResults:
    """Train a recipe with several values, and say which are best and which differences are noise.

    ``newsdesk.sweep("quick", out="sweeps/rank", vary=["lora.rank=1,4,16"], seeds=3).points[0].values``

    The same call on the same folder continues a sweep that was ended before its time.

    Args:
        recipe, flags, overrides: as for :func:`train`.
        out: the folder to write; results.parquet and report.html are in it.
        vary: keys and values, as ``--vary`` takes them.
        observe: called with every event of the sweep and of its trainings.
        progress: called while base model and data are fetched.
        asked: ``method``, ``trials``, ``seeds``, ``folds``, ``budget`` and ``prune``, as the flags of that
            name.

    Raises:
        UserError: for anything that recipe, data, folder or machine do not allow, in words for the user.
    """
    from newsdesk.config import load_recipe
    from newsdesk.experiments.page import write_page
    from newsdesk.experiments.sweep import Asked, run_sweep
    from newsdesk.training.growing import require_fresh

    if recipe is None or isinstance(recipe, str):
        recipe = load_recipe(recipe, flags, overrides)
    require_fresh(recipe.recipe, "a sweep")
    with needing_train_extra("a sweep"):
        results = run_sweep(
            recipe, Asked(tuple(vary), **asked), Path(out), observe=observe, progress=progress
        )
    results.write_table()
    write_page(results)
    best = results.best_run
    if best is not None and not (
        results.interrupted or results.in_work or RunFolder(best).off_topic.is_file()
    ):
        calibrate(best, progress=progress)  # the off-topic score, which no trial fits
    return results


def recipe_for(
    out: Path | None,
    recipe: str | None,
    flags: Mapping[str, Any] | None,
    overrides: Iterable[str],
    *,
    resume: bool,
) -> ResolvedRecipe:
    """The recipe asked for; if nothing is but to resume, the one that the training at ``out`` began with.

    Where it goes on from a run, base, adapters and all that is not asked for are that run's.

    Raises UserError where nothing is asked for but to resume, and there is nothing to resume.
    """
    from newsdesk.config import load_recipe
    from newsdesk.runs.folder import resumable

    overrides = tuple(overrides)
    asked = recipe is not None or overrides or any(value is not None for value in (flags or {}).values())
    if not resume or out is None or asked:
        return _grown(load_recipe(recipe, flags, overrides))
    begun = resumable(out)
    if begun is None:
        names = sorted(entry.name for entry in out.iterdir())[:8] if out.is_dir() else ["no such folder"]
        raise UserError(
            f"there is no training to resume at {out}",
            found=", ".join(names) or "an empty folder",
            fix="give the --out of a training that was begun, or say what to train: --recipe, --data",
        )
    own = load_recipe(str(begun.recipe))
    if lost := {"data.train", "model.base"} - own.origins.keys():
        raise UserError(
            f"{begun.recipe} is not as it was when the training began",
            found=f"no {min(lost)} in it",
            fix="put the original back, or start again with --overwrite and what to train",
        )
    return own


def _grown(recipe: ResolvedRecipe) -> ResolvedRecipe:
    """The recipe with what the run that it goes on from decides; as it is where it begins anew."""
    if recipe.recipe.training.start_from is None:
        return recipe
    from newsdesk.training.growing import grown_recipe

    return grown_recipe(recipe)


def evaluate(
    run_path: str | Path,
    data: str | Table,
    *,
    split: str = "test",
    baseline: bool = False,
    with_text: bool = False,
    tell: Callable[[str], None] = lambda _sentence: None,
    progress: Progress | None = None,
    **reading: Unpack[Reading],
) -> Evaluation | LabelSetEvaluation:
    """Evaluate a run or export on labelled rows; write ``metrics.json`` and ``predictions-<split>.csv``.

    Of a ready-made classifier nothing is written: it belongs to the installation.

    Args:
        run_path: a finished run, which is computed with PyTorch, or an exported model.
        data, split: named data set, folder, file or table, and which of its splits; the key in metrics.json.
        baseline: also fit TF-IDF + linear SVM on the run's own training rows, and compare.
        with_text: put the texts into the predictions file.
        tell: called with why a tracker of the run did not get the figures, a sentence each.
        progress: called while things are fetched, and with the rows done.
        reading: ``text``, ``label``, ``label_separator``, ``label_columns``, ``template``, ``dialect``,
            ``unknown_labels``: how columns and labels are read, as for :func:`evaluation_rows`.

    Raises:
        UserError: when run, base model or rows cannot be used together.
    """
    from newsdesk.evaluation.measured import measured
    from newsdesk.evaluation.predicted_rows import predictions_path
    from newsdesk.evaluation.rows import baseline_of, evaluation_rows, known_texts_of

    run = find_model(run_path)
    target = predictions_path(run.path, split)
    rows = evaluation_rows(run, data, split, progress=progress, **reading)
    known = known_texts_of(run, progress)
    reference = baseline_of(run, rows, progress) if baseline else None
    classifier = open_model(run, engine="own", checks="all", progress=progress)
    kept = None if name_of(run.path) else target
    found = measured(
        classifier,
        rows,
        split=split,
        model=name_of(run.path) or str(run.path),
        baseline=reference,
        learned=None if known is None else known.learned_rows(rows.texts),
        target=kept,
        with_text=with_text,
        progress=progress,
    )
    if kept is not None:
        _keep(found, run, tell)
    return found


def _keep(
    evaluation: Evaluation | LabelSetEvaluation, model: ModelFolder, tell: Callable[[str], None]
) -> None:
    """Write an evaluation's figures where a model's card and trackers have them."""
    from newsdesk.evaluation.evaluate import write_metrics
    from newsdesk.reports.model_card import refresh_card
    from newsdesk.reports.tracking import track_evaluation

    write_metrics(evaluation, model.metrics)
    if isinstance(model, RunFolder):
        refresh_card(model)
        track_evaluation(model, tell)


def predict_table(
    predictor: Classifier,
    table: Table,
    *,
    text: Sequence[str] | None = None,
    template: str | None = None,
    rule: DecisionRule | None = None,
    answer_empty: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """Classify every row of a table, its texts made as the run's training texts were.

    ``text`` and ``template`` say which columns they are made of, where these differ from the run's;
    ``rule``, from the predictor's ``decision_rule``, what is answered, and ``answer_empty``, whether texts
    that say nothing are.
    """
    texts = predictor.layout.for_table(table, text=text, template=template).texts(table)
    return predictor.classify(texts, rule, answer_empty=answer_empty, progress=progress)


def calibrate(
    path: str | Path,
    data: Sequence[str] = (),
    *,
    learned_rows: LearnedRowsRule = "error",
    stack: bool | None = None,
    progress: Progress | None = None,
    **reading: Unpack[Reading],
) -> dict[Path, Calibration]:
    """Fit the temperature of a run or exported model again, and keep it with the rows behind its promises.

    ``newsdesk.calibrate("runs/wire", ["january.csv"])``

    Of a run the exports in its folder are calibrated too, each by its own logits. A promise holds for texts
    like these rows, of which none may have been learned from.

    Args:
        path: a finished run or an exported model.
        data: labelled rows: named data sets (their test splits), folders or files. None: a run's own
            validation rows.
        learned_rows: what to do about those of ``data`` that the run learned from, by their texts: refuse
            (``error``), leave out (``drop``), or keep (``keep``); then promises do not hold for new texts.
        stack: add a linear model's scores to the encoder's from now on, or no longer; None: as it is. The
            model is fitted on the run's training rows where it has none, its part on the validation rows.
        progress: called while things are fetched, and with the rows done by each folder.
        reading: as for :func:`evaluate`; nothing can be fitted on unknown labels, which are refused or left
            out. ``notice`` is called with what a person should know of the labels, a sentence each.

    Returns:
        The new calibration of each folder.

    Raises:
        UserError: when there are no rows, or run, base model or rows cannot be used together.
    """
    from newsdesk.evaluation import evaluate as fitting
    from newsdesk.evaluation.rows import known_rows, unlearned_rows
    from newsdesk.reports.model_card import refresh_card

    found = find_model(path)
    require_own(found.path, "a calibration")
    if not data and isinstance(found, RunFolder) and found.is_cross_validated():
        calibrated = fitting.calibrate_out_of_fold(found, stack=stack, **reading)
        refresh_card(found)
        return calibrated
    linear = (
        None if stack is None else fitting.linear_model_for(found, stack=stack, progress=progress, **reading)
    )
    if data:
        rows = unlearned_rows(found, data, learned_rows, progress=progress, **reading)
    else:
        purpose, otherwise = "a calibration needs", "give labelled rows with --data"
        known = known_rows(found, purpose=purpose, otherwise=otherwise, progress=progress)
        rows = known.calibrating
        if isinstance(found, RunFolder) and not found.off_topic.is_file():
            fitting.fit_off_topic_score(found, known, progress)
    made = fitting.calibrate_on(rows, found, linear=linear, progress=progress)
    if isinstance(found, RunFolder):
        refresh_card(found)
    return made


def export(
    run_path: str | Path,
    kind: Kind,
    *,
    out: str | Path | None = None,
    data: str | None = None,
    learned_rows: LearnedRowsRule = "error",
    max_loss: float = 0.2,
    max_loss_upper: float = 0.5,
    overwrite: bool = False,
    progress: Progress | None = None,
    observe: Callable[[Quality], None] = lambda _quality: None,
    **reading: Unpack[Reading],
) -> Export:
    """Write a run as a deployable exported model, once it was found to do what the run does.

    ``newsdesk.export("runs/wire", "onnx-int8")``

    Args:
        run_path: a finished run.
        kind: ``merged``, ``onnx-fp32``, ``onnx-int8`` or ``onnx-shared``.
        out: the folder to write; None: ``RUN/export/KIND``.
        data: labelled rows to compare on; None: the run's validation rows, and below 1,000 training rows too.
        learned_rows: what to do about those of ``data`` that the run learned from, as for :func:`calibrate`.
        max_loss: points of accuracy that kinds in 8 bits may lose.
        max_loss_upper: the points that the upper end of the 95 % interval of this loss may reach.
        overwrite: replace an exported model that is there already.
        progress: called while base model and data are fetched, and with the rows done.
        observe: called with the figures of each setting tried.
        reading: how these rows are read, as for :func:`calibrate`.

    Raises:
        UserError: when run, rows and packages do not allow it, or nothing that was tried passed the gate.
    """
    from newsdesk.data.duplicates import KnownTexts
    from newsdesk.evaluation.rows import known_rows, unlearned_rows
    from newsdesk.exports.export import export_run, require_free_for_export
    from newsdesk.exports.parity import Limits, evidence_from, evidence_of

    limits = Limits(max_loss / 100, max_loss_upper / 100)
    run = open_run(Path(run_path))
    if out is None:
        require_own(run.path, "an export", otherwise="name another folder with --out")
    target = run.path / "export" / kind if out is None else Path(out)
    require_free_for_export(target, overwrite=overwrite)
    if data is not None:
        rows = unlearned_rows(run, [data], learned_rows, progress=progress, **reading)
        evidence = evidence_from(rows, KnownTexts.of_folder(run.path))
    else:
        purpose, otherwise = "an export is checked on", "give labelled rows with --data FILE"
        evidence = evidence_of(known_rows(run, purpose=purpose, otherwise=otherwise, progress=progress))
    return export_run(run, kind, evidence, target, limits, progress=progress, observe=observe)


def report(
    run_path: str | Path,
    *,
    split: str = "test",
    data: str | None = None,
    out: str | Path | None = None,
    plots: str | Path | None = None,
    with_texts: bool = True,
    progress: Progress | None = None,
    **reading: Unpack[Reading],
) -> Report:
    """Write what is known about a run as one HTML file, which needs no network, and its charts beside it.

    ``newsdesk.report("runs/wire", data="wire-test.csv", plots="plots")``

    Args:
        run_path: a finished run.
        split: which evaluation to report.
        data: its rows; the run is evaluated on them first where it was not yet. None: where its evaluation
            found them, as far as they are still there.
        out: the file to write; None: ``RUN/report-<split>.html``.
        plots: a folder for the charts as SVG and PNG.
        with_texts: quote errors and likely label errors; many corpora may not be copied.
        progress: called while things are fetched, and with the rows done where the run is evaluated first.
        reading: how the rows are read, as for :func:`evaluate`.

    Raises:
        UserError: when run and rows do not belong together, or a package is missing.
    """
    from newsdesk.evaluation.label_sets import read_evaluations
    from newsdesk.reports.content import evaluated_texts
    from newsdesk.reports.page import report_path, write_report
    from newsdesk.reports.parts import Missing

    run = open_run(Path(run_path))
    if out is None:
        require_own(run.path, "a report", otherwise="name a file with --out")
    if data is not None and split not in read_evaluations(run.metrics):
        require_own(run.path, f"the evaluation {split!r} that this report needs")
        evaluate(run_path, data, split=split, progress=progress, **reading)
    evaluated = read_evaluations(run.metrics).get(split)
    if evaluated is not None and evaluated.labels is not None and reading.get("unknown_labels") is None:
        reading["unknown_labels"] = evaluated.labels.policy
    return write_report(
        run,
        split,
        texts=Missing("this run was not evaluated yet")
        if evaluated is None
        else evaluated_texts(run, evaluated, data, progress=progress, **reading),
        classifier=lambda: open_model(run, engine="torch", progress=progress),
        out=report_path(run.path, split) if out is None else Path(out),
        plots=None if plots is None else Path(plots),
        quote=with_texts,
    )


def copy_run(
    run_path: str | Path, out: str | Path, *, overwrite: bool = False, named: bool = True
) -> RunFolder:
    """Copy a finished run, a ready-made one say, to a folder of its own, where it may be changed.

    Args:
        run_path: the run.
        out: the folder to write.
        overwrite: replace a run of newsdesk that is there already.
        named: keep what its owner wrote in its card; else the card is written anew, under the folder's name.

    Raises:
        UserError: when there is no run, or something else at ``out``.
    """
    import shutil

    from newsdesk.reports.model_card import refresh_card
    from newsdesk.runs.folder import CARD, in_use, require_free, staged

    run, out = open_run(Path(run_path)), Path(out)
    require_free(out, overwrite=overwrite)
    with in_use(out), staged(out) as new:
        for file in filter(Path.is_file, run.path.rglob("*")):
            place = new.path / file.relative_to(run.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)  # without its mode: an installed file may be read-only
        if not named:
            (new.path / CARD).unlink(missing_ok=True)
    copy = RunFolder(out)
    refresh_card(copy)  # it names the folder
    return copy
