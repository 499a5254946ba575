"""The recipe: every choice of a training run, checked at once and traceable to where it came from."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from newsdesk.errors import UserError
from newsdesk.files import read_regular

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]

# A share of the whole when written with a point (0.06), a number of steps or tokens when not (500).
StepsOrShare = Annotated[int, Field(ge=0, strict=True)] | Share
# Likewise in epochs, possibly several: 1.0 is every epoch and 1 every step.
StepsOrEpochs = Annotated[int, Field(ge=0, strict=True)] | Annotated[float, Field(ge=0)]

# One name needs no brackets: --set lora.targets=all-linear
Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]


class Section(BaseModel):
    """What all sections share: values never change, unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class DataSection(Section):
    """Which rows are learned from, and how a row becomes one text."""

    train: str = Field("reuters-r8", description="named data set, file, or folder with train.* and test.*")
    validation: str | None = Field(None, description="file of validation rows; absent: split off train")
    unlabelled: str | None = Field(
        None, description="file of texts without labels to learn from, too, where labelled rows are few"
    )
    validation_share: Share | None = Field(
        None,
        description="share of train rows split off for validation; absent: 5 %, more of few rows",
    )
    train_rows: PositiveInt | None = Field(None, description="use only so many rows (stratified)")
    text: Names = Field((), description="text columns, in order; empty: recognised by name")
    label: str | None = Field(None, description="label column; absent: recognised by name")
    task: Literal["auto", "single", "multi"] = Field(
        "auto",
        description="whether a text has one label or may have several; auto: several where there are lists "
        "of them, or label_separator or label_columns are given",
    )
    label_separator: str | None = Field(
        None, description="between the labels of a cell, such as ';'; absent: several labels are a list"
    )
    label_columns: Names = Field((), description="0/1 columns, a label each, instead of one label column")
    template: str | None = Field(None, description="how columns make one text, such as '{title}. {body}'")
    normaliser: str = Field("none", description="named text normaliser; ag_news undoes its escapes")
    header: bool | None = Field(None, description="whether the first row names columns; absent: detected")
    delimiter: str | None = Field(None, description="between two cells, such as ';' or tab; absent: detected")
    quote: str | None = Field(None, description="around cells, or none; absent: detected")
    encoding: str | None = Field(None, description="of text files, such as cp1252; absent: detected")
    max_characters: Annotated[int, Field(ge=1, le=4_000_000)] | None = Field(
        None, description="of a cell; rows beyond are refused; absent: 1,000,000"
    )
    max_columns: PositiveInt | None = Field(
        None, description="of a file, and keys of a JSON object; absent: 1,000"
    )
    max_unpacked: PositiveInt | None = Field(
        None, description="bytes that a compressed file may grow to; absent: a hundredfold, or 16 MiB"
    )
    folds: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None,
        description="cross-validate in so many parts, then learn from all rows; 0: hold some out instead; "
        "absent: 5 of fewer than 1,000 rows, unless validation or validation_share is given",
    )
    merge_case: bool = Field(False, description="read labels that differ only in case as one class")
    unknown_labels: Literal["error", "drop"] = Field(
        "error", description="validation rows of classes that the training rows do not have: refuse, or drop"
    )

    @model_validator(mode="after")
    def _folds_hold_rows_out(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds is 1: rows that are held out of the only part leave none; use 2 or more")
        if self.folds and self.validation is not None:
            raise ValueError(
                "folds and validation cannot be combined, as a cross-validation holds out every training row "
                "once: leave out --folds or --valid"
            )
        return self


class ModelSection(Section):
    """The frozen encoder and what is put on top of it."""

    base: str = Field("all-MiniLM-L6-v2", description="named base model, Hub id or local folder")
    max_length: PositiveInt = Field(128, description="tokens a text is cut to")
    long_texts: Literal["cut", "head-tail", "windows"] = Field(
        "cut",
        description="what is read of a text of more tokens: its beginning, its first and last ones, or all "
        "in windows of max_length",
    )
    window_overlap: StepsOrShare = Field(
        0.125, description="what two windows have in common: tokens (16) or a share of max_length (0.125)"
    )
    max_windows: Annotated[int, Field(ge=1, le=1024)] = Field(
        16, description="windows a text is read in at most; what is beyond is cut"
    )
    pooling: Literal["mean", "max"] = Field(
        "mean", description="of the logits of a text's windows, in training as in predicting"
    )
    dropout: Share | None = Field(None, description="dropout in the frozen encoder; absent: the base's own")
    train_pooler: bool = Field(True, description="also train the pooler that BERT's classifier reads")
    linear: Literal["auto", "stack", "off"] = Field(
        "auto",
        description="a linear model beside the encoder: auto keeps it for a cascade unless training.baseline "
        "is false, stack adds its scores to the encoder's logits",
    )


class LoraSection(Section):
    """Low-rank adapters (Hu et al., 2021) and their variants, under PEFT's names."""

    rank: PositiveInt = Field(8, description="rank of the update that an adapter makes")
    alpha: Positive = Field(16.0, description="the update is scaled by alpha/rank")
    dropout: Share = Field(0.0, description="of the adapters' input while training")
    targets: Names = Field(
        ("query-value",),
        min_length=1,
        description="'query-value', 'attention', 'all-linear', or module names",
    )
    layers: Annotated[str, Field(pattern=r"^(all|top-[1-9][0-9]{0,2})$")] = Field(
        "all", description="'all', or 'top-3': the last three; those below are computed once and kept"
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases are trained too")
    rslora: bool = Field(False, description="scale by alpha/sqrt(rank) (Kalajdzievski, 2023)")
    dora: bool = Field(False, description="weight-decomposed adapters (Liu et al., 2024)")
    init: Literal["default", "gaussian", "pissa", "pissa_niter_16", "olora", "orthogonal"] = Field(
        "default", description="how the factors begin"
    )


class TrainingSection(Section):
    """Optimisation: AdamW (Loshchilov & Hutter, 2019) over adapters and head."""

    epochs: Positive = Field(3.0, description="passes over the training rows")
    min_steps: Annotated[int, Field(ge=0)] = Field(
        200, description="steps at least, by further epochs where rows are few; 0 where epochs are asked for"
    )
    batch_size: PositiveInt = Field(16, description="rows a batch, of all processes together")
    accumulation: PositiveInt = Field(1, description="batches whose gradients are added before a step")
    learning_rate: Positive = Field(5e-4, description="the highest, after warm-up")
    head_learning_rate: Positive | None = Field(None, description="for the head; absent: learning_rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="decoupled, as in AdamW")
    start: Literal["random", "fitted"] = Field(
        "random",
        description="fitted: the first token reads the mean of all, and the head is a linear model of that",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="after warm-up")
    warmup: StepsOrShare = Field(0.06, description="steps (500) or share of all steps (0.06)")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0: no clipping")
    label_smoothing: Share = Field(0.0, description="probability spread over all classes")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="in the loss; balanced: every class counts the same"
    )
    validate_every: StepsOrEpochs | None = Field(
        None, description="steps (100) or epochs (0.5) between validations; absent: every epoch"
    )
    checkpoint_every: StepsOrEpochs | None = Field(
        None, description="steps (100) or epochs (0.5) between checkpoints; absent: a minute"
    )
    metric: Literal["accuracy", "macro_f1", "loss"] = Field(
        "accuracy", description="picks the best state; of equal ones the lower loss"
    )
    min_choosing_rows: PositiveInt = Field(
        50, description="validation rows needed to pick the best state; with fewer the last one is kept"
    )
    patience: PositiveInt | None = Field(None, description="validations without gain before stopping")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the frozen weights; auto: bfloat16 where the device computes it natively"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: a GPU where there is one"
    )
    compile: Annotated[Literal["off", "on"], BeforeValidator(lambda v: "off" if v == "auto" else v)] = Field(
        "off", description="on a GPU: record steps as CUDA graphs and generate kernels; not yet measured"
    )
    group_by_length: bool = Field(True, description="batches of similar length: little padding")
    pad_to_max_length: bool = Field(False, description="pad every row to max_length, as some notebooks do")
    start_from: str | None = Field(
        None, description="a run to go on from with its adapters, head and classes; absent: begin anew"
    )
    growing_rows: PositiveInt = Field(
        800, description="rows of an epoch that goes on from a run; more where there are more new rows"
    )
    new_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02,
        description="share of new rows in it, at least; more find more of new classes, and lose more of old",
    )
    baseline: bool = Field(
        True, description="first measure a linear model on the validation rows, which takes seconds"
    )
    seed: Annotated[int, Field(ge=0)] = Field(42, description="of everything random")

    @model_validator(mode="after")
    def _smoothing_and_weights_do_not_mix(self) -> Self:
        if self.label_smoothing and self.class_weights == "balanced":
            raise ValueError("label_smoothing and class_weights='balanced' cannot be combined: choose one")
        return self


