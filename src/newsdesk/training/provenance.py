"""What a manifest says of the software and the base model, however the run came to be."""

from __future__ import annotations

import platform
from importlib.metadata import version

from newsdesk.model.catalog import BASE_MODELS, ResolvedBase
from newsdesk.training.manifest import BaseFacts

_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy")


def installed_versions() -> dict[str, str]:
    """Versions of all that computes."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def base_facts(base: ResolvedBase) -> BaseFacts:
    """The base model, with what finds it again from any working folder."""
    return BaseFacts(base_name(base), hub_reference(base), base.sha256, base.licence)


def base_name(base: ResolvedBase) -> str:
    """What finds the base again from any working folder: its name, or the whole path of a local one."""
    return str(base.path.absolute()) if base.source == "local" else base.name


def hub_reference(base: ResolvedBase) -> str:
    """What others can load the base by: its Hub id where there is one, else the folder."""
    known = BASE_MODELS.get(base.name)
    if known is not None:
        return known.hub
    return str(base.path) if base.source == "local" else base.name
