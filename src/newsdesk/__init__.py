"""newsdesk: fine-tune a text encoder with LoRA to classify news, evaluate it honestly, deploy it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "TextClassifier",
    "UserError",
    "__version__",
    "audit",
    "calibrate",
    "compare",
    "evaluate",
    "explain",
    "export",
    "load",
    "open_model",
    "pick",
    "predict_file",
    "push",
    "report",
    "sweep",
    "train",
    "watch_folder",
]

if TYPE_CHECKING:
    from newsdesk.api import calibrate, evaluate, export, report, sweep, train
    from newsdesk.classifier import TextClassifier
    from newsdesk.errors import UserError
    from newsdesk.evaluation.audit.audit import audit
    from newsdesk.evaluation.compare import compare
    from newsdesk.evaluation.labelling import pick
    from newsdesk.prediction.bulk import predict_file
    from newsdesk.prediction.explanation import explain
    from newsdesk.prediction.open_model import open_model
    from newsdesk.prediction.open_model import open_model as load
    from newsdesk.prediction.watched_folder import watch_folder
    from newsdesk.reports.push import push

_HOMES = {
    "TextClassifier": "newsdesk.classifier",
    "UserError": "newsdesk.errors",
    "audit": "newsdesk.evaluation.audit.audit",
    "calibrate": "newsdesk.api",
    "compare": "newsdesk.evaluation.compare",
    "evaluate": "newsdesk.api",
    "explain": "newsdesk.prediction.explanation",
    "export": "newsdesk.api",
    "open_model": "newsdesk.prediction.open_model",
    "pick": "newsdesk.evaluation.labelling",
    "predict_file": "newsdesk.prediction.bulk",
    "push": "newsdesk.reports.push",
    "report": "newsdesk.api",
    "sweep": "newsdesk.api",
    "train": "newsdesk.api",
    "watch_folder": "newsdesk.prediction.watched_folder",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``import newsdesk`` and ``--help`` stay quick."""
    if name == "load":  # what open_model was called first
        return __getattr__("open_model")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'newsdesk' has no attribute {name!r}")
