"""What of a run goes to the Hub: the files that it is used with, as they were sealed, and no texts.

The repository's root is the run's own folder, so that a download of it is a run. PEFT's two files stand at
the root as well, where ``PeftModel.from_pretrained`` looks; the Hub keeps equal bytes once.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from newsdesk.data.known_texts import KNOWN_TEXTS
from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.inference.artefact import KINDS, find_artefact
from newsdesk.reporting.card_facts import CardFacts
from newsdesk.reporting.model_card import card_text, existing_card, require_readable_metadata
from newsdesk.stored import stored_bytes
from newsdesk.training.run_folder import CARD, MANIFEST, RunFolder, open_run

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_EXPORTS = "export/"
_PARTS = (
    *("labels.json", "log.jsonl", "metrics.json", "recipe.toml"),
    *("adapter/*", "tokenizer/*", "calibration.*", "off_topic.*", "known_texts.*", "predictions-*.csv"),
)
"""The files that a run is used, explained and compared with; whatever else lies in its folder stays."""


@dataclass(frozen=True)
class Upload:
    """One file of the repository.

    Attributes:
        path: where it stands there.
        content: the file to send, or its bytes.
        sha256: of its bytes.
    """

    path: str
    content: Path | bytes
    sha256: str

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class PushPlan:
    """What is sent and what stays.

    Attributes:
        run: the run.
        repo_id: ``organisation/name``.
        uploads: the files, in the order of their paths.
        left_out: why a file of the run's folder stays here, by its path.
        notes: what the owner should know before strangers do.
    """

    run: RunFolder
    repo_id: str
    uploads: tuple[Upload, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """In bytes, all files."""
        return sum(upload.size for upload in self.uploads)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types; sizes in bytes."""
        return {
            "repository": self.repo_id,
            "files": [
                {"path": upload.path, "bytes": upload.size, "sha256": upload.sha256}
                for upload in self.uploads
            ],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }


def plan_push(
    run_path: str | Path, repo_id: str, *, with_exports: bool = False, card: str | None = None
) -> PushPlan:
    """What a push of a run would send; nothing is sent, nothing is written.

    ``card`` is the card to go on from; None: the one in the run. Raises UserError when the run is not
    complete, a file is not as it was sealed, the card cannot be read, or ``repo_id`` cannot be one.
    """
    _require_repo_id(repo_id)
    run = open_run(Path(run_path))
    sealed = run.manifest.files
    uploads = {name: _sealed(run, name, sha256) for name, sha256 in sealed.items() if _goes(run, name)}
    if with_exports:
        uploads |= {upload.path: upload for upload in _exports(run)}
    for name in _ADAPTER_FILES:
        inside = f"adapter/{name}"
        uploads[name] = replace(_sealed(run, inside, sealed.get(inside, "no word of it")), path=name)
    text = card_text(CardFacts.of(run, repo_id), card if card is not None else existing_card(run))
    require_readable_metadata(text)
    uploads[CARD] = _of_bytes(CARD, text.encode())
    hashes = {path: uploads[path].sha256 for path in sorted(uploads)}
    uploads[MANIFEST] = _of_bytes(MANIFEST, stored_bytes(replace(run.manifest, files=hashes)))
    left_out = {name: why for name, why in _left_out(run, sealed) if name not in uploads}
    ordered = tuple(uploads[path] for path in sorted(uploads))
    return PushPlan(run, repo_id, ordered, left_out, tuple(_notes(run)))


def _require_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
        fault = None if "/" in repo_id else "no organisation or user before the name"
    except HFValidationError as error:
        fault = str(error)
    if fault is not None:
        raise UserError(
            f"{repo_id!r} is not the name of a repository on the Hub",
            found=fault,
            fix="write organisation/name or user/name: letters, digits and . _ - only",
        )


def _goes(run: RunFolder, name: str) -> bool:
    return any(fnmatchcase(name, part) for part in _PARTS) and not _holds_texts(run.path / name)


def _holds_texts(path: Path) -> bool:
    """Whether a file of predictions has the column of texts, which ``evaluate --with-text`` puts last."""
    if path.suffix != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8", newline="") as stream:
        return next(csv.reader(stream), [""])[-1] == "text"


def _sealed(run: RunFolder, name: str, sha256: str) -> Upload:
    """A file of the run. Raises UserError when it is not the one that was sealed."""
    path = run.path / name
    found = sha256_of(path) if path.is_file() else "no such file"
    if found != sha256:
        raise UserError(
            f"{path} is not as the run was sealed with it",
            found=f"{found}, in {MANIFEST} {sha256}",
            fix="put the original file back, or evaluate the run again, which seals it with what is there",
        )
    return Upload(name, path, sha256)


def _of_bytes(name: str, content: bytes) -> Upload:
    return Upload(name, content, hashlib.sha256(content).hexdigest())


def _exports(run: RunFolder) -> Iterator[Upload]:
    """All files of the run's exports, each as its own manifest says. Raises UserError where one is not."""
    for kind in KINDS:
        artefact = find_artefact(run.path / _EXPORTS / kind)
        if artefact is None:
            continue
        artefact.verify()
        names = {**artefact.manifest.files, MANIFEST: sha256_of(artefact.path / MANIFEST)}
        for name, sha256 in names.items():
            yield Upload(f"{_EXPORTS}{kind}/{name}", artefact.path / name, sha256)


def _left_out(run: RunFolder, sealed: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each file of the folder that the rules keep here, and why."""
    for path in sorted(run.path.rglob("*")):
        name = path.relative_to(run.path).as_posix()
        if not path.is_file():
            continue
        if path.is_relative_to(run.checkpoints):
            yield name, "a checkpoint, for going on with the training here"
        elif name.startswith(_EXPORTS):
            yield name, "an export; --with-exports sends it"
        elif name not in sealed:
            yield name, f"not in {MANIFEST}"
        elif _holds_texts(path):
            yield name, "holds texts, which may not be everyone's to copy"
        else:
            yield name, "nothing that the run is used with"


def _notes(run: RunFolder) -> Iterator[str]:
    facts = CardFacts.of(run)
    if facts.base_on_hub is None:
        yield f"the base model {facts.base} is not on the Hub: without it, nobody can use these adapters"
    if (run.path / KNOWN_TEXTS).is_file():
        yield f"by {KNOWN_TEXTS}, whoever has a text can tell whether the run was trained on it"
    evaluated = {place for entry in facts.splits.values() for place in (entry.source, entry.model)}
    local = sorted({*run.manifest.local_paths, *(place for place in evaluated if Path(place).is_absolute())})
    if local:
        yield f"the recipe, manifest or figures name places on this machine: {', '.join(local)}"