class Recipe(Section):
    """All choices of a run. Frozen; build one with :func:`load_recipe` or in code."""

    description: str = ""
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()


SECTIONS = ("data", "model", "lora", "training")


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe and the origin of its values, ``{"lora.rank": "recipe seed"}``; the rest are defaults."""

    recipe: Recipe
    origins: Mapping[str, str]

    def to_toml(self) -> str:
        """The whole recipe as TOML, each value with its origin as a comment; loads back to an equal one."""
        lines = [f"description = {_toml_value(self.recipe.description)}"]
        for section in SECTIONS:
            lines += ["", f"[{section}]"]
            for key, value in getattr(self.recipe, section).model_dump().items():
                origin = self.origins.get(f"{section}.{key}", "default")
                text = f"# {key} is absent" if value is None else f"{key} = {_toml_value(value)}"
                lines.append(f"{text}  # {origin}")
        return "\n".join(lines) + "\n"


def recipe_names() -> list[str]:
    """The names of the recipes that come with newsdesk."""
    return sorted(_names_of_files() - set(SWEEPS))


SWEEPS = ("lessons",)
"""Of the files among the recipes those with a section [sweep]: what ``newsdesk sweep`` knows by name."""


def _names_of_files() -> set[str]:
    names = (entry.name for entry in (resources.files("newsdesk") / "recipes").iterdir())
    return {name.removesuffix(".toml") for name in names if name.endswith(".toml")}


def load_recipe(
    name_or_path: str | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> ResolvedRecipe:
    """Resolve a recipe: defaults, then the named recipe or TOML file, then flags and ``key=value`` overrides.

    Args:
        name_or_path: a name of :func:`recipe_names` or the path of a TOML file; None: defaults alone.
        flags: dotted keys set by the command line's own flags; None values are taken as not given.
        overrides: ``section.key=value`` texts, values in TOML (bare words are strings).

    Raises:
        UserError: naming every fault of the recipe at once.
    """
    values = {} if name_or_path is None else read_recipe(name_or_path)
    if "sweep" in values:
        raise UserError(
            f"{name_or_path} is a sweep, not a recipe",
            found="a section [sweep]",
            fix=f"newsdesk sweep {name_or_path}",
        )
    return resolve(values, name_or_path, flags, overrides)


def resolve(
    values: dict[str, Any],
    name_or_path: str | None,
    flags: Mapping[str, Any] | None,
    overrides: Iterable[str],
) -> ResolvedRecipe:
    """As :func:`load_recipe`, of what ``read_recipe`` found under that name."""
    origins: dict[str, str] = {}
    if name_or_path is not None:
        for section in SECTIONS:
            if isinstance(values.get(section), dict):
                origins |= {f"{section}.{key}": f"recipe {name_or_path}" for key in values[section]}
    described = {key: _value(values, key) for key in _DESCRIBED}
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(values, key, value)
            origins[key] = "flag"
    for override in overrides:
        key, value = _parse_override(override)
        _assign(values, key, value)
        origins[key] = "flag --set"
    _keep_to_the_epochs_asked_for(values, origins, own_recipe=name_or_path not in recipe_names())
    if any(before is not None and before != _value(values, key) for key, before in described.items()):
        values["description"] = ""  # it describes other data or another base
    try:
        return ResolvedRecipe(Recipe.model_validate(values), origins)
    except ValidationError as error:
        raise _faults(error, origins) from None


def with_values(base: ResolvedRecipe, values: Mapping[str, Any], origin: str) -> ResolvedRecipe:
    """The recipe with other values for some dotted keys. Raises UserError naming every fault of these."""
    content = base.recipe.model_dump()
    for key, value in values.items():
        _assign(content, key, value)
    origins = {**base.origins, **dict.fromkeys(values, origin)}
    try:
        return ResolvedRecipe(Recipe.model_validate(content), origins)
    except ValidationError as error:
        raise _faults(error, origins) from None


def changed_values(before: Recipe, after: Recipe) -> list[str]:
    """The keys whose values differ, a line each: ``lora.rank = 8, asked for 4``."""
    return [
        f"{section}.{key} = {value!r}, asked for {wanted!r}"
        for section in SECTIONS
        for (key, value), (_, wanted) in zip(getattr(before, section), getattr(after, section), strict=True)
        if repr(value) != repr(wanted)  # 1 is a step, 1.0 an epoch
    ]


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The content of a recipe or sweep: a file, or one that comes with newsdesk. Raises UserError."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise UserError(f"there is no recipe file {path}", fix="check the path given to --recipe")
        try:
            content, shown = read_regular(path, _LARGEST), str(path)
        except OSError as error:
            raise UserError(f"the recipe {path} cannot be read", found=error.strerror) from None
    elif name_or_path in _names_of_files():
        content = (resources.files("newsdesk") / "recipes" / f"{name_or_path}.toml").read_bytes()
        shown = name_or_path
    else:
        raise UserError(
            f"there is no recipe called {name_or_path!r}",
            found=f"recipes: {', '.join(recipe_names())}",
            fix="give one of these names to --recipe, or the path of a .toml file",
        )
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"the recipe {shown} is not valid TOML", found=str(error)) from None


_LARGEST = 1 << 20  # bytes of a recipe


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or key.count(".") != 1:
        raise UserError(
            "--set takes section.key=value",
            found=f"--set {override!r}",
            fix="for example --set lora.rank=16; docs/reference.md lists all keys",
        )
    return key, parsed_value(key, text)


def parsed_value(key: str, text: str) -> Any:
    """The value that a text gives a dotted key: TOML, a bare word, or none where the key may be absent."""
    section, name = key.split(".")
    fields = type(getattr(Recipe(), section)).model_fields if section in SECTIONS else {}
    if text.lower() in _NO_VALUE and name in fields and type(None) in get_args(fields[name].annotation):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


_NO_VALUE = ("none", "null", "")
_DESCRIBED = ("data.train", "model.base")
"""What a recipe's description is about."""


