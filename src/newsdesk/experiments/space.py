"""The space of a sweep: which recipe keys take which values, and the points of it that are tried."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from newsdesk.config import SECTIONS, ResolvedRecipe, parsed_value, with_values
from newsdesk.errors import UserError, counted

Method = Literal["grid", "random", "tpe", "one-by-one"]
METHODS: tuple[Method, ...] = get_args(Method)

Parameter = str | int | float
"""What a trial says of an axis: the label of a choice, or a number of a range."""
Parameters = Mapping[str, Parameter]

RANGE_POINTS = 5
"""Values of a range that a grid and one-by-one try."""
_BY_RATIO = {"learning_rate", "head_learning_rate", "weight_decay", "rank", "alpha", "batch_size"}
_DATA_KEYS = {"data.train_rows"}
_LAYOUT_KEYS = {"data.text", "data.template", "data.normaliser"}
_RANGE = re.compile(r"(.+?)\.\.(.+)")
_MOST_POINTS = 10_000


@dataclass(frozen=True)
class Range:
    """All numbers from low to high; ``by_ratio``: as many between 1 and 2 as between 2 and 4."""

    low: float
    high: float
    whole: bool
    by_ratio: bool

    def spread(self, count: int) -> list[float]:
        """So many values from the lowest to the highest, evenly spaced on its scale."""
        shares = [step / (count - 1) for step in range(count)]
        if self.by_ratio:
            return [self.rounded(self.low * (self.high / self.low) ** share) for share in shares]
        return [self.rounded(self.low + (self.high - self.low) * share) for share in shares]

    def rounded(self, value: float) -> float:
        """The value as it is tried: a whole number, or one of three digits; within the range."""
        near = round(value) if self.whole else float(f"{value:.3g}")
        return min(max(near, self.low), self.high)


@dataclass(frozen=True)
class Axis:
    """Keys that are varied together, and what they may be.

    Attributes:
        keys: dotted recipe keys.
        choices: label to a value for each key; of a range those that a grid tries.
        range: the numbers between which random and TPE choose; None: the choices alone.
        own: the label of the recipe's own values, which is one of the choices.
        asked: the labels of the choices asked for; the recipe's own may not be among them.
    """

    keys: tuple[str, ...]
    choices: Mapping[str, tuple[Any, ...]]
    range: Range | None
    own: str
    asked: tuple[str, ...]

    @property
    def name(self) -> str:
        """What trials call it: its keys, joined by ``+``."""
        return "+".join(self.keys)

    def values(self, parameter: Parameter) -> dict[str, Any]:
        """The values of its keys by what a trial says. Raises ValueError for what is not on the axis."""
        if isinstance(parameter, str):
            if parameter not in self.choices:
                raise ValueError(f"{self.name} is {parameter!r:.80}")
            return dict(zip(self.keys, self.choices[parameter], strict=True))
        if self.range is None or not self.range.low <= parameter <= self.range.high:
            raise ValueError(f"{self.name} is {parameter!r:.80}")
        return {self.keys[0]: int(parameter) if self.range.whole else float(parameter)}


@dataclass(frozen=True)
class Space:
    """A recipe, and the axes along which a sweep varies it."""

    base: ResolvedRecipe
    axes: tuple[Axis, ...]

    @classmethod
    def of(
        cls, base: ResolvedRecipe, vary: Sequence[str], method: Method, *, rows_are_given: bool = False
    ) -> Space:
        """The space of ``--vary`` texts: ``lora.rank=1,4,16``, ``training.learning_rate=1e-4..2e-3``.

        One by one a key may be on several axes, alone and together with others. ``rows_are_given`` allows
        for keys that change the texts, as no rows are split off by text.
        Raises UserError that names every fault of all of them at once.
        """
        if not vary:
            raise UserError(
                "a sweep needs keys to vary",
                found="no --vary",
                fix="for example --vary lora.rank=1,4,16; docs/reference.md lists all keys",
            )
        faults: list[str] = []
        axes = [_axis(base, text, rows_are_given, faults) for text in vary]
        keys = [key for axis in axes if axis is not None for key in axis.keys]
        twice = dict.fromkeys(key for key in keys if keys.count(key) > 1 and method != "one-by-one")
        faults += [f"{key}: varied twice" for key in twice]
        if faults:
            count = len(faults)
            raise UserError(
                f"what is to be varied has {counted(count, 'fault')}",
                found="\n       ".join(dict.fromkeys(faults)),
                fix="correct the --vary named above; docs/reference.md lists all keys",
            )
        floor = base.origins.get("training.min_steps", "epochs by default")
        if "training.epochs" in keys and floor.startswith("epochs by"):  # each is asked for, as by --epochs
            base = with_values(base, {"training.min_steps": 0}, "epochs by --vary")
        return cls(base, tuple(axis for axis in axes if axis is not None))

    def values(self, parameters: Parameters) -> dict[str, Any]:
        """The recipe values of a point. Raises ValueError for parameters that are not of this space."""
        if parameters.keys() != {axis.name for axis in self.axes}:
            raise ValueError(f"it varies {', '.join(parameters) or 'nothing'}")
        values = {key: value for axis in self.axes for key, value in axis.values(axis.own).items()}
        for axis in self.axes:
            changed = axis.values(parameters[axis.name])
            if parameters[axis.name] != axis.own:  # else another axis may say what a key is
                values |= changed
        return values

    def recipe(self, parameters: Parameters, seed: int) -> ResolvedRecipe:
        """The recipe of one training of a point. Raises UserError where its values do not go together."""
        values = {"training.baseline": False, "training.seed": seed, **self.values(parameters)}
        return with_values(self.base, values, "sweep")

    def own_point(self) -> dict[str, Parameter]:
        """The recipe itself."""
        return {axis.name: axis.own for axis in self.axes}

    def points(self, method: Method) -> list[dict[str, Parameter]] | None:
        """All points of a grid or of one-by-one, in the order they are tried; None for the other methods.

        A grid is tried in random order, so that whatever ends it early leaves a fair part of it. One-by-one
        begins with the recipe's own point, which all axes share. Raises UserError for more than 10,000.
        """
        if method == "one-by-one":
            own = self.own_point()
            others = [{**own, axis.name: label} for axis in self.axes for label in axis.asked]
            found: dict[str, dict[str, Parameter]] = {}
            for point in (own, *others):
                found.setdefault(self.label(point), point)
            return list(found.values())
        if method != "grid":
            return None
        count = 1
        for axis in self.axes:
            count *= len(axis.asked)
        if count > _MOST_POINTS:
            raise UserError(
                f"a grid of {counted(count, 'point')} is too large",
                found=" x ".join(f"{axis.name}: {len(axis.asked)}" for axis in self.axes),
                fix="vary fewer keys, or use --method random, tpe or one-by-one",
            )
        names = [axis.name for axis in self.axes]
        grid = [dict(zip(names, point, strict=True)) for point in itertools.product(*self._asked())]
        random.Random(self.base.recipe.training.seed).shuffle(grid)
        return [dict[str, Parameter](point) for point in grid]

    def _asked(self) -> Iterator[tuple[str, ...]]:
        return (axis.asked for axis in self.axes)

    def size(self) -> int | None:
        """How many different points there are; None where an axis is a range."""
        count = 1
        for axis in self.axes:
            if axis.range is not None:
                return None
            count *= len(axis.asked)
        return count

    def label(self, parameters: Parameters) -> str:
        """A point in words: ``lora.rank=16, training.learning_rate=0.0005``."""
        values = self.values(parameters)
        return ", ".join(f"{key}={shown(value)}" for key, value in values.items())


def shown(value: Any) -> str:
    """A recipe value as people write it: ``0.0005``, ``query-value``, ``none``, ``true``."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return "+".join(map(str, value)) or "none"
    return str(value)


