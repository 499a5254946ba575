"""A recipe to a run: loads what it names, lets the loop train, and keeps what it leaves in one folder."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from newsdesk import __version__
from newsdesk.config import SECTIONS, Recipe, ResolvedRecipe, changed_values, load_recipe
from newsdesk.data.duplicates import KnownTexts
from newsdesk.data.load import TrainingData, load_training_data
from newsdesk.data.table import Table
from newsdesk.data.vocabulary import VocabularyFit
from newsdesk.data.words import language_of
from newsdesk.errors import UserError
from newsdesk.files import sha256_of, write_bytes
from newsdesk.hub.cache import cache_folder
from newsdesk.model.architectures import require_length, vocabulary_of
from newsdesk.model.catalog import resolve_base
from newsdesk.model.classifier import AdapterStore, build_classifier, copy_tokenizer
from newsdesk.model.encoder import keep_freed_memory
from newsdesk.model.network import Network, choose_precision
from newsdesk.model.tokenizer import Encoded, TextTokenizer
from newsdesk.model.windows import LongTexts
from newsdesk.progress import Progress, silent
from newsdesk.runs.folder import (
    FOLDS,
    RunFolder,
    in_use,
    put_in_place,
    require_free,
    resumable,
    staged,
    working_folder,
)
from newsdesk.runs.labels import Labels
from newsdesk.runs.log import (
    Event,
    EventLog,
    Finished,
    Interrupted,
    Remark,
    Resumed,
    Started,
    Step,
    Validation,
)
from newsdesk.runs.manifest import (
    SPLIT_OFF,
    DataFacts,
    Manifest,
    RowFacts,
    TrainingFacts,
    base_facts,
    installed_versions,
)
from newsdesk.training import interruptible, restarted
from newsdesk.training.batches import Schedule
from newsdesk.training.checkpoints import Checkpoints, decode
from newsdesk.training.distributed import Team, gathered
from newsdesk.training.fitted import keep_fitted
from newsdesk.training.folds import KeepLogits, OutOfFold, cross_validated, of_one_fold, section_of
from newsdesk.training.growing import Start, require_fresh
from newsdesk.training.held_out import remarks_on_rows
from newsdesk.training.learning_curve import frozen_features, remark_on_more_rows
from newsdesk.training.linear_baseline import remark_on_baseline
from newsdesk.training.loop import EncodedRows, TrainingLoop
from newsdesk.training.start import start_fitted
from newsdesk.training.train_step import explaining_memory
from newsdesk.training.unlabelled import rows_to_learn

if TYPE_CHECKING:
    from peft import PeftModel

Observer = Callable[[Event], None]

_SECONDS_BETWEEN_CHECKPOINTS = 60.0


def run_training(
    resolved: ResolvedRecipe,
    out: Path,
    *,
    observe: Observer = lambda _event: None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    tables: tuple[Table, Table | None] | None = None,
    part: OneOfMany | None = None,
) -> RunFolder:
    """Train as the recipe says and leave a self-describing run folder at ``out``.

    Ctrl-C or SIGTERM ends training after the current step with a checkpoint and a run of the best state so
    far, which can be resumed. A second one breaks off at once; the last checkpoint is resumed then. Under
    torchrun the processes train together; the first one alone logs, observes and writes.

    Args:
        resolved: the recipe.
        out: the folder to write.
        observe: called with every event of the loop, after it was logged.
        overwrite: replace a run that is already at ``out``, once the new one has finished: until then that
            one stays as it is, and the new one is written to a folder inside of it.
        resume: continue the run at ``out`` where it was interrupted or killed; begin where there is none, and
            leave a complete one as it is. A process that torchrun restarted always does.
        progress: called while base model and data are fetched.
        tables: training and validation rows that a program gives instead of naming files.
        part: what a training is given that is one of many on the same rows.

    Raises:
        UserError: for what recipe, data or machine do not allow; before the first step nothing is changed.
    """
    resume = resume or restarted()
    with ExitStack() as stack:
        team, device = stack.enter_context(gathered(resolved.recipe.training.device))
        begun = _begun(out, resolved, overwrite=overwrite) if team.leads and resume else None
        if begun is not None:
            _require_same_recipe(begun, resolved)
        elif team.leads:
            require_free(out, overwrite=overwrite)
        if team.any(begun is not None and _came_to_its_end(begun)):
            return RunFolder(out) if begun is None else put_in_place(begun, out)
        run = RunFolder(out)
        if team.leads:
            run = begun or working_folder(out, overwrite=overwrite)
            stack.enter_context(in_use(out))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        training = _Training(run, resolved, team, device, scratch, progress, tables, part, begun)
        resumed = training.restore_or_begin(resume=resume)
        with interruptible() as stopped, explaining_memory(resolved.recipe.training, resolved.recipe.model):
            if not team.leads:  # trains along with the lead, which alone logs and writes
                deque(training.loop.events(stopped), maxlen=0)
                return run
            finished = training.lead(stopped, observe, resumed)
        run.seal(training.manifest(finished))
        if finished.reason == "interrupted":
            return run
        training.checkpoints.clear()
        shutil.rmtree(run.path / FOLDS, ignore_errors=True)
        return put_in_place(run, out)


@dataclass(frozen=True)
class OneOfMany:
    """What a training is given that is one of many on the same rows, as those of a sweep are.

    Attributes:
        data: the rows that its recipe names, read and split once for all.
        at_end: called with the loop that came to its own end, before the run is complete, and with what the
            run says of all validation rows, logits (rows, classes).
        at_validation: called with the step and such logits of every state that is validated and kept so far.
        off_topic: whether to fit an off-topic score, which only a run needs that is used: newsdesk calibrate
            does it later.
    """

    data: TrainingData
    at_end: Callable[[TrainingLoop, NDArray[np.float32] | None], None] = lambda _loop, _answers: None
    at_validation: KeepLogits = lambda _step, _logits: None
    off_topic: bool = False


class _Training:
    """All that one training needs, ready for the first step; nothing is written before it begins."""

    answers: NDArray[np.float32] | None = None
    out_of_fold: OutOfFold | None = None
    advice: tuple[str, ...] = ()

    def __init__(
        self,
        run: RunFolder,
        resolved: ResolvedRecipe,
        team: Team,
        device: torch.device,
        scratch: Path,
        progress: Progress | None,
        tables: tuple[Table, Table | None] | None,
        part: OneOfMany | None,
        begun: RunFolder | None = None,
    ) -> None:
        """Load data and base, build the model, and encode the rows."""
        recipe, seed = resolved.recipe, resolved.recipe.training.seed
        precision = choose_precision(recipe.training.precision, device)
        self.run, self.resolved, self.team, self.part = run, resolved, team, part
        self.progress = progress
        if part is not None:
            require_fresh(recipe, "one of many trainings on the same rows")
        self.start = Start.of_recipe(recipe, progress)
        self.data = self._rows(tables, begun) if part is None else part.data
        self.base = resolve_base(recipe.model.base, progress=progress)
        keep_freed_memory()
        seed_everything(seed)
        train, validation, model = self.data.train, self.data.validation, self._model()
        require_length(model.config, recipe.model.max_length)
        self.tokenizer_files = scratch / "tokenizer"
        copy_tokenizer(self.base.path, self.tokenizer_files)
        tokenizer = TextTokenizer.of_recipe(
            self.tokenizer_files, recipe.model, vocabulary=vocabulary_of(model.config)
        )
        self.store = AdapterStore(model, self.base.reference)
        encoded, held_out = tokenizer.encode_whole(train.texts), tokenizer.encode_whole(validation.texts)
        self.readable, self.special = held_out.readable, (tokenizer.opening, len(tokenizer.closing_ids))
        compiled = recipe.training.compile == "on"
        network = Network(model, device, precision, tokenizer.windows, compiled=compiled)
        rows, remarks = rows_to_learn(self.data, encoded.ids, tokenizer, network, self.base.path)
        drawn = None if self.start is None else self.start.begin(network, encoded.ids, self.data, recipe)
        self.loop = TrainingLoop(
            *(network, rows, EncodedRows(held_out.ids, validation.truth()), recipe.training),
            max_length=recipe.model.max_length,
            team=team,
            drawn=drawn,
        )
        if recipe.training.compile == "off" and self.base.sha256 is not None:
            base = f"{self.base.sha256} {sha256_of(self.base.path / 'config.json')}"
            texts = [*rows.token_ids, *held_out.ids]
            network.keep_trunk(texts, cache_folder() / "trunk", base, progress)
        if recipe.training.start == "fitted" and self.start is None:
            remarks += start_fitted(network, rows, seed=seed)
            team.copy_from_lead(self.loop.trained)
        vocabulary = tokenizer.fit(train.texts)
        self.unknown_tokens = vocabulary.unknown
        self.remarks = self._remarks(encoded, vocabulary, progress) + remarks
        self.features = frozen_features(self.loop, len(train)) if self.data.folds else None
        self.identity = self._identity()
        size, values = sum(each.nbytes for each in self.loop.trained), _recipe_values(recipe)
        self.checkpoints = Checkpoints(run.checkpoints, self.identity, values, trained_bytes=size)
        self.log_bytes = 0

    def _model(self) -> PeftModel:
        """The base with fresh adapters and head, or with those of the run that it goes on from."""
        names, recipe = self.data.train.label_names, self.resolved.recipe
        if self.start is None:
            return build_classifier(self.base.path, names, recipe.model, recipe.lora)
        return self.start.classifier(self.base, names, recipe.model)

    def _identity(self) -> dict[str, str]:
        """Hashes of all that has to be the same when it is resumed."""
        identity = {
            "training rows": self.data.fingerprint(),
            "validation rows": self.data.validation.fingerprint(),
            "base model": str(self.base.sha256),
            "base model's config.json": sha256_of(self.base.path / "config.json"),
            "tokenizer": sha256_of(self.tokenizer_files / "tokenizer.json"),
        }
        return identity if self.start is None else {**identity, "start": self.start.sha256}

    def _rows(self, tables: tuple[Table, Table | None] | None, begun: RunFolder | None) -> TrainingData:
        """The rows that the recipe names, or a program gives; ``begun`` is the training to resume."""
        recipe = self.resolved.recipe
        data = section_of(recipe, self.team.size, begun)
        earlier = None if self.start is None else self.start.earlier
        return load_training_data(
            data, seed=recipe.training.seed, progress=self.progress, tables=tables, earlier=earlier
        )

    def _remarks(
        self, encoded: Encoded, vocabulary: VocabularyFit, progress: Progress | None
    ) -> tuple[str, ...]:
        """What to know before the first step: of the rows, and what a linear model makes of them."""
        recipe, data, held_out = self.resolved.recipe, self.data, self.loop.held_out
        schedule, training = self.loop.schedule, recipe.training
        remarks = remarks_on_rows(data, encoded, vocabulary, schedule, training, recipe.model)
        if training.baseline and self.team.leads:
            measured = data.validation.select(held_out.measured)
            baseline = remark_on_baseline(data.train, measured, seed=training.seed, progress=progress)
            remarks += [] if baseline is None else [baseline]
        return tuple(remarks)

    def restore_or_begin(self, *, resume: bool) -> Resumed | None:
        """Restore the loop from the newest whole checkpoint, or lay out a new run; the event to log."""
        run, loop = self.run, self.loop
        content, passed_over = b"", tuple[str, ...]()
        if self.team.leads and resume:
            content, passed_over = self.checkpoints.find()
        content = self.team.bytes_from_lead(content)
        names, task, model = self.data.train.label_names, self.data.train.task, self.resolved.recipe.model
        read = LongTexts.of(model)
        labels = Labels(names, self.data.layout, model.max_length, task=task, long_texts=read)
        if content:
            try:
                checkpoint = decode(content)
                self.checkpoints.require_same_ground(checkpoint)
                loop.restore(checkpoint.snapshot)
            except ValueError as error:
                raise self.checkpoints.unusable(str(error)) from None
            self.log_bytes = checkpoint.log_bytes
            if self.team.leads:
                run.reopen()
                # Whatever was made of them meanwhile: the run is of these.
                run.write_labels(labels)
                for file in self.tokenizer_files.iterdir():
                    write_bytes(run.tokenizer / file.name, file.read_bytes())
            return Resumed(loop.step, loop.epoch, passed_over)
        if self.team.leads:
            with staged(run.path) as new:
                new.write_recipe(self.resolved.to_toml())
                new.write_labels(labels)
                shutil.copytree(self.tokenizer_files, new.tokenizer)
        return Resumed(0, 0.0, passed_over) if passed_over else None

    def cross_validate(self) -> None:
        """Train the folds, or what is left of that, and let the training on all rows keep the state they say.

        Raises UserError where one is interrupted.
        """
        loop, folds, progress = self.loop, self.data.folds, self.progress or silent
        recipe = self.resolved.recipe
        of_fold = of_one_fold(recipe, len(self.data.train))

        def train_fold(fold: int, data: TrainingData, folder: Path, keep: KeepLogits) -> RunFolder:
            what = f"cross-validating: fold {fold + 1} of {folds}"

            def show(event: Event) -> None:
                if isinstance(event, Started | Step):
                    progress(event.step if isinstance(event, Step) else 0, schedule.total, what, "rows")

            schedule = Schedule.of(len(data.train), of_fold.recipe.training)
            part = OneOfMany(data, at_validation=keep, off_topic=True)
            return run_training(of_fold, folder, observe=show, resume=True, part=part)

        identity = json.dumps([_recipe_values(recipe), self.identity], sort_keys=True)
        found = cross_validated(self.data, self.run.path / FOLDS, identity, train_fold)
        if found is None:
            raise UserError(
                "the training was interrupted while it was cross-validated",
                found=f"what was trained so far is kept in {self.run.path}",
                fix=f"continue it with newsdesk train --out {self.run.path} --resume",
            )
        self.out_of_fold, loop.end = found, max(1, round(found.kept * loop.steps))
        self.remarks += (found.remark(),)
        if self.features is not None:
            self.advice = (remark_on_more_rows(self.features, found, self.data.train.label_names),)

    def lead(self, stopped: Callable[[], bool], observe: Observer, resumed: Resumed | None) -> Finished:
        """Let the loop train; keep its best states, its events, and from time to time a checkpoint.

        Rows that are to be cross-validated are so first.
        """
        if self.data.folds:
            self.cross_validate()
        loop, last_checkpoint = self.loop, time.monotonic()
        before: list[Event] = [] if resumed is None else [resumed]
        if not loop.step:  # else the log has them
            before += map(Remark, self.remarks)
            if self.out_of_fold is not None:
                before += self.out_of_fold.validations(loop.steps, loop.schedule.per_epoch)
        with EventLog(self.run.log, keep=self.log_bytes) as log:
            for event in loop.events(stopped):
                if self.part is not None and isinstance(event, Validation) and loop.best_logits is not None:
                    self.part.at_validation(event.step, loop.best_logits)
                if isinstance(event, Finished) or (isinstance(event, Validation) and event.best):
                    self.store.save(self.run.adapter)
                events: list[Event] = [event]
                if isinstance(event, Finished):
                    known = KnownTexts.of(self.data.learned_texts, self.data.validation.texts)
                    known = known if self.start is None else known.joined(self.start.earlier.texts)
                    known.save(self.run.path)
                    # Who interrupts will not wait for the rest.
                    in_full = event.reason != "interrupted"
                    remarks, self.answers = keep_fitted(
                        *(self.run, self.data, loop, self.resolved.recipe),
                        special=self.special,
                        readable=self.readable,
                        out_of_fold=self.out_of_fold,
                        linear=in_full,
                        off_topic=in_full and (self.part is None or self.part.off_topic),
                    )
                    if in_full:
                        self.remarks += self.advice
                        remarks += map(Remark, self.advice)
                    events = [*remarks, event]
                elif isinstance(event, Started):
                    started = replace(event, read_as=self.data.read_as, folds=self.data.folds)
                    events = [started, *before]
                for each in events:
                    log.write(each)
                    observe(each)
                if _checkpoint_is_due(event, loop, time.monotonic() - last_checkpoint):
                    self.checkpoints.save(loop.snapshot(), log.secure())
                    last_checkpoint = time.monotonic()
        assert isinstance(event, Finished)
        if self.part is not None and event.reason != "interrupted":
            self.part.at_end(loop, self.answers)
        return event

    def manifest(self, finished: Finished) -> Manifest:
        """What the manifest says besides the files' hashes."""
        data, recipe = self.data, self.resolved.recipe
        validation_source = recipe.data.validation or f"{SPLIT_OFF}{recipe.data.train}"
        return Manifest(
            newsdesk=__version__,
            versions=installed_versions(),
            base=base_facts(self.base),
            description=recipe.description,
            seed=recipe.training.seed,
            grown=None if self.start is None else self.start.facts(data.replayed or 0),
            data=DataFacts(
                licence=data.licence,
                language=language_of(data.train.texts),
                unknown_tokens=round(self.unknown_tokens, 5),
                train=RowFacts(recipe.data.train, len(data.train), data.train.fingerprint()),
                validation=RowFacts(validation_source, len(data.validation), data.validation.fingerprint()),
            ),
            training=TrainingFacts(
                finished=finished.reason,
                steps=finished.step,
                epochs=round(finished.epoch, 4),
                best_step=finished.best_step,
                padding_share=round(finished.padding_share, 5),
                processes=self.team.size,
                choosing_rows=len(self.loop.held_out.choosing),
                folds=data.folds,
                remarks=self.remarks,
            ),
        )


