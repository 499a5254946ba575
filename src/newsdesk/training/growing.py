"""A run that grows: what another one goes on from, and the rows that a run learned from. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from newsdesk.config import (
    DataSection,
    LoraSection,
    ModelSection,
    Recipe,
    ResolvedRecipe,
    TrainingSection,
    load_recipe,
    with_values,
)
from newsdesk.data.duplicates import KnownTexts
from newsdesk.data.examples import Splits
from newsdesk.data.growing import RETIRED, Earlier, relabelled
from newsdesk.data.load import TrainingData, load_training_data
from newsdesk.errors import UserError, counted
from newsdesk.files import damaged
from newsdesk.model.catalog import BASE_MODELS
from newsdesk.progress import Progress
from newsdesk.runs.folder import MANIFEST, RunFolder, open_run
from newsdesk.runs.label_decisions import strata
from newsdesk.runs.manifest import GrownFrom, ReplayedRows
from newsdesk.runs.ready_made import name_of
from newsdesk.training.held_out import HeldOut

if TYPE_CHECKING:
    from peft import PeftModel

    from newsdesk.model.catalog import ResolvedBase
    from newsdesk.model.network import Network
    from newsdesk.model.tokenizer import TokenIds

GENTLER = 0.2
"""By what the learning rate of a run is multiplied where it is trained further."""
_EARLIER_A_NEW_ONE = 3
_WEIGHTS = "adapter/adapter_model.safetensors"
_FIXED = ("model.base", "model.train_pooler", *(f"lora.{key}" for key in LoraSection.model_fields))
_OF_MODEL = ("max_length", "long_texts", "window_overlap", "max_windows", "pooling", "dropout", "linear")
_OF_DATA = ("label", "label_separator", "label_columns", "normaliser", "merge_case")
_OF_TRAINING = ("batch_size", "accumulation", "weight_decay", "clip", "label_smoothing", "class_weights")


def grown_recipe(asked: ResolvedRecipe) -> ResolvedRecipe:
    """The recipe of a training that goes on from the run that ``asked`` names.

    Base, adapters and head are that run's, and so is how texts and labels are read. Training is short: one
    epoch of `drawn_rows`, at a rate of its own times `GENTLER`. What was asked for by a flag or a recipe
    holds, unless the run's weights would not fit it, which raises UserError.
    """
    start = open_run(Path(str(asked.recipe.training.start_from)))
    own, facts, given = load_recipe(str(start.recipe)).recipe, start.manifest.base, asked.origins
    if "data.train" not in given:
        raise UserError(
            f"there are no rows to train {start.path} further on",
            found="--from without --data",
            fix="give the new rows with --data FILE; the earlier ones are replayed by themselves",
        )
    base = facts.name if facts.name in BASE_MODELS else facts.reference
    taken: dict[str, Any] = {"model.base": base, "data.task": start.labels.task}
    for section, names in (
        ("model", ("train_pooler", *_OF_MODEL)),
        ("lora", LoraSection.model_fields),
        ("data", _OF_DATA),
        ("training", _OF_TRAINING),
    ):
        of_run = getattr(own, section)
        taken |= {f"{section}.{name}": getattr(of_run, name) for name in names}
    taken["data.normaliser"] = start.labels.layout.normaliser
    taken |= {
        "data.folds": 0,
        "training.epochs": 1.0,
        "training.min_steps": 0,
        "training.learning_rate": GENTLER * own.training.learning_rate,
    }
    same_base = {base, facts.name, facts.reference, own.model.base}
    _require_fitting(start, asked, taken, same_base)
    values = {key: value for key, value in taken.items() if key not in given or key == "model.base"}
    return with_values(asked, values, f"run {start.path}")


def _require_fitting(
    start: RunFolder, asked: ResolvedRecipe, taken: dict[str, Any], same_base: set[str]
) -> None:
    """Raise UserError for what the run's weights, labels or rows do not allow."""
    recipe = asked.recipe
    differing = []
    for key in (*_FIXED, "data.task", "data.normaliser"):
        section, name = key.split(".")
        value = getattr(getattr(recipe, section), name)
        alike = value in same_base if key == "model.base" else value in (taken[key], "auto")
        if key in asked.origins and not alike:
            differing.append(f"{key} = {taken[key]!r}, asked for {value!r} ({asked.origins[key]})")
    if differing:
        raise UserError(
            f"what is trained further from {start.path} keeps its base, adapters, task and texts",
            found="\n       ".join(differing),
            fix="leave these out (a recipe's name brings such values along), or train anew without --from",
        )
    if recipe.data.folds:
        raise UserError(
            "what is trained further cannot be cross-validated",
            found=f"{counted(recipe.data.folds, 'fold')}, and {start.path}, which learned from rows of each",
            fix="leave out --folds: its validation rows stay held out; or give others with --valid FILE",
        )


