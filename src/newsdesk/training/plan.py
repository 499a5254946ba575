"""The dry run: what a recipe would train, from configuration alone; no weights, no network, no files."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from newsdesk.config import DataSection, Recipe, ResolvedRecipe, TrainingSection
from newsdesk.data.datasets import DATA_SETS, DataSet
from newsdesk.data.examples import Examples, validation_size
from newsdesk.data.load import TrainingData, dialect_of, load_split, load_training_data
from newsdesk.data.words import VocabularyFit
from newsdesk.errors import counted
from newsdesk.hub.cache import Slot
from newsdesk.model.architectures import ParameterGroup, parameter_table, require_length
from newsdesk.model.catalog import BASE_MODELS, resolve_config
from newsdesk.model.classifier import outline_classifier
from newsdesk.model.tokenizer import TextTokenizer, Truncation
from newsdesk.training.batches import (
    Batcher,
    padding_share,
    planned_epochs,
    planned_validations,
    rate_factor,
    steps_per_epoch,
    total_steps,
    warmup_steps,
)
from newsdesk.training.held_out import HeldOut, classes_not_held_out
from newsdesk.training.time_estimate import TimeEstimate, estimate_time

Padding = Literal["grouped", "unsorted", "max_length"]

_ASSUMED_CLASSES = 2
# Two windows of length-grouped batches of 16: enough to see their padding, tokenized in a second or two.
_SAMPLED_ROWS = 4096
_QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
_WIDTH = 80


@dataclass(frozen=True)
class GivenValue:
    """A value that is not left to its default: its dotted key, and what set it (a recipe or a flag)."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class RowCounts:
    """Rows to learn from and to validate on, the classes, and where these numbers come from."""

    train: int
    validation: int
    classes: int
    rows_from: Literal["data", "catalogue"]
    classes_from: Literal["data", "catalogue", "assumed"]


@dataclass(frozen=True)
class Steps:
    """Optimiser steps.

    Attributes:
        per_epoch: in one pass over the rows.
        total: in all.
        warmup: how many of them warm up.
        epochs: passes over the rows; more than the recipe's where ``training.min_steps`` asks for more.
    """

    per_epoch: int
    total: int
    warmup: int
    epochs: float


@dataclass(frozen=True)
class RatePoint:
    """The learning rate that the step after ``step`` finished ones uses."""

    name: str
    step: int
    learning_rate: float


@dataclass(frozen=True)
class TokenBudget:
    """How many tokens are learned from, and how many are computed for them.

    Attributes:
        basis: measured on the rows with the base's tokenizer; or what the catalogue knows of the data set.
        sampled_rows: number of rows measured.
        lengths: quantiles of the tokens of a text before cutting, by name; empty when unknown.
        share_cut: share of the texts longer than max_length; None when unknown.
        share_lost: share of all tokens that are not read for it; None when unknown.
        vocabulary: how well the base model's vocabulary covers the texts; None when unknown.
        tokens_per_row: mean, special tokens included, cut to max_length; None when unknown.
        tokens_per_epoch: without padding; None when unknown.
        padding: share of the computed tokens that are padding, for each way of batching it is known for.
        used: the recipe's way of batching.
        computed_per_epoch: with the padding of that way (none, where it is not known); None when unknown.
    """

    basis: Literal["measured", "catalogue", "unknown"]
    sampled_rows: int
    lengths: dict[str, int]
    share_cut: float | None
    share_lost: float | None
    vocabulary: VocabularyFit | None
    tokens_per_row: float | None
    tokens_per_epoch: int | None
    padding: dict[Padding, float]
    used: Padding
    computed_per_epoch: int | None