def _checkpoint_is_due(event: Event, loop: TrainingLoop, seconds: float) -> bool:
    """After validation, before an interruption, and between them as often as the recipe says."""
    if not isinstance(event, Step):
        return isinstance(event, Validation | Interrupted)
    if event.step != loop.step:  # steps read together: the state is already that of the last of them
        return False
    every = loop.training.checkpoint_every
    if every is None:
        return seconds >= _SECONDS_BETWEEN_CHECKPOINTS
    return loop.falls_on(every)


_PLACES = ("data.train", "data.validation", "model.base", "training.start_from")
"""What may be named otherwise when a training is resumed: the same bytes are still required."""


def _recipe_values(recipe: Recipe) -> dict[str, Any]:
    """What a training goes by, dotted keys and JSON values, without the places of data and base."""
    sections = {section: getattr(recipe, section).model_dump(mode="json") for section in SECTIONS}
    dotted = {f"{section}.{key}": value for section, of in sections.items() for key, value in of.items()}
    return {key: value for key, value in dotted.items() if key not in _PLACES}


def _came_to_its_end(run: RunFolder) -> bool:
    """Whether nothing is left to train. Raises UserError for a run that was never trained here."""
    if run.is_complete() and run.manifest.training is None:
        raise UserError(
            f"{run.path} was imported, not trained by newsdesk",
            found="a manifest without a training",
            fix="choose another folder with --out",
        )
    return run.is_complete()


