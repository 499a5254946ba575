"""A recipe to a run: loads what it names, lets the loop train, and keeps what it leaves in one folder."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from newsdesk.config import ResolvedRecipe
from newsdesk.data.examples import Examples
from newsdesk.data.load import TrainingData, load_training_data
from newsdesk.errors import UserError
from newsdesk.model.catalog import ResolvedBase, resolve_base
from newsdesk.model.classifier import AdapterStore, build_classifier, copy_tokenizer
from newsdesk.model.device import choose_device, choose_precision
from newsdesk.model.encoder import keep_freed_memory
from newsdesk.model.network import Network
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.sources.source import Progress
from newsdesk.training.events import Event, Finished, Validation
from newsdesk.training.log import EventLog
from newsdesk.training.loop import EncodedRows, train
from newsdesk.training.provenance import hub_reference, software_and_base
from newsdesk.training.run_folder import Labels, RunFolder, require_free, staged

Observer = Callable[[Event], None]


def run_training(
    resolved: ResolvedRecipe,
    out: Path,
    *,
    observe: Observer = lambda _event: None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Train as the recipe says and leave a self-describing run folder at ``out``.

    Ctrl-C (SIGINT) ends training after the current step; the run is then finished with the best state so
    far. A second one breaks off at once and leaves an unfinished folder.

    Args:
        resolved: the recipe and where its values came from.
        out: the folder to write.
        observe: called with every event of the loop, after it was logged.
        overwrite: replace a run that is already at ``out``, once all is ready to train.
        progress: called while base model and data are fetched.

    Raises:
        UserError: for anything that the recipe, the data or the machine does not allow. What is wrong
            before the first step leaves ``out`` as it was.
    """
    recipe = resolved.recipe
    require_free(out, overwrite=overwrite)
    device = choose_device(recipe.training.device)
    precision = choose_precision(recipe.training.precision, device)
    data = load_training_data(recipe.data, seed=recipe.training.seed, progress=progress)
    base = resolve_base(recipe.model.base, progress=progress)

    keep_freed_memory()
    seed_everything(recipe.training.seed)
    model = build_classifier(base.path, data.train.label_names, recipe.model, recipe.lora)
    require_length(model.config, recipe.model.max_length)
    store = AdapterStore(model, hub_reference(base))
    network = Network(model, device, precision)
    run = RunFolder(out)
    with staged(out) as prepared:
        prepared.write_recipe(resolved.to_toml())
        prepared.write_labels(Labels(data.train.label_names, data.layout, recipe.model.max_length))
        copy_tokenizer(base.path, prepared.tokenizer)
        tokenizer = TextTokenizer.from_folder(prepared.tokenizer, recipe.model.max_length)
    with _interruptible() as stopped, EventLog(run.log) as log:
        for event in train(
            network,
            encode_rows(tokenizer, data.train),
            encode_rows(tokenizer, data.validation),
            recipe.training,
            max_length=recipe.model.max_length,
            stopped=stopped,
        ):
            if (isinstance(event, Validation) and event.best) or isinstance(event, Finished):
                store.save(run.adapter)
            log.write(event)
            observe(event)
            finished = event
    run.seal(_facts(resolved, data, base, finished))
    return run


def encode_rows(tokenizer: TextTokenizer, examples: Examples) -> EncodedRows:
    """Token ids and class ids of labelled examples."""
    if examples.labels is None:
        raise ValueError("training rows carry labels")
    return EncodedRows(tokenizer.encode(examples.texts), examples.labels)


def seed_everything(seed: int) -> None:
    """Seed the random states that training draws from: Python's, numpy's and torch's on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def require_length(config: Any, max_length: int) -> None:
    """Raise UserError when the encoder has fewer positions than ``max_length`` tokens need."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return
    # RoBERTa and MPNet count positions from behind the padding's, so the first ones are never used.
    offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_POSITIONS else 0
    if max_length > positions - offset:
        raise UserError(
            f"the base model reads at most {positions - offset} tokens",
            found=f"model.max_length = {max_length}",
            mend=f"use --set model.max_length={positions - offset} or less",
        )


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text")


def _facts(
    resolved: ResolvedRecipe, data: TrainingData, base: ResolvedBase, finished: Event
) -> dict[str, Any]:
    """What the manifest says besides the files' hashes."""
    assert isinstance(finished, Finished)
    return {
        **software_and_base(base),
        "description": resolved.recipe.description,
        "seed": resolved.recipe.training.seed,
        "data": {
            "licence": data.licence,
            "train": _described(data.train, resolved.recipe.data.train),
            "validation": _described(
                data.validation, resolved.recipe.data.validation or f"split off {resolved.recipe.data.train}"
            ),
        },
        "training": {
            "finished": finished.reason,
            "steps": finished.step,
            "epochs": round(finished.epoch, 4),
            "best_step": finished.best_step,
            "padding_share": round(finished.padding_share, 5),
        },
    }


def _described(examples: Examples, name: str) -> dict[str, Any]:
    return {"source": name, "rows": len(examples), "sha256": examples.fingerprint()}


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request that the loop can honour between two steps."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only it may handle signals
        yield requested.is_set
        return

    def request(_number: int, _frame: object) -> None:
        requested.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