@dataclass(frozen=True)
class Plan:
    """All that can be said of a training before it starts. ``time`` is None when it cannot be estimated.

    ``remarks`` are sentences on the validation rows; none where these are not on this disk.
    """

    recipe: Recipe
    given: tuple[GivenValue, ...]
    parameters: tuple[ParameterGroup, ...]
    rows: RowCounts
    steps: Steps
    curve: tuple[RatePoint, ...]
    tokens: TokenBudget
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

    Rows and tokenizer are used where they are on this disk; what they cannot tell is taken from the
    catalogue, or left out. Only a base that is known by its Hub id alone and is not in the cache has its
    configuration fetched. ``measure_speed`` multiplies matrices for a third of a second.

    Raises UserError for anything that training would refuse as well.
    """
    recipe = resolved.recipe
    training = recipe.training
    rows, data = _find_rows(recipe)
    model = outline_classifier(resolve_config(recipe.model.base), rows.classes, recipe.model, recipe.lora)
    require_length(model.config, recipe.model.max_length)
    total = total_steps(rows.train, training)
    steps = Steps(
        per_epoch=steps_per_epoch(rows.train, training),
        total=total,
        warmup=warmup_steps(training.warmup, total),
        epochs=planned_epochs(rows.train, training),
    )
    tokens = _token_budget(recipe, rows, None if data is None else data.train)
    time = None
    if measure_speed and tokens.computed_per_epoch is not None:
        time = estimate_time(
            model,
            training,
            tokens=round(tokens.computed_per_epoch * steps.epochs),
            tokens_per_batch=round(tokens.computed_per_epoch / rows.train * training.batch_size),
        )
    return Plan(
        recipe=recipe,
        given=tuple(_given_values(resolved)),
        parameters=tuple(parameter_table(model)),
        rows=rows,
        steps=steps,
        curve=_rate_curve(steps, training),
        tokens=tokens,
        time=time,
        remarks=_remarks(data, training),
    )


def _given_values(resolved: ResolvedRecipe) -> Iterator[GivenValue]:
    for key, origin in resolved.origins.items():
        section, name = key.split(".")
        yield GivenValue(key, getattr(getattr(resolved.recipe, section), name), origin)


def _remarks(data: TrainingData | None, training: TrainingSection) -> tuple[str, ...]:
    if data is None or data.validation.labels is None:
        return ()
    held_out = HeldOut.of(data.validation.labels, planned_validations(len(data.train), training), training)
    return (*data.notes, *classes_not_held_out(data.train, data.validation), *held_out.remarks(training))


def _find_rows(recipe: Recipe) -> tuple[RowCounts, TrainingData | None]:
    """The numbers of rows and classes, and the rows themselves where they are on this disk."""
    data = recipe.data
    known = DATA_SETS.get(data.train)
    if known is None or known.is_cached or Path(data.train).is_file():
        loaded = load_training_data(data, seed=recipe.training.seed, offline=True)
        classes = len(loaded.train.label_names)
        return RowCounts(len(loaded.train), len(loaded.validation), classes, "data", "data"), loaded
    return _catalogue_rows(data, known), None


def _catalogue_rows(data: DataSection, known: DataSet) -> RowCounts:
    """What is known of a data set that was never fetched, split as it would be."""
    train = known.rows[0]
    if data.validation is not None:
        validation = len(load_split(data.validation, "test", dialect=dialect_of(data), offline=True).table)
    else:
        validation = validation_size(train, data.validation_share)
        train -= validation
    return RowCounts(
        train=min(train, data.train_rows or train),
        validation=validation,
        classes=len(known.label_names) if known.label_names else _ASSUMED_CLASSES,
        rows_from="catalogue",
        classes_from="catalogue" if known.label_names else "assumed",
    )


def _rate_curve(steps: Steps, training: TrainingSection) -> tuple[RatePoint, ...]:
    """The learning rate at the start, the end of the warm-up, each quarter and the last step, in order."""
    last = steps.total - 1
    places = {0: "first step", min(steps.warmup, last): "end of warm-up"}
    for name, share in (("25 %", 0.25), ("50 %", 0.5), ("75 %", 0.75)):
        places.setdefault(min(round(share * steps.total), last), name)
    places.setdefault(last, "last step")
    return tuple(
        RatePoint(name, step, _rate_at(step, steps, training)) for step, name in sorted(places.items())
    )


def _rate_at(step: int, steps: Steps, training: TrainingSection) -> float:
    factor = rate_factor(step, steps=steps.total, warmup=steps.warmup, schedule=training.schedule)
    return training.learning_rate * factor


def _token_budget(recipe: Recipe, rows: RowCounts, examples: Examples | None) -> TokenBudget:
    """Tokens and padding: measured where rows and tokenizer are at hand, else as far as they are known."""
    max_length = recipe.model.max_length
    used = _used_padding(recipe.training)
    folder = _tokenizer_folder(recipe.model.base)
    known = DATA_SETS.get(recipe.data.train)
    padding: dict[Padding, float] = {}
    sampled, lengths = 0, {}
    truncation: Truncation | None = None
    vocabulary: VocabularyFit | None = None
    mean: float | None = None
    basis: Literal["measured", "catalogue", "unknown"] = "unknown"
    if examples is not None and folder is not None:
        sample = _sample(examples, recipe.training.seed)
        tokenizer = TextTokenizer.from_folder(folder, max_length)
        encoded, vocabulary = tokenizer.encode_whole(sample.texts), tokenizer.fit(sample.texts)
        cut = np.array([len(ids) for ids in encoded.ids], dtype=np.int64)
        basis, sampled, mean = "measured", len(sample), float(cut.mean())
        lengths = {name: round(np.quantile(encoded.lengths, share)) for name, share in _QUANTILES.items()}
        truncation = encoded.truncation
        padding = _padding_shares(cut, rows.train, recipe.training)
    elif known is not None and known.mean_tokens is not None:
        basis, mean = "catalogue", float(min(known.mean_tokens, max_length))
    if mean is not None:
        padding["max_length"] = 1.0 - mean / max_length
    computed: float | None = max_length
    if not recipe.training.pad_to_max_length:
        computed = mean / (1.0 - padding.get(used, 0.0)) if mean is not None else None
    return TokenBudget(
        basis=basis,
        sampled_rows=sampled,
        lengths=lengths,
        share_cut=None if truncation is None else truncation.share_cut,
        share_lost=None if truncation is None else truncation.share_lost,
        vocabulary=vocabulary,
        tokens_per_row=mean,
        tokens_per_epoch=None if mean is None else round(mean * rows.train),
        padding=padding,
        used=used,
        computed_per_epoch=None if computed is None else round(computed * rows.train),
    )


def _used_padding(training: TrainingSection) -> Padding:
    if training.pad_to_max_length:
        return "max_length"
    return "grouped" if training.group_by_length else "unsorted"


def _tokenizer_folder(base: str) -> Path | None:
    """The folder of a base that is on this disk with a fast tokenizer; its weights need not be."""
    known = next((model for model in BASE_MODELS.values() if base in (model.name, model.hub)), None)
    folder = Path(base).expanduser()
    if known is not None or not folder.is_dir():
        entry = Slot("models", known.name if known else base).entry()
        if entry is None:
            return None
        folder = entry.folder
    return folder if (folder / "tokenizer.json").is_file() else None


def _sample(examples: Examples, seed: int) -> Examples:
    """At most ``_SAMPLED_ROWS`` rows, drawn by the recipe's seed."""
    return examples.select(np.random.default_rng(seed).permutation(len(examples))[:_SAMPLED_ROWS])


