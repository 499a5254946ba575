"""A stranger's adapter_config.json: the settings that newsdesk supports, checked; others refused by name.

PEFT's own reader is never asked: some of its settings replicate layers, import a module by its name, or match
regular expressions that may take forever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from newsdesk.errors import UserError
from newsdesk.files import read_json

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG = "adapter_config.json"
_MOST_NAMES, _LONGEST_NAME, _MOST_LAYERS, _MOST_RANK = 1000, 200, 1000, 4096
_MOST_REPEATS = 3
_IGNORED = ("inference_mode", "auto_mapping")  # what peft's own loaders are told: newsdesk asks neither
_FIX = "copy the adapter again, or save it again with peft's save_pretrained"

Name = Annotated[StrictStr, Field(max_length=_LONGEST_NAME)]
Names = Annotated[list[Name], Field(max_length=_MOST_NAMES)]
Rank = Annotated[StrictInt, Field(ge=1, le=_MOST_RANK)]
Alpha = Annotated[StrictInt | float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Layer = Annotated[StrictInt, Field(ge=0, lt=_MOST_LAYERS)]


class AdapterConfig(BaseModel):
    """PEFT's names for what a LoRA of a sequence classifier is made of."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    peft_type: StrictStr
    task_type: StrictStr | None = None
    base_model_name_or_path: StrictStr | None = None
    peft_version: StrictStr | None = None
    r: Rank = 8
    lora_alpha: Alpha = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    target_modules: Names | Name | None = None
    exclude_modules: Names | Name | None = None
    modules_to_save: Names | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: StrictBool = False
    use_dora: StrictBool = False
    lora_bias: StrictBool = False
    fan_in_fan_out: StrictBool = False
    init_lora_weights: StrictBool | Annotated[StrictStr, Field(pattern=r"^[a-z_0-9]{1,30}$")] | None = True
    layers_to_transform: Annotated[list[Layer], Field(max_length=_MOST_LAYERS)] | Layer | None = None
    layers_pattern: Names | Name | None = None
    rank_pattern: dict[Name, Rank] | None = None
    alpha_pattern: dict[Name, Alpha] | None = None

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """The settings of an adapter folder. Raises UserError for any that newsdesk does not support."""
        path = folder / CONFIG
        content = read_json(path, fix=_FIX)
        try:
            found = cls.model_validate(content)
        except ValidationError as error:
            fault = error.errors()[0]
            raise UserError(
                f"{path} holds settings that newsdesk cannot read",
                found=f"{fault['loc'][0]} = {fault['input']!r:.80}: {fault['msg'].lower()}",
                fix=_FIX,
            ) from None
        found._require_supported(folder)
        _require_nothing_else(path, content, cls.model_fields)
        for pattern in found._patterns():
            _require_quick(path, pattern)
        return found

    def for_peft(self) -> LoraConfig:
        """The same as PEFT's own type, from these settings alone."""
        from peft import LoraConfig

        values = self.model_dump(exclude={"peft_type", "peft_version"}, exclude_none=True)
        try:
            return LoraConfig(**values)
        except (ValueError, TypeError) as error:  # settings that do not go together
            raise UserError(
                f"{CONFIG} holds settings that peft does not take together", found=str(error), fix=_FIX
            ) from None

    def _require_supported(self, folder: Path) -> None:
        if self.peft_type != "LORA":
            raise UserError(
                f"{folder} holds no LoRA adapter",
                found=f"peft_type {self.peft_type}",
                fix="train it as LoRA or a variant of it (rsLoRA, DoRA, PiSSA ...): newsdesk imports these",
            )
        if self.task_type not in (None, "SEQ_CLS"):
            raise UserError(
                f"{folder} is not the adapter of a text classifier",
                found=f"task_type {self.task_type}",
                fix="give one that was trained on AutoModelForSequenceClassification (task_type SEQ_CLS)",
            )

    def _patterns(self) -> list[str]:
        """What PEFT matches modules' names against as regular expressions."""
        single = [self.target_modules, self.exclude_modules, self.layers_pattern]
        patterns = [one for one in single if isinstance(one, str)]
        if isinstance(self.layers_pattern, list):
            patterns += self.layers_pattern
        return [*patterns, *(self.rank_pattern or ()), *(self.alpha_pattern or ())]


def _require_nothing_else(path: Path, content: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that newsdesk does not know, unless it is left as PEFT has it anyway."""
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    for name, value in content.items():
        if name in known or name in _IGNORED or value in (None, False, [], {}) or value == usual.get(name):
            continue
        raise UserError(
            f"{path} asks for something that newsdesk does not support",
            found=f"{name} = {value!r:.80}",
            fix=f"train the adapter without {name:.80}, or merge it with peft's merge_and_unload",
        )


def _require_quick(path: Path, pattern: str) -> None:
    """Raise UserError for a regular expression that may take long on some module's name.

    With a few repeats, none of a group, Python's engine takes polynomial time on names of 200 characters.
    """
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise _slow(path, pattern, str(error)) from None
    bare = re.sub(r"\\.|\[[^\]]*\]", "x", pattern)
    if len(re.findall(r"[*+?{]", bare)) > _MOST_REPEATS:
        raise _slow(path, pattern, f"more than {_MOST_REPEATS} repeats")
    if re.search(r"\)[*+{]|\(\?(?!:)|\\[1-9]", bare + pattern):
        raise _slow(path, pattern, "a repeated group, a lookaround or a back reference")


def _slow(path: Path, pattern: str, found: str) -> UserError:
    return UserError(
        f"{path} selects modules by an expression that newsdesk does not match",
        found=f"{pattern!r:.80}: {found}",
        fix="list the modules by their names",
    )