@dataclass(frozen=True, eq=False)
class Start:
    """The run that a training goes on from, and its rows."""

    run: RunFolder
    earlier: Earlier

    @classmethod
    def of(cls, path: str, *, offline: bool = False, progress: Progress | None = None) -> Start:
        """Open the run, and read the rows that it learned from as far as they are still there."""
        run = open_run(Path(path))
        rows, missing = None, ""
        try:
            if name_of(run.path) or run.manifest.data is None:
                raise UserError("they did not come with it")
            data = rows_of_run(run, otherwise="", offline=offline, progress=progress)
            rows = Splits(data.train, data.validation)
        except UserError as error:
            missing = error.wrong
        known = run.known_texts()
        if known is None:
            known = KnownTexts.of(*((rows.train.texts, rows.validation.texts) if rows else ((), ())))
        labels, columns = run.labels, load_recipe(str(run.recipe)).recipe.data
        name = name_of(run.path) or str(run.path)
        earlier = Earlier(name, labels.names, labels.task, labels.layout, columns, known, rows, missing)
        return cls(run, earlier)

    @classmethod
    def of_recipe(
        cls, recipe: Recipe, progress: Progress | None = None, *, offline: bool = False
    ) -> Start | None:
        """The run that a recipe goes on from; None where it begins anew."""
        path = recipe.training.start_from
        if path is None:
            return None
        if recipe.data.unlabelled is not None:
            raise UserError(
                "a run is trained further with labelled rows",
                found=f"--from {path} and --unlabelled {recipe.data.unlabelled}",
                fix="leave out --unlabelled, or train anew without --from",
            )
        return cls.of(path, offline=offline, progress=progress)

    def classifier(self, base: ResolvedBase, label_names: Sequence[str], model: ModelSection) -> PeftModel:
        """Its adapters and head on the base, with rows of zeros in the head for new classes.

        Raises UserError where the base is not the one that it was trained on.
        """
        from newsdesk.model.growth import grown_classifier

        wanted = self.run.manifest.base.sha256
        if wanted is not None and base.sha256 != wanted:
            raise UserError(
                f"the base model {base.reference} is not the one that {self.run.path} was trained on",
                found=f"sha256 {base.sha256}, trained on {wanted}",
                fix="put the original weights back, or train anew without --from",
            )
        known = len(self.earlier.label_names)
        return grown_classifier(base.path, self.run.adapter, label_names, model, known=known)

    def begin(
        self, network: Network, sequences: Sequence[TokenIds], data: TrainingData, recipe: Recipe
    ) -> NDArray[np.int64]:
        """Let the head know the new classes, by the rows' token ids; the rows of an epoch."""
        from newsdesk.model.growth import begin_new_classes

        known, share = len(self.earlier.label_names), recipe.training.new_share
        begin_new_classes(network, sequences, data.train.truth(), known=known, share=share)
        return drawn_rows(data.replayed or 0, len(data.train), recipe.training)

    @property
    def sha256(self) -> str:
        """Of its weights, by the manifest."""
        return self.run.manifest.files.get(_WEIGHTS, "")

    def facts(self, replayed: int) -> GrownFrom:
        """What a manifest says of it, of whose training rows so many are learned from again."""
        parts: tuple[ReplayedRows, ...] = ()
        if self.earlier.rows is not None:
            before, recipe = self.run.manifest.grown, load_recipe(str(self.run.recipe)).recipe
            parts = before.replayed if before else ()
            known = before.label_names if before else ()
            content, now = _section_of(self.run, recipe).model_dump(mode="json"), self.run.labels.was or {}
            parts += (ReplayedRows(content, recipe.training.seed, known, now),)
        return GrownFrom(self.earlier.name, self.sha256, self.earlier.label_names, parts, replayed)


def rows_of_run(
    run: RunFolder, *, otherwise: str, offline: bool = False, progress: Progress | None = None
) -> TrainingData:
    """The training and validation rows of a run that was trained here, by its recipe, with its labels of now.

    ``offline`` takes named data sets from the cache alone; ``otherwise`` says in an error what to do without.
    Raises UserError when they cannot be read, or are no longer the same.
    """
    recorded, trained = run.manifest.data, run.manifest.training
    assert recorded is not None
    recipe = load_recipe(str(run.recipe)).recipe
    seed = recipe.training.seed
    section = _section_of(run, recipe)
    read = partial(load_training_data, section, seed=seed, offline=offline, progress=progress)
    attempts = (read, partial(read, proportional=True))  # as runs of version 0.1 were split
    if run.manifest.grown is not None:
        attempts = (partial(read, earlier=_earlier_again(run, offline, progress)),) * 2
    for attempt in attempts:
        data = attempt()
        parts = (("train", data.train, recorded.train), ("validation", data.validation, recorded.validation))
        changed = [(name, part) for name, part, facts in parts if part.fingerprint() != facts.sha256]
        if changed:
            continue
        # Runs of earlier versions do not say which rows chose their state.
        if trained is not None and trained.choosing_rows and data.validation.labels is not None:
            chosen = HeldOut.split(strata(data.validation.labels), seed)[0]
            data = replace(data, choosing=tuple(chosen.tolist()))
        return data if run.labels.was is None else _with_labels_of_now(data, run.labels.was)
    name, part = changed[0]
    raise UserError(
        f"the {name} rows are no longer those that {run.path} was trained with",
        found=f"{counted(len(part), 'row')} in {part.source} with another sha256 than the manifest's",
        fix=f"restore the original file, or {otherwise}",
    )