def _padding_shares(lengths: np.ndarray, rows: int, training: TrainingSection) -> dict[Padding, float]:
    """The padding of an epoch over ``rows`` rows, grouped and unsorted, from a sample of them."""
    ways: dict[Padding, bool] = {"grouped": True, "unsorted": False}
    shares = {}
    for way, grouped in ways.items():
        batcher = Batcher(
            lengths,
            training.batch_size,
            seed=training.seed,
            group_by_length=grouped,
            sample_of=rows,
        )
        shares[way] = padding_share(lengths, batcher.epoch(0))
    return shares


def render_plan(plan: Plan) -> list[str]:
    """The plan as lines of plain text of at most 80 columns."""
    sections = (
        _wrapped(plan.recipe.description, "") if plan.recipe.description else [],
        _render_given(plan),
        _render_parameters(plan),
        _render_rows(plan),
        _render_curve(plan),
        _render_tokens(plan),
        _render_time(plan),
    )
    lines = [line for section in sections if section for line in (*section, "")]
    return lines[:-1]


def _render_given(plan: Plan) -> list[str]:
    if not plan.given:
        return ["values: all default"]
    lines = ["values that are not left to their defaults"]
    for given in plan.given:
        text = f"{given.key:<28}{json.dumps(given.value, ensure_ascii=False):<20}  {given.origin}"
        lines += _wrapped(text, "  ", deeper=28)
    return lines


def _render_parameters(plan: Plan) -> list[str]:
    rows = [(group.name, group.trainable, group.total) for group in plan.parameters]
    rows.append(("all", plan.trainable, plan.total))
    lines = [f"{'parameters':<30}{'trainable':>14}{'total':>16}"]
    lines += [f"  {name:<28}{trainable:>14,}{total:>16,}" for name, trainable, total in rows]
    return [*lines[:-1], f"{lines[-1]}  {100 * plan.trainable / plan.total:.2f} % trained"]