def override(key: str, value: Any) -> str:
    """What ``--set`` takes for a value: ``lora.targets=["query", "value"]``."""
    if isinstance(value, tuple | list):
        quoted = ", ".join(f'"{each}"' for each in value)
        return f"{key}={value[0]}" if len(value) == 1 else f"{key}=[{quoted}]"
    return f"{key}={shown(value)}"


def _axis(base: ResolvedRecipe, text: str, rows_are_given: bool, faults: list[str]) -> Axis | None:
    """An axis, and its faults; None where it has any."""
    left, equals, right = text.partition("=")
    keys = tuple(key.strip() for key in left.split("+"))
    if not equals or any(key.count(".") != 1 for key in keys):
        faults.append(f"--vary {text!r}: it takes section.key=value,value,...")
        return None
    before = len(faults)
    faults += [fault for key in keys if (fault := _not_to_be_varied(base, key, rows_are_given))]
    if len(faults) > before:
        return None
    limits = _RANGE.fullmatch(right.strip())
    if limits and len(keys) == 1:
        return _ranged(base, keys[0], limits[1], limits[2], faults)
    choices: dict[str, tuple[Any, ...]] = {}
    for entry in _split(right, ","):
        parts = _split(entry, ":") if len(keys) > 1 else [entry]
        if len(parts) != len(keys):
            faults.append(f"{left}: {entry!r} has {len(parts)} of {len(keys)} values, separated by ':'")
            continue
        given = {key: parsed_value(key, part) for key, part in zip(keys, parts, strict=True)}
        if (values := _checked(base, given, faults)) is not None:
            choices[":".join(map(shown, values))] = values
    return None if len(faults) > before else _with_own(base, keys, choices, None)


