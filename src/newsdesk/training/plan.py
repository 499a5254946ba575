"""The dry run: what a recipe would train, from configuration alone; no weights, no network, no files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from newsdesk.config import DataSection, Recipe, ResolvedRecipe, TrainingSection
from newsdesk.data.examples import validation_size
from newsdesk.data.load import DATA_SETS, TrainingData, dialect_of, load_split, load_training_data
from newsdesk.data.words import Reading
from newsdesk.hub.cache import Slot
from newsdesk.model.architectures import ParameterGroup, parameter_table, require_length
from newsdesk.model.catalog import BASE_MODELS, resolve_config
from newsdesk.model.classifier import outline_classifier
from newsdesk.model.network import Precision, choose_device, choose_precision
from newsdesk.model.tokenizer import TextTokenizer, lengths_of
from newsdesk.training.batches import Batcher, Schedule, padding_share, parts_within, rate_factor
from newsdesk.training.folds import section_of
from newsdesk.training.growing import Start, drawn_rows
from newsdesk.training.held_out import remarks_on_rows

if TYPE_CHECKING:
    from peft import PeftModel

_ASSUMED_CLASSES = 2
_SAMPLED_ROWS = 4096  # tokenized in a second or two
_QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}

# Which share of the plain matrix-product rate a training step reaches, with attention, normalisation, dropout
# and the optimiser in it. On a CPU a few steps reached 0.7 to 1.2 (docs/training-speed.md), as the fused
# encoder computes less than is counted. A GPU waits for the launch of many small kernels: not measured.
_CPU_EFFICIENCY = (0.5, 1.0)
_GPU_EFFICIENCY = (0.03, 0.4)


@dataclass(frozen=True)
class RowCounts:
    """Rows to learn from and to validate on, the classes, and where these numbers come from.

    Where the rows are cross-validated first, that is in ``folds``, each a training of its own. There may be
    ``unlabelled`` texts, too, of which those are learned from whose class turns out to be clear.
    """

    train: int
    validation: int
    classes: int
    rows_from: Literal["data", "catalogue"]
    classes_from: Literal["data", "catalogue", "assumed"]
    folds: int = 0
    unlabelled: int = 0

    @classmethod
    def of(cls, data: TrainingData) -> RowCounts:
        """The counts of loaded rows."""
        classes, others = len(data.train.label_names), data.unlabelled or ()
        return cls(len(data.train), len(data.validation), classes, "data", "data", data.folds, len(others))


@dataclass(frozen=True)
class RatePoint:
    """The learning rate that the step after ``step`` finished ones uses."""

    name: str
    step: int
    learning_rate: float


@dataclass(frozen=True)
class Lengths:
    """Tokens of a text, special tokens included.

    Attributes:
        basis: measured on the rows with the base's tokenizer; or what the catalogue knows of the data set.
        rows: number of rows measured.
        before_cutting: quantiles by name; empty when unknown.
        mean: that the encoder computes for a text: after cutting to max_length, or of all its windows
            together; None when unknown.
        padding: share of the computed tokens that the recipe's batches would be padded with; None when
            unknown.
        choices: what each value of model.long_texts reads of the texts and computes for it, the recipe's own
            first; none where no text is longer than max_length, or that is unknown.
    """

    basis: Literal["measured", "catalogue", "unknown"] = "unknown"
    rows: int = 0
    before_cutting: dict[str, int] | None = None
    mean: float | None = None
    padding: float | None = None
    choices: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class TimeEstimate:
    """How long the training steps would take on this machine, (low, high) in seconds, and what that rests on.

    Validation and start-up come on top.
    """

    where: str
    seconds: tuple[float, float]
    basis: str


@dataclass(frozen=True)
class Plan:
    """All that can be said of a training before it starts.

    Attributes:
        origins: what set the values that are not left to their defaults, by dotted key: a recipe or a flag.
        time: None where it cannot be estimated.
        remarks: sentences on the rows; none where these are not on this machine.
    """

    recipe: Recipe
    origins: Mapping[str, str]
    parameters: tuple[ParameterGroup, ...]
    rows: RowCounts
    steps: Schedule
    curve: tuple[RatePoint, ...]
    lengths: Lengths
    time: TimeEstimate | None
    remarks: tuple[str, ...] = ()

    @property
    def trainable(self) -> int:
        """Numbers that are trained."""
        return sum(group.trainable for group in self.parameters)

    @property
    def total(self) -> int:
        """Numbers in the model, as PEFT counts them."""
        return sum(group.total for group in self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, with the sums of the parameter table."""
        plain = asdict(self) | {"recipe": self.recipe.model_dump()}
        return plain | {"trainable": self.trainable, "total": self.total}