def _render_rows(plan: Plan) -> list[str]:
    rows, steps, training = plan.rows, plan.steps, plan.recipe.training
    source = "counted" if rows.rows_from == "data" else "from the catalogue; the data is not on this disk"
    classes = "assumed until the data is here" if rows.classes_from == "assumed" else ""
    return [
        f"rows and steps ({source})",
        _figure("training rows", rows.train),
        _figure("validation rows", rows.validation),
        _figure("classes", rows.classes, classes),
        _figure(
            "steps an epoch",
            steps.per_epoch,
            f"of {counted(training.batch_size * training.accumulation, 'row')}",
        ),
        _figure("all steps", steps.total, _epochs(steps, training)),
        _figure("warm-up steps", steps.warmup),
        *(line for remark in plan.remarks for line in _wrapped(f"note: {remark}", "  ")),
    ]


def _epochs(steps: Steps, training: TrainingSection) -> str:
    epochs = counted(steps.epochs, "epoch")
    raised = steps.epochs > training.epochs
    return f"{epochs}, for training.min_steps" if raised else epochs


def _render_curve(plan: Plan) -> list[str]:
    lines = [f"learning rate ({plan.recipe.training.schedule})"]
    for point in plan.curve:
        place = f"after {counted(point.step, 'step')}"
        lines.append(f"  {place:<28}{point.learning_rate:>14.3e}  {point.name}")
    return lines


def _render_tokens(plan: Plan) -> list[str]:
    tokens = plan.tokens
    basis = {
        "measured": f"measured on {counted(tokens.sampled_rows, 'row')}",
        "catalogue": f"as known of {plan.recipe.data.train}, in RoBERTa's tokens; not measured here",
        "unknown": "unknown until data and base are here",
    }
    names = {
        "grouped": "padding, grouped by length",
        "unsorted": "padding, in random order",
        "max_length": f"padding, all to {plan.recipe.model.max_length}",
    }
    lines = [f"tokens ({basis[tokens.basis]})"]
    if tokens.tokens_per_row is not None and tokens.tokens_per_epoch is not None:
        lines.append(f"  {'tokens a row':<28}{tokens.tokens_per_row:>14.1f}")
        lines.append(_figure("tokens an epoch", tokens.tokens_per_epoch))
    if tokens.lengths:
        shown = ", ".join(f"{name} {length:,}" for name, length in tokens.lengths.items())
        lines += _wrapped(f"{'tokens before cutting':<28}{shown}", "  ", deeper=28)
    if tokens.share_cut is not None and tokens.share_lost is not None:
        limit = f"to {plan.recipe.model.max_length} tokens"
        lines.append(f"  {'texts cut':<28}{f'{100 * tokens.share_cut:.1f} %':>14}  {limit}")
        lines.append(f"  {'tokens not read':<28}{f'{100 * tokens.share_lost:.1f} %':>14}")
    if tokens.vocabulary is not None:
        lines.append(f"  {'unknown tokens':<28}{f'{100 * tokens.vocabulary.unknown:.1f} %':>14}")
        lines += _wrapped(tokens.vocabulary.warning or "", "  ")
    for way, name in names.items():
        if way in tokens.padding or way == tokens.used:
            share = f"{100 * tokens.padding[way]:.1f} %" if way in tokens.padding else "not known"
            lines.append(f"  {name:<28}{share:>14}{'  as in this recipe' if way == tokens.used else ''}")
    if tokens.computed_per_epoch is not None:
        note = "padding included" if tokens.used in tokens.padding else "without padding"
        lines.append(_figure("computed an epoch", tokens.computed_per_epoch, note))
    return lines


def _render_time(plan: Plan) -> list[str]:
    time = plan.time
    if time is None:
        return ["time on this machine: not estimated"]
    threads = f", threads: {time.threads}" if time.device == "cpu" else ""
    low, high = time.efficiency
    return [
        f"time on this machine (an estimate: {time.device}, {time.precision}{threads})",
        f"  {'training, all epochs':<28}{_duration(time.seconds[0])} to {_duration(time.seconds[1])}",
        *_wrapped(
            f"from {time.tokens:,} tokens of {time.flops_per_token / 1e6:.0f} MFLOP (forward and input "
            f"gradients of the frozen encoder), {time.matmul_rate / 1e9:,.0f} GFLOP/s measured on "
            f"matrix products of its shapes, and steps that reach {low:g} to {high:g} of that rate. "
            "Validation, and other work on the machine, come on top.",
            "  ",
        ),
    ]


def _figure(name: str, number: int, note: str = "") -> str:
    return f"  {name:<28}{number:>14,}{'  ' + note if note else ''}"


def _duration(seconds: float) -> str:
    """A length of time in its natural unit, to two digits: it is an estimate."""
    for unit, length, up_to in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < up_to * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds / 86400:.2g} days"


def _wrapped(text: str, indent: str, deeper: int = 0) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent + " " * deeper)