def _section_of(run: RunFolder, recipe: Recipe) -> DataSection:
    """The data section of a run's recipe, with the folds that it was trained with in the end."""
    trained = run.manifest.training
    return recipe.data.model_copy(update={"folds": 0 if trained is None else trained.folds})


def _earlier_again(run: RunFolder, offline: bool, progress: Progress | None) -> Earlier | None:
    """What a run knew that was trained further, to read its own rows again: all texts are known by now."""
    grown, known, labels = run.manifest.grown, run.known_texts(), run.labels
    assert grown is not None
    if known is None:
        raise UserError(f"it is not known which texts {run.path} learned from", found="no known_texts in it")
    rows: Splits | None = None
    again = partial(
        Earlier, grown.run, task=labels.task, layout=labels.layout, texts=known, missing="", is_again=True
    )
    columns = DataSection()
    for part in grown.replayed:
        try:
            section = DataSection.model_validate(part.data)
        except ValidationError as error:
            raise damaged(run.path / MANIFEST, f"grown.replayed: {error}", fix=RunFolder.fix) from None
        earlier = (
            again(label_names=part.label_names, columns=columns, rows=rows) if part.label_names else None
        )
        data = load_training_data(
            section, seed=part.seed, offline=offline, progress=progress, earlier=earlier
        )
        rows, columns = Splits(*(relabelled(one, part.now) for one in (data.train, data.validation))), section
    return again(label_names=grown.label_names, columns=columns, rows=rows)


def _with_labels_of_now(data: TrainingData, was: dict[str, str]) -> TrainingData:
    """The rows with the labels that they have since they were renamed, merged or retired."""

    def kept(rows: Any) -> NDArray[np.int64]:
        if rows.labels is None or rows.labels.ndim == 2:
            return np.arange(len(rows))
        stays = np.array([was.get(name, name) != RETIRED for name in rows.label_names], dtype=np.bool_)
        return np.flatnonzero(stays[rows.labels])

    choosing = np.flatnonzero(np.isin(kept(data.validation), data.choosing))
    return replace(
        data,
        train=relabelled(data.train, was),
        validation=relabelled(data.validation, was),
        choosing=tuple(choosing.tolist()),
        fold_of=None if data.fold_of is None else data.fold_of[kept(data.train)],
    )


def drawn_rows(replayed: int, rows: int, training: TrainingSection) -> NDArray[np.int64]:
    """The rows of an epoch where a run is trained further; the first ``replayed`` of all are earlier ones.

    ``training.growing_rows`` in all, ``training.new_share`` of which are new ones, each as often as others.
    Where there are more new ones, each comes once, with as many earlier ones as make the same share, but at
    most three times as many: it stays short. Earlier rows are drawn without repetition while there are any,
    and are not repeated more often than new ones.
    """
    generator, new = np.random.default_rng([training.seed, rows]), rows - replayed
    share = training.new_share
    of_new = max(new, round(share * training.growing_rows)) if new else 0
    repeats = max(1, of_new // max(1, new))
    fewest = training.growing_rows - of_new
    of_earlier = min(round(of_new * (1 - share) / share), max(fewest, _EARLIER_A_NEW_ONE * of_new))
    of_earlier = min(of_earlier if new else fewest, repeats * replayed)
    parts = [
        first + _drawn(generator, count, wanted)
        for first, count, wanted in ((0, replayed, of_earlier), (replayed, new, of_new))
        if count
    ]
    return np.concatenate(parts)


def _drawn(generator: np.random.Generator, count: int, wanted: int) -> NDArray[np.int64]:
    """``wanted`` numbers below ``count``, each as often as any other, give or take one."""
    whole, rest = divmod(wanted, count)
    return np.concatenate([np.tile(np.arange(count), whole), generator.permutation(count)[:rest]])


def require_fresh(recipe: Recipe, what: str) -> None:
    """Raise UserError where a recipe goes on from a run; ``what`` begins the sentence."""
    if recipe.training.start_from is not None:
        raise UserError(
            f"{what} cannot go on from a run",
            found=f"training.start_from = {recipe.training.start_from!r}",
            fix="leave it out",
        )