def make_plan(resolved: ResolvedRecipe, *, measure_speed: bool = True) -> Plan:
    """What training by this recipe would do.

    Rows and tokenizer are used where they are on this machine; the rest is taken from the catalogue, or left
    out. Only a base that is known by its Hub id alone and is not in the cache has its
    configuration fetched. ``measure_speed`` multiplies matrices for a third of a second.

    Raises UserError for anything that training would refuse as well.
    """
    recipe, training = resolved.recipe, resolved.recipe.training
    known, data = DATA_SETS.get(recipe.data.train), None
    if known is None or known.is_cached or Path(recipe.data.train).is_file():
        start = Start.of_recipe(recipe, offline=True)
        earlier = None if start is None else start.earlier
        data = load_training_data(section_of(recipe), seed=training.seed, offline=True, earlier=earlier)
    rows = _catalogue_rows(recipe.data) if data is None else RowCounts.of(data)
    model = outline_classifier(resolve_config(recipe.model.base), rows.classes, recipe.model, recipe.lora)
    require_length(model.config, recipe.model.max_length)
    of_epoch = rows.train + rows.unlabelled
    if data is not None and data.replayed is not None:
        of_epoch = len(drawn_rows(data.replayed, rows.train, training))
    steps = Schedule.of(of_epoch, training)
    lengths, remarks = _measure_lengths(recipe, steps, data)
    estimate = None
    if measure_speed and lengths.mean is not None:
        computed = lengths.mean / (1 - (lengths.padding or 0.0))
        read = of_epoch * steps.epochs
        if rows.folds:  # each of them learns from all rows but its own
            others = of_epoch - rows.train // rows.folds
            read += rows.folds * others * Schedule.of(others, training).epochs
        tokens = round(computed * read)
        per_row = min(computed, recipe.model.max_length)  # windows are rows of their own
        estimate = estimate_time(model, training, tokens=tokens, tokens_per_row=per_row, epochs=steps.epochs)
    return Plan(
        recipe=recipe,
        origins=resolved.origins,
        parameters=tuple(parameter_table(model)),
        rows=rows,
        steps=steps,
        curve=_rate_curve(steps, training),
        lengths=lengths,
        time=estimate,
        remarks=remarks,
    )


def _catalogue_rows(data: DataSection) -> RowCounts:
    """What is known of a data set that was never fetched, split as it would be."""
    known = DATA_SETS[data.train]
    train = known.rows[0]
    if data.validation is not None:
        validation = len(load_split(data.validation, "test", dialect=dialect_of(data), offline=True).table)
    else:
        validation = validation_size(train, data.validation_share)
        train -= validation
    train = min(train, data.train_rows or train)
    if not known.label_names:
        return RowCounts(train, validation, _ASSUMED_CLASSES, "catalogue", "assumed")
    return RowCounts(train, validation, len(known.label_names), "catalogue", "catalogue")


def _rate_curve(steps: Schedule, training: TrainingSection) -> tuple[RatePoint, ...]:
    """The learning rate at the start, the end of the warm-up, each quarter and the last step, in order."""
    last = steps.total - 1
    places = {0: "first step", min(steps.warmup, last): "end of warm-up"}
    for name, share in (("25 %", 0.25), ("50 %", 0.5), ("75 %", 0.75)):
        places.setdefault(min(round(share * steps.total), last), name)
    places.setdefault(last, "last step")
    points = []
    for step, name in sorted(places.items()):
        factor = rate_factor(step, steps=steps.total, warmup=steps.warmup, schedule=training.schedule)
        points.append(RatePoint(name, step, training.learning_rate * factor))
    return tuple(points)


def _measure_lengths(
    recipe: Recipe, steps: Schedule, data: TrainingData | None
) -> tuple[Lengths, tuple[str, ...]]:
    """Lengths, measured where rows and tokenizer are available, else as far as known; and remarks."""
    training, max_length = recipe.training, recipe.model.max_length
    if data is None:
        known = DATA_SETS[recipe.data.train].mean_tokens
        if known is None:
            return Lengths(), ()
        mean = float(min(known, max_length))
        return Lengths("catalogue", mean=mean, padding=_padding(recipe, mean)), ()
    folder = _tokenizer_folder(recipe.model.base)
    if folder is None:
        return Lengths(), tuple(remarks_on_rows(data, None, None, steps, training, recipe.model))
    drawn = np.random.default_rng(training.seed).permutation(len(data.train))[:_SAMPLED_ROWS]
    sample = data.train.select(drawn)
    tokenizer = TextTokenizer.of_recipe(folder, recipe.model)
    encoded, vocabulary = tokenizer.encode_whole(sample.texts), tokenizer.fit(sample.texts)
    remarks = remarks_on_rows(data, encoded, vocabulary, steps, training, recipe.model)
    windows, lengths = tokenizer.windows.shapes(lengths_of(encoded.ids))
    mean = float((windows * lengths).mean())
    quantiles = {name: round(np.quantile(encoded.lengths, share)) for name, share in _QUANTILES.items()}
    padding = _padding(recipe, mean / float(windows.mean()), lengths, windows, len(data.train))
    choices: tuple[Reading, ...] = ()
    if (encoded.lengths > max_length).any():
        choices = tokenizer.choices(recipe.model, encoded.lengths)
    return Lengths("measured", len(sample), quantiles, mean, padding, choices), tuple(remarks)


