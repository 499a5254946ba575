"""What a manifest says of the software and the base model, however the run came to be."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from newsdesk import __version__
from newsdesk.model.catalog import BASE_MODELS, ResolvedBase

_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy")


def software_and_base(base: ResolvedBase) -> dict[str, Any]:
    """Versions of all that computes, and the base model with what finds it again from any working folder."""
    return {
        "newsdesk": __version__,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "base": {
            "name": base_name(base),
            "reference": hub_reference(base),
            "sha256": base.sha256,
            "licence": base.licence,
        },
    }


def base_name(base: ResolvedBase) -> str:
    """What finds the base again from any working folder: its name, or the whole path of a local one."""
    return str(base.path.absolute()) if base.source == "local" else base.name


def hub_reference(base: ResolvedBase) -> str:
    """What others can load the base by: its Hub id where there is one, else the folder."""
    known = BASE_MODELS.get(base.name)
    if known is not None:
        return known.hub
    return str(base.path) if base.source == "local" else base.name
