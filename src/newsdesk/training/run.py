"""A recipe to a run: loads what it names, lets the loop train, and keeps what it leaves in one folder."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from newsdesk import __version__
from newsdesk.config import ResolvedRecipe, load_recipe
from newsdesk.data.duplicates import KnownTexts
from newsdesk.data.examples import Examples
from newsdesk.data.load import TrainingData, load_training_data
from newsdesk.data.table import Table
from newsdesk.data.words import language_of
from newsdesk.errors import UserError, counted
from newsdesk.model.architectures import require_length
from newsdesk.model.catalog import ResolvedBase, resolve_base
from newsdesk.model.classifier import AdapterStore, build_classifier, copy_tokenizer
from newsdesk.model.encoder import keep_freed_memory
from newsdesk.model.network import Network, choose_precision, predict_with_features
from newsdesk.model.tokenizer import TextTokenizer, TokenIds
from newsdesk.progress import Progress
from newsdesk.runs.calibration import HeldOutRows, store_calibration, store_distances
from newsdesk.runs.folder import Labels, RunFolder
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
    hub_reference,
    installed_versions,
)
from newsdesk.runs.off_topic import off_topic_score
from newsdesk.runs.replacing import (
    in_use,
    put_in_place,
    require_free,
    resumable,
    staged,
    working_folder,
)
from newsdesk.training.checkpoints import Checkpoints, decode
from newsdesk.training.distributed import Team, gathered
from newsdesk.training.held_out import remarks_on_rows
from newsdesk.training.launch import restarted
from newsdesk.training.loop import EncodedRows, TrainingLoop
from newsdesk.training.train_step import explaining_memory

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
) -> RunFolder:
    """Train as the recipe says and leave a self-describing run folder at ``out``.

    Ctrl-C (SIGINT) or SIGTERM ends training after the current step with a checkpoint; the run is then
    finished with the best state so far, and can be resumed. A second one breaks off at once and leaves an
    unfinished folder, which can be resumed from its last checkpoint.

    Under torchrun the processes train together; the first one alone logs, observes and writes.

    Args:
        resolved: the recipe and where its values came from.
        out: the folder to write.
        observe: called with every event of the loop, after it was logged.
        overwrite: replace a run that is already at ``out``, once the new one has finished: until then that
            one stays as it is, and the new one is written to a folder inside of it.
        resume: go on with the run at ``out`` where it was interrupted or killed; begin where there is none,
            and leave a complete one as it is. A process that torchrun started anew always does.
        progress: called while base model and data are fetched.
        tables: training and validation rows that a program gives instead of naming files.

    Raises:
        UserError: for anything that the recipe, the data or the machine does not allow. What is wrong
            before the first step leaves ``out`` as it was.
    """
    resume = resume or restarted()
    with ExitStack() as stack:
        team, device = stack.enter_context(gathered(resolved.recipe.training.device))
        begun = _begun(out, resolved, overwrite=overwrite) if team.leads and resume else None
        if team.leads and begun is None:
            require_free(out, overwrite=overwrite)
        if team.any(begun is not None and _came_to_its_end(begun)):
            return RunFolder(out) if begun is None else put_in_place(begun, out)
        run = RunFolder(out)
        if team.leads:
            if begun is not None:
                _require_same_recipe(begun, resolved)
            run = begun or working_folder(out, overwrite=overwrite)
            stack.enter_context(in_use(out))
        prepared = _prepare(resolved, team, device, stack, progress, tables)
        checkpoints, log_bytes, resumed = _go_on_or_begin(run, prepared, resolved, team, resume=resume)
        if not team.leads:
            _follow(prepared.loop)
            return run
        with EventLog(run.log, keep=log_bytes) as log:
            finished = _lead(run, prepared, checkpoints, log, observe, resumed)
        run.seal(_manifest(resolved, prepared, finished, team))
        if finished.reason == "interrupted":
            return run
        checkpoints.clear()
        return put_in_place(run, out)


@dataclass(frozen=True)
class _Prepared:
    """All that a training needs, ready for the first step."""

    data: TrainingData
    base: ResolvedBase
    tokenizer_files: Path
    store: AdapterStore
    loop: TrainingLoop
    readable: NDArray[np.bool_]
    unknown_tokens: float
    remarks: tuple[str, ...]

    @property
    def identity(self) -> dict[str, str]:
        """What has to be the same for a training to go on, by name, as hashes."""
        return {
            "training rows": self.data.train.fingerprint(),
            "validation rows": self.data.validation.fingerprint(),
            "base model": str(self.base.sha256),
        }


def _prepare(
    resolved: ResolvedRecipe,
    team: Team,
    device: torch.device,
    stack: ExitStack,
    progress: Progress | None,
    tables: tuple[Table, Table | None] | None,
) -> _Prepared:
    """Load data and base, build the model, and encode the rows; writes nothing that outlives ``stack``."""
    recipe = resolved.recipe
    precision = choose_precision(recipe.training.precision, device)
    data = load_training_data(recipe.data, seed=recipe.training.seed, progress=progress, tables=tables)
    base = resolve_base(recipe.model.base, progress=progress)
    keep_freed_memory()
    seed_everything(recipe.training.seed)
    model = build_classifier(base.path, data.train.label_names, recipe.model, recipe.lora)
    require_length(model.config, recipe.model.max_length)
    tokenizer_files = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tokenizer"
    copy_tokenizer(base.path, tokenizer_files)
    tokenizer = TextTokenizer.from_folder(tokenizer_files, recipe.model.max_length)
    store = AdapterStore(model, hub_reference(base))
    encoded, validation = (tokenizer.encode_whole(part.texts) for part in (data.train, data.validation))
    loop = TrainingLoop(
        Network(model, device, precision, compiled=recipe.training.compile == "on"),
        EncodedRows(encoded.ids, class_ids(data.train)),
        EncodedRows(validation.ids, class_ids(data.validation)),
        recipe.training,
        max_length=recipe.model.max_length,
        team=team,
    )
    vocabulary = tokenizer.fit(data.train.texts)
    return _Prepared(
        data,
        base,
        tokenizer_files,
        store,
        loop,
        validation.readable,
        vocabulary.unknown,
        tuple(remarks_on_rows(data, encoded, vocabulary, recipe.training, recipe.model)),
    )


def _go_on_or_begin(
    run: RunFolder, prepared: _Prepared, resolved: ResolvedRecipe, team: Team, *, resume: bool
) -> tuple[Checkpoints, int, Resumed | None]:
    """Restore the loop from the run's newest whole checkpoint, or lay out a new run.

    Returns the checkpoints, the bytes of the log that still hold, and the event to tell.
    """
    checkpoints, loop = Checkpoints(run.checkpoints, prepared.identity), prepared.loop
    passed_over: tuple[str, ...] = ()
    content = b""
    if team.leads and resume:
        found = checkpoints.find()
        content, passed_over = found.content, found.passed_over
    content = team.bytes_from_lead(content)
    if content:
        checkpoint = decode(content)
        checkpoints.require_same_ground(checkpoint)
        loop.restore(checkpoint.snapshot)
        if team.leads:
            run.reopen()
        return checkpoints, checkpoint.log_bytes, Resumed(loop.step, loop.step / loop.per_epoch, passed_over)
    if team.leads:
        with staged(run.path) as new:
            data, max_length = prepared.data, resolved.recipe.model.max_length
            new.write_recipe(resolved.to_toml())
            new.write_labels(Labels(data.train.label_names, data.layout, max_length))
            shutil.copytree(prepared.tokenizer_files, new.tokenizer)
    return checkpoints, 0, Resumed(0, 0.0, passed_over) if passed_over else None


def _lead(
    run: RunFolder,
    prepared: _Prepared,
    checkpoints: Checkpoints,
    log: EventLog,
    observe: Observer,
    resumed: Resumed | None,
) -> Finished:
    """Let the loop train; keep its best states, its events, and from time to time a checkpoint."""
    loop, last_checkpoint = prepared.loop, time.monotonic()

    def tell(event: Event) -> None:
        if isinstance(event, Started):
            event = replace(event, read_as=prepared.data.read_as)
        log.write(event)
        observe(event)

    with interruptible() as stopped, explaining_memory(loop.training):
        for event in loop.events(stopped):
            if (isinstance(event, Validation) and event.best) or isinstance(event, Finished):
                prepared.store.save(run.adapter)
            if isinstance(event, Finished):
                _keep_calibration(run, prepared)
                KnownTexts.of(prepared.data.train.texts, prepared.data.validation.texts).save(run.path)
            if isinstance(event, Finished) and event.reason != "interrupted":  # who interrupts will not wait
                _keep_off_topic_score(run, loop)
            tell(event)
            if isinstance(event, Started):
                if resumed is not None:
                    tell(resumed)
                for remark in prepared.remarks if not loop.step else ():  # else the log has them
                    tell(Remark(remark))
            if _checkpoint_is_due(event, loop, time.monotonic() - last_checkpoint):
                checkpoints.save(loop.snapshot(), log.secure())
                last_checkpoint = time.monotonic()
    assert isinstance(event, Finished)
    return event


def _keep_off_topic_score(run: RunFolder, loop: TrainingLoop) -> None:
    """Fit on the kept state how foreign a text is to it; needs validation rows."""

    def features_of(sequences: Sequence[TokenIds]) -> NDArray[np.float32]:
        batch_size = 2 * loop.training.batch_size
        return predict_with_features(loop.network, sequences, batch_size=batch_size)[1]

    with explaining_memory(loop.training):
        held_out = [loop.validation.token_ids[row] for row in loop.held_out.calibrating]
        found = off_topic_score(features_of, loop.rows.token_ids, loop.rows.labels, held_out)
    if found is not None:
        score, distances = found
        score.save(run.off_topic)
        store_distances(run.path, distances)


def _keep_calibration(run: RunFolder, prepared: _Prepared) -> None:
    """Fit a temperature on what the kept state says of validation rows that it was not chosen by."""
    loop = prepared.loop
    if loop.best_logits is None:
        return
    calibrating, choosing = loop.held_out.calibrating, len(loop.held_out.choosing)
    rows = prepared.data.validation.select(calibrating)
    others = f", not those {choosing:,} that chose the state" if choosing else ""
    source = (
        f"{counted(len(rows), 'validation row')} of {rows.source}{others}, "
        f"computed in {loop.network.precision}"
    )
    held_out = HeldOutRows(
        loop.best_logits[calibrating],
        class_ids(rows),
        rows.fingerprint(),
        readable=prepared.readable[calibrating],
    )
    store_calibration(run.path, held_out, source)


def _follow(loop: TrainingLoop) -> None:
    """Train along with the lead, which alone tells and writes."""
    with interruptible() as stopped, explaining_memory(loop.training):
        for _event in loop.events(stopped):
            pass


def _checkpoint_is_due(event: Event, loop: TrainingLoop, seconds: float) -> bool:
    """After validation, before an interruption, and between them as often as the recipe says."""
    if not isinstance(event, Step):
        return isinstance(event, Validation | Interrupted)
    if event.step != loop.step:  # steps told together: the state is already that of the last of them
        return False
    every = loop.training.checkpoint_every
    if every is None:
        return seconds >= _SECONDS_BETWEEN_CHECKPOINTS
    return loop.falls_on(every)


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
    """The training that goes on.

    With ``overwrite`` a process that torchrun started anew takes the run at ``out`` for the one to be
    replaced, unless that is unfinished and by the recipe asked for.
    """
    found = resumable(out)
    if found is None or found.path != out or not overwrite:
        return found
    return None if found.is_complete() or _changed_settings(found, asked) else found


def _changed_settings(run: RunFolder, asked: ResolvedRecipe) -> list[str]:
    """What the run was started with and what is asked for instead, a line each."""
    began = load_recipe(str(run.recipe)).recipe.model_dump()
    now = asked.recipe.model_dump()
    return [
        f"{section}.{key} = {value!r}, asked for {now[section][key]!r}"
        for section in began
        if isinstance(began[section], dict)
        for key, value in began[section].items()
        if now[section][key] != value
    ]


def _require_same_recipe(run: RunFolder, asked: ResolvedRecipe) -> None:
    """Raise UserError when the recipe asked for is not the one that the run was started with."""
    if changed := _changed_settings(run, asked):
        raise UserError(
            f"{run.path} was started with another recipe, and can only go on as it began",
            found="\n       ".join(changed),
            fix="leave out all flags but --out and --resume, or begin anew with --overwrite",
        )


def class_ids(examples: Examples) -> NDArray[np.int64]:
    """The class ids of labelled examples, (rows,). Raises ValueError for unlabelled ones."""
    if examples.labels is None:
        raise ValueError("training rows carry labels")
    return examples.labels


def seed_everything(seed: int) -> None:
    """Seed the random states that training draws from: Python's, numpy's and torch's on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _manifest(resolved: ResolvedRecipe, prepared: _Prepared, finished: Finished, team: Team) -> Manifest:
    """What the manifest says besides the files' hashes."""
    data, train_source = prepared.data, resolved.recipe.data.train
    validation_source = resolved.recipe.data.validation or f"{SPLIT_OFF}{train_source}"
    return Manifest(
        newsdesk=__version__,
        versions=installed_versions(),
        base=base_facts(prepared.base),
        description=resolved.recipe.description,
        seed=resolved.recipe.training.seed,
        data=DataFacts(
            licence=data.licence,
            language=language_of(data.train.texts),
            unknown_tokens=round(prepared.unknown_tokens, 5),
            train=_row_facts(data.train, train_source),
            validation=_row_facts(data.validation, validation_source),
        ),
        training=TrainingFacts(
            finished=finished.reason,
            steps=finished.step,
            epochs=round(finished.epoch, 4),
            best_step=finished.best_step,
            padding_share=round(finished.padding_share, 5),
            processes=team.size,
            choosing_rows=len(prepared.loop.held_out.choosing),
            remarks=prepared.remarks,
        ),
    )


def _row_facts(examples: Examples, source: str) -> RowFacts:
    return RowFacts(source, len(examples), examples.fingerprint())


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into an answer True; a second one breaks off as if nobody listened."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only it may handle signals
        yield requested.is_set
        return

    def request(_number: int, _frame: object) -> None:
        requested.set()
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield requested.is_set
    finally:
        restore()