def _keep_to_the_epochs_asked_for(
    values: dict[str, Any], origins: dict[str, str], *, own_recipe: bool
) -> None:
    """Lift the floor of steps where the epochs are the user's own, unless a floor is asked for, too."""
    origin = origins.get("training.epochs", "default")
    asked = origin.startswith("flag") or (origin.startswith("recipe") and own_recipe)
    if asked and "training.min_steps" not in origins:
        _assign(values, "training.min_steps", 0)
        origins["training.min_steps"] = f"epochs by {origin}"


def _value(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where it is missing."""
    section, name = key.split(".")
    found = values.get(section)
    return found.get(name) if isinstance(found, dict) else None


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    section, name = key.split(".")
    if not isinstance(values.setdefault(section, {}), dict):
        raise UserError(
            f"{section} is a section of the recipe, not a value",
            found=f"{section} = {values[section]!r}",
            fix=f"write it as [{section}] with lines such as {name} = {value!r}",
        )
    values[section][name] = value


def _faults(error: ValidationError, origins: Mapping[str, str]) -> UserError:
    """Every fault pydantic found, one a line, in the words of the recipe."""
    found: dict[str, list[str]] = {}
    ends: dict[str, str] = {}
    for fault in error.errors():
        # Beyond section.key pydantic adds the branch of a union it tried; the user never wrote that.
        key = ".".join(str(part) for part in fault["loc"][:2])
        texts = found.setdefault(key, [])
        if fault["type"] == "extra_forbidden":
            texts.append(f"no such key{_suggestion(key)}")
        elif fault["type"] == "value_error":
            texts.append(str(fault["ctx"]["error"]))
        else:
            texts.append(fault["msg"].lower())
            ends.setdefault(key, f", not {fault['input']!r} ({origins.get(key, 'default')})")
    count = len(found)
    return UserError(
        f"the recipe has {count} fault{'s' if count > 1 else ''}",
        found="\n       ".join(
            f"{key}: {', or '.join(texts)}{ends.get(key, '')}" for key, texts in found.items()
        ),
        fix="correct the recipe file, the flag, or the --set named above",
    )


def _suggestion(key: str) -> str:
    known = [
        f"{section}.{name}"
        for section in SECTIONS
        for name in Recipe.model_fields[section].default.model_dump()
    ]
    if "." not in key:
        known += SECTIONS
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; keys start with {', '.join(SECTIONS)}"


def _toml_value(value: object) -> str:
    """A TOML literal: what JSON writes for strings, numbers, booleans and arrays, except DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
