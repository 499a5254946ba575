"""newsdesk: fine-tune a text encoder with LoRA to classify news, evaluate it honestly, deploy it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "evaluate", "export", "load", "predict_file", "train"]

if TYPE_CHECKING:
    from newsdesk.api import evaluate, export, load, train
    from newsdesk.errors import UserError
    from newsdesk.inference.bulk import predict_file


def __getattr__(name: str) -> Any:
    """Import the public functions on first use, so that ``import newsdesk`` and ``--help`` stay quick."""
    if name == "UserError":
        from newsdesk.errors import UserError

        return UserError
    if name == "predict_file":
        from newsdesk.inference.bulk import predict_file

        return predict_file
    if name in __all__:
        from newsdesk import api

        return getattr(api, name)
    raise AttributeError(f"module 'newsdesk' has no attribute {name!r}")