def _ranged(base: ResolvedRecipe, key: str, low: str, high: str, faults: list[str]) -> Axis | None:
    before = len(faults)
    ends = [_checked(base, {key: parsed_value(key, end.strip())}, faults) for end in (low, high)]
    numbers = [values[0] for values in ends if values is not None]
    if len(faults) > before:
        return None
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in numbers):
        faults.append(f"{key}: {low}..{high} is a range, but the key takes no numbers; list its values")
        return None
    if not numbers[0] < numbers[1]:
        faults.append(f"{key}: {low}..{high} is empty")
        return None
    whole = all(isinstance(end, int) for end in numbers)
    by_ratio = key.partition(".")[2] in _BY_RATIO and numbers[0] > 0
    found = Range(numbers[0], numbers[1], whole, by_ratio)
    values = [int(value) if whole else value for value in found.spread(RANGE_POINTS)]
    return _with_own(base, (key,), {shown(value): (value,) for value in values}, found)


def _with_own(
    base: ResolvedRecipe, keys: tuple[str, ...], choices: dict[str, tuple[Any, ...]], found: Range | None
) -> Axis:
    """The axis, with the recipe's own values among its choices."""
    own = tuple(value_of(base, key) for key in keys)
    label = ":".join(map(shown, own))
    return Axis(keys, {**choices, label: own}, found, label, tuple(choices))


def value_of(base: ResolvedRecipe, key: str) -> Any:
    """The recipe's value under a dotted key."""
    section, _, name = key.partition(".")
    return getattr(getattr(base.recipe, section), name)


def _checked(base: ResolvedRecipe, given: dict[str, Any], faults: list[str]) -> tuple[Any, ...] | None:
    """The values as the recipe understands them; None, and its faults, where it does not."""
    try:
        changed = with_values(base, given, "--vary")
    except UserError as error:
        faults += (error.found or error.wrong).split("\n       ")
        return None
    return tuple(value_of(changed, key) for key in given)


def _not_to_be_varied(base: ResolvedRecipe, key: str, rows_are_given: bool) -> str | None:
    """Why a key cannot be varied; None where it can."""
    section, _, name = key.partition(".")
    if section not in SECTIONS or name not in type(getattr(base.recipe, section)).model_fields:
        faults: list[str] = []
        _checked(base, {key: 0}, faults) if section in SECTIONS else faults.append(
            f"{key}: no such key; keys start with {', '.join(SECTIONS)}"
        )
        return faults[0]
    if key == "training.seed":
        return "training.seed: trainings that differ in nothing else are asked for with --seeds"
    if key in _LAYOUT_KEYS and not rows_are_given:
        return f"{key}: rows are split off by their texts; give validation rows with --valid, or --folds"
    if section == "data" and key not in _DATA_KEYS | _LAYOUT_KEYS:
        return f"{key}: it decides which rows there are, which have to be the same for all trials"
    return None


def _split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that are not in brackets or quotes, without spaces around."""
    parts, depth, quote, start = [], 0, "", 0
    for position, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == separator and not depth:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]