def _padding(
    recipe: Recipe,
    mean: float,
    lengths: np.ndarray | None = None,
    windows: np.ndarray | None = None,
    rows: int | None = None,
) -> float | None:
    """The padding of an epoch over all rows by the recipe's way of batching, from a sample of ``lengths``.

    ``lengths`` are those of each of a row's ``windows``, ``mean`` that of all windows.
    """
    training = recipe.training
    if training.pad_to_max_length:
        return 1.0 - mean / recipe.model.max_length
    if lengths is None or windows is None:
        return None
    batcher = Batcher(
        lengths,
        training.batch_size,
        seed=training.seed,
        group_by_length=training.group_by_length,
        sample_of=rows,
    )
    most_tokens = training.batch_size * recipe.model.max_length
    batches = batcher.epoch(0)
    parts = [part for batch in batches for part in parts_within(batch, windows, lengths, most_tokens)]
    return padding_share(lengths, parts, windows)


def _tokenizer_folder(base: str) -> Path | None:
    """The folder of a base that is on this machine with a fast tokenizer; weights are not needed."""
    known = next((model for model in BASE_MODELS.values() if base in (model.name, model.hub)), None)
    folder = Path(base).expanduser()
    if known is not None or not folder.is_dir():
        entry = Slot("models", known.name if known else base).entry()
        if entry is None:
            return None
        folder = entry.folder
    return folder if (folder / "tokenizer.json").is_file() else None


def estimate_time(
    model: PeftModel, training: TrainingSection, *, tokens: int, tokens_per_row: float, epochs: float = 1.0
) -> TimeEstimate:
    """Measure this machine for a moment and estimate the time to train on ``tokens`` tokens in ``epochs``.

    ``model`` is the classifier, of which only shapes matter; products of a batch of rows of
    ``tokens_per_row`` are measured. Raises UserError when the device asked for is not there.
    """
    device = choose_device(training.device)
    precision = choose_precision(training.precision, device)
    widest = max((linear for _layer, linear in _encoder_linears(model)), key=lambda one: one.weight.numel())
    batch = max(1, round(tokens_per_row * training.batch_size))
    rate = matmul_rate((batch, widest.in_features, widest.out_features), device, precision)
    flops = training_flops_per_token(model, epochs)
    slow, fast = _CPU_EFFICIENCY if device.type == "cpu" else _GPU_EFFICIENCY
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    guess = "" if device.type == "cpu" else " (a guess: no GPU was measured)"
    return TimeEstimate(
        f"{device}, {precision}{threads}",
        (tokens * flops / (rate * fast), tokens * flops / (rate * slow)),
        f"{tokens:,} tokens of {flops / 1e6:.0f} MFLOP, at {100 * slow:g} to {100 * fast:g} % of the "
        f"{rate / 1e9:,.0f} GFLOP/s measured on matrix products{guess}",
    )


def training_flops_per_token(model: PeftModel, epochs: float = 1.0) -> float:
    """Floating-point operations to train on one token: four per weight of the encoder's linear layers.

    Two are the forward product and two the gradient of its input; a frozen weight needs no gradient of its
    own, which would be two more (Kaplan et al., 2020). Adapters, head and attention scores are left out.
    Layers below the adapters need no gradient at all, and are computed in the first of the ``epochs`` alone.
    """
    # ALBERT passes through the same few layers again and again.
    distinct = getattr(model.config, "num_hidden_groups", None)
    passes = model.config.num_hidden_layers // distinct if distinct else 1
    (settings,) = model.peft_config.values()
    lowest = min(getattr(settings, "layers_to_transform", None) or [0])
    trunk = 2 / max(1.0, epochs)
    return passes * sum(
        (trunk if layer < lowest else 4) * linear.weight.numel() for layer, linear in _encoder_linears(model)
    )


def matmul_rate(
    shape: tuple[int, int, int], device: torch.device, precision: Precision, seconds: float = 0.3
) -> float:
    """Measured FLOP/s of products (rows, inner) x (inner, columns); ``shape`` is (rows, inner, columns).

    On a CPU this thread's own time counts, so that whatever else the machine is doing does not.
    """
    rows, inner, columns = shape
    dtype = getattr(torch, precision)
    left = torch.ones(rows, inner, device=device, dtype=dtype)
    right = torch.ones(inner, columns, device=device, dtype=dtype)
    on_cpu = device.type == "cpu"
    clock = time.thread_time if on_cpu else time.perf_counter
    # An accelerator is asked for many products at a time: to wait for each would measure the waiting.
    burst = 1 if on_cpu else 64
    wait = getattr(torch, device.type).synchronize
    torch.mm(left, right)
    wait()
    products, start = 0, clock()
    while (elapsed := clock() - start) < seconds:
        for _ in range(burst):
            torch.mm(left, right)
        wait()
        products += burst
    return 2.0 * rows * inner * columns * products / elapsed


def _encoder_linears(model: PeftModel) -> Iterator[tuple[int, nn.Linear]]:
    """The frozen linear layers in the encoder's numbered stack, which every token passes, with its number."""
    for name, module in model.named_modules():
        number = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if isinstance(module, nn.Linear) and number is not None and "lora_" not in name:
            yield number, module
