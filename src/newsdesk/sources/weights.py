"""Which files make a base model, and the refusal of weights that are pickles."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

from newsdesk.errors import UserError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHARDED_WEIGHTS = "model.safetensors.index.json"

# Only what transformers reads for an encoder and its tokenizer, and nothing that can hold a pickle.
MODEL_FILES = (
    "*.json",
    "*.txt",
    WEIGHTS,
    "model-*-of-*.safetensors",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def check_model_files(where: str, names: Collection[str]) -> None:
    """Raise UserError unless ``names`` hold a configuration and safetensors weights."""
    if CONFIG not in names:
        raise UserError(
            f"{where} is not a transformers model",
            found=f"no {CONFIG} in it",
            fix="give a folder that save_pretrained wrote, or a Hub id such as FacebookAI/roberta-base",
        )
    if WEIGHTS in names or SHARDED_WEIGHTS in names:
        return
    pickles = sorted(name for name in names if PurePosixPath(name).suffix in _PICKLES)
    if pickles:
        raise UserError(
            f"{where} has its weights only as a pickle, which newsdesk never loads",
            found=", ".join(pickles),
            fix='convert them once where you trust them: python -c "from transformers import AutoModel; '
            "AutoModel.from_pretrained('OLD').save_pretrained('NEW', safe_serialization=True)\", save the "
            "tokenizer beside them, and give --base NEW",
        )
    raise UserError(
        f"{where} has no weights",
        found=f"neither {WEIGHTS} nor {SHARDED_WEIGHTS}",
        fix=f"give a model that holds {WEIGHTS}",
    )