def _begun(out: Path, asked: ResolvedRecipe, *, overwrite: bool) -> RunFolder | None:
    """The training to resume.

    With ``overwrite`` a process that torchrun restarted takes the run at ``out`` for the one to be replaced,
    unless that is unfinished and by the recipe asked for.
    """
    found = resumable(out)
    if found is None or found.path != out or not overwrite:
        return found
    return None if found.is_complete() or _changed_settings(found, asked) else found


def _changed_settings(run: RunFolder, asked: ResolvedRecipe) -> list[str]:
    """What the run was started with and what is asked for instead, a line each."""
    return changed_values(load_recipe(str(run.recipe)).recipe, asked.recipe)


def _require_same_recipe(run: RunFolder, asked: ResolvedRecipe) -> None:
    if run.is_complete() and run.manifest.files.get(run.recipe.name) != sha256_of(run.recipe):
        raise UserError(
            f"{run.recipe} was changed after the training had come to its end",
            found="another sha256 than in manifest.json",
            fix="put the original back; to train by the changed one, give it to --recipe with another --out",
        )
    if changed := _changed_settings(run, asked):
        raise UserError(
            f"{run.path} was started with another recipe, and can only be resumed with its own",
            found="\n       ".join(changed),
            fix="leave out all flags but --out and --resume, or start over with --overwrite",
        )


def seed_everything(seed: int) -> None:
    """Seed the random states that training draws from: Python's, numpy's and torch's on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
