"""A run to the files of an ``onnx-shared`` export: its base's graphs, quantised, and what is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from newsdesk.errors import UserError
from newsdesk.exports.int8_settings import Setting, quantise
from newsdesk.exports.onnx_conversion import write_onnx
from newsdesk.exports.onnx_graph import Array, reason_not_buildable
from newsdesk.exports.shared_graph import adapted_linears, build_graphs
from newsdesk.model.architectures import BERT_LIKE
from newsdesk.runs.exported import MODEL_FILES, TRUNK
from newsdesk.runs.exported_adapter import ExportedAdapter

if TYPE_CHECKING:
    from onnx import ModelProto
    from peft import PeftModel


@dataclass(frozen=True)
class SharedParts:
    """What an export of the kind ``onnx-shared`` is made of.

    Attributes:
        config: of the encoder, as in config.json.
        tensors: its untouched weights, without pooler and head.
        below: the first layer that has adapters.
        targets: the linear layers within a layer that have them.
        adapter: what is the run's own.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Array]
    below: int
    targets: frozenset[str]
    adapter: ExportedAdapter

    @classmethod
    def of(cls, run: Path, model: PeftModel) -> Self:
        """Take a run's model apart. Raises UserError where its encoder cannot be shared."""
        classifier: Any = model.get_base_model()
        config = {**classifier.config.to_dict(), "num_labels": classifier.config.num_labels}
        reason = reason_not_buildable(config) or _reason_in_adapters(model)
        if reason is not None:
            raise UserError(
                f"{run} cannot share its encoder with other runs",
                found=reason,
                fix="export it alone, with --to onnx-int8",
            )
        layout = BERT_LIKE[config["model_type"]]
        tensors = _plain_tensors(classifier)
        head = {
            f"{part}_{kind}": tensors.pop(f"{layer}.{kind}")
            for part, layer in (("pooler", layout.pooler), ("head", layout.output))
            for kind in ("weight", "bias")
        }
        factors = _factors(classifier, layout.prefix)
        of_layers = [name.removeprefix("encoder.layer.").partition(".") for name in factors]
        below = min(int(number) for number, _, _ in of_layers)
        targets = frozenset(linear for _, _, linear in of_layers)
        names = adapted_linears(config, below, targets)
        sizes = {name: tensors[f"{layout.prefix}.{name}.weight"].shape[::-1] for name in names}
        adapter = ExportedAdapter.of(
            run,
            factors=_in_rows(factors, sizes),
            pooler_weight=head["pooler_weight"].T,
            pooler_bias=head["pooler_bias"][None],
            head_weight=head["head_weight"].T,
            head_bias=head["head_bias"][None],
        )
        return cls(config, tensors, below, targets, adapter)

    @cached_property
    def _graphs(self) -> tuple[ModelProto, ModelProto]:
        return build_graphs(self.config, self.tensors, self.below, self.targets)

    def write(self, folder: Path, setting: Setting) -> None:
        """Write the graphs, quantised by a setting, and the adapter into an exported model's folder."""
        names = (TRUNK, MODEL_FILES["onnx-shared"])
        for name, graph in zip(names, self._graphs, strict=True):
            write_onnx(quantise(graph, setting), folder / name)
        self.adapter.save(folder)


def _reason_in_adapters(model: PeftModel) -> str | None:
    """Why a run's adapters are no paths beside the encoder's products, as half a sentence, or None."""
    from newsdesk.model.encoder import reason_not_fusable

    bias = getattr(model.peft_config["default"], "bias", "none")
    if bias != "none":
        return f"it trains biases of the encoder (lora.bias = {bias})"
    linears = {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}
    if not any(".encoder.layer." in name for name in linears):
        return "none of the encoder's layers has an adapter"
    return reason_not_fusable(model)


def _plain_tensors(classifier: Any) -> dict[str, Array]:
    """All weights without the adapters', under the names that they have in a classifier without any."""
    found = {}
    for name, tensor in classifier.state_dict().items():
        if "lora_" not in name and ".original_module." not in name:
            plain = name.replace(".modules_to_save.default", "").replace(".base_layer", "")
            found[plain] = tensor.cpu().numpy()
    return found


def _factors(classifier: Any, prefix: str) -> dict[str, tuple[Array, Array]]:
    """A (rank, in) and B (out, rank) times its scaling of every adapted layer, by its name in the encoder."""
    found = {}
    for name, module in classifier.named_modules():
        if hasattr(module, "lora_A") and module.lora_A:
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            pair = down.detach().cpu().numpy(), up.detach().cpu().numpy() * module.scaling["default"]
            found[name.removeprefix(f"{prefix}.")] = pair
    return found


def _in_rows(factors: Mapping[str, tuple[Array, Array]], sizes: Mapping[str, tuple[int, ...]]) -> Array:
    """Factors as `ExportedAdapter` has them, float32 (largest rank, width); zero where there are none."""
    rank = max(len(down) for down, _ in factors.values())
    parts = []
    for name, (inside, out) in sizes.items():
        down, up = factors.get(name, (np.zeros((0, inside)), np.zeros((out, 0))))
        part = np.zeros((rank, inside + out), dtype=np.float32)
        part[: len(down), :inside], part[: len(down), inside:] = down, up.T
        parts.append(part)
    return np.concatenate(parts, axis=1)
