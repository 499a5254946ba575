"""A run to the Hugging Face Hub, in one commit: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE count as everywhere."""

from __future__ import annotations

import csv
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsdesk import __version__
from newsdesk.data.duplicates import KNOWN_TEXTS
from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.hub.huggingface import without_progress_bars
from newsdesk.reports.facts import RunFacts
from newsdesk.reports.model_card import card_text, existing_card, require_readable_metadata
from newsdesk.runs.exported import KINDS, find_exported
from newsdesk.runs.folder import CARD, LABELS, MANIFEST, RunFolder, open_run
from newsdesk.runs.manifest import Manifest
from newsdesk.stored import read_stored, stored_bytes

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo


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
    text = card_text(RunFacts.of(run, repo_id), card if card is not None else existing_card(run))
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
        exported = find_exported(run.path / _EXPORTS / kind)
        if exported is None:
            continue
        exported.verify()
        names = {**exported.manifest.files, MANIFEST: sha256_of(exported.path / MANIFEST)}
        for name, sha256 in names.items():
            yield Upload(f"{_EXPORTS}{kind}/{name}", exported.path / name, sha256)


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
    facts = RunFacts.of(run)
    if facts.base_on_hub is None:
        yield f"the base model {facts.base} is not on the Hub: without it, nobody can use these adapters"
    if (run.path / KNOWN_TEXTS).is_file():
        yield f"by {KNOWN_TEXTS}, whoever has a text can tell whether the run was trained on it"
    evaluated = {place for entry in facts.splits.values() for place in (entry.source, entry.model)}
    local = sorted({*run.manifest.local_paths, *(place for place in evaluated if Path(place).is_absolute())})
    if local:
        yield f"the recipe, manifest or figures name places on this machine: {', '.join(local)}"


_OF_EVERY_RUN = {MANIFEST, LABELS, "recipe.toml"}
_OF_NEW_REPOSITORIES = {".gitattributes", ".gitignore", "LICENSE", CARD}


@dataclass(frozen=True)
class Push:
    """What a push did.

    Attributes:
        plan: what was sent.
        url: where the repository is to be seen.
        commit: the id of the commit.
        private: whether only its owners see it.
        changed: False where the Hub had all of it already, and no commit was made.
        removed: files of an earlier push that this run does not have any more.
    """

    plan: PushPlan
    url: str
    commit: str
    private: bool
    changed: bool
    removed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The push as JSON types."""
        return {
            **self.plan.to_dict(),
            "url": self.url,
            "commit": self.commit,
            "private": self.private,
            "changed": self.changed,
            "removed": list(self.removed),
        }


def push(
    run_path: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    with_exports: bool = False,
    message: str | None = None,
    observe: Callable[[PushPlan], None] = lambda _plan: None,
    progress_bars: bool = False,
) -> Push:
    """Upload a run to the Hub, into a repository that is made where there is none.

    ``newsdesk.push("runs/wire", "my-desk/wire")``

    All files come in one commit: a reader sees the run before or the run after. Broken off, it can be
    called again; what has arrived is not sent again. Nothing in the run's folder is changed.

    Args:
        run_path: a finished run.
        repo_id: ``organisation/name`` or ``user/name``.
        private: whether a new repository is seen by its owners alone; what is there must be of the kind.
        revision: the branch to push to, made where there is none; None: main.
        with_exports: send the run's exports too.
        message: of the commit; None: one that names newsdesk's version.
        observe: called with what will be sent, before anything is.
        progress_bars: let the Hub's client draw its own on standard error.

    Raises:
        UserError: when the run is not whole, there is no token, or the Hub does not take it.
    """
    plan = plan_push(run_path, repo_id, with_exports=with_exports)
    _require_means(repo_id)
    observe(plan)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="newsdesk", library_version=__version__)
    with _explained(repo_id), nullcontext() if progress_bars else without_progress_bars():
        there = _repository(api, repo_id, private=private, revision=revision)
        pushed, card = _earlier_push(api, there)
        if card is not None:
            plan = plan_push(run_path, repo_id, with_exports=with_exports, card=card)
        removed = sorted((pushed & _names(there)) - {upload.path for upload in plan.uploads})
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name, is_folder=False) for name in removed),
                *(CommitOperationAdd(upload.path, upload.content) for upload in plan.uploads),
            ],
            commit_message=message or f"A run of newsdesk {__version__}",
            revision=revision,
            parent_commit=there.sha,
        )
    changed = commit.oid != there.sha
    url = f"{api.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")
    return Push(plan, url, commit.oid, private, changed, tuple(removed))


def _require_means(repo_id: str) -> None:
    """Raise UserError when the Hub may not be asked, or there is no token to ask it with."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"nothing was sent to {repo_id}", found="HF_HUB_OFFLINE is set", fix="unset HF_HUB_OFFLINE"
        )
    if get_token() is None:
        raise UserError(
            "the Hub takes files from those alone whom it knows",
            found="no token: neither HF_TOKEN nor a login",
            fix="hf auth login, or set HF_TOKEN to a token that may write",
        )


def _repository(api: HfApi, repo_id: str, *, private: bool, revision: str | None) -> ModelInfo:
    """The repository as it is before the push, made where there was none.

    Raises UserError when it is seen by others than was asked for, or holds something else than a run.
    """
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    there = api.model_info(repo_id, revision=revision)
    if bool(there.private) != private:
        public = f"{repo_id} is public: everybody would see the run"
        raise UserError(
            f"{repo_id} is private, and stays so" if private is False else public,
            found=f"asked for {'--private' if private else '--public'}",
            fix=f"say {'--public' if private else '--private'}, change it in the repository's settings, "
            "or choose another name",
        )
    foreign = _names(there) - _OF_NEW_REPOSITORIES
    if foreign and not foreign >= _OF_EVERY_RUN:
        raise UserError(
            f"{repo_id} is taken: it holds something else than a run of newsdesk",
            found=", ".join(sorted(foreign)[:5]),
            fix="choose another name, or empty the repository first",
        )
    return there


def _names(there: ModelInfo) -> set[str]:
    return {sibling.rfilename for sibling in there.siblings or ()}


def _earlier_push(api: HfApi, there: ModelInfo) -> tuple[set[str], str | None]:
    """The files that the last push put there, and the card, if someone has edited it there since."""
    if not _names(there) >= {CARD, MANIFEST}:
        return set(), None
    with tempfile.TemporaryDirectory() as folder:
        card, manifest = (
            Path(api.hf_hub_download(there.id, name, revision=there.sha, local_dir=folder))
            for name in (CARD, MANIFEST)
        )
        pushed = read_stored(manifest, Manifest, fix="choose another name").files
        edited = sha256_of(card) != pushed.get(CARD)
        return set(pushed), card.read_text(encoding="utf-8") if edited else None


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn whatever the Hub's client raises into a sentence; the original stays attached as the cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of whichever HTTP library the client's version uses
        raise _refusal(repo_id, error) from error


def _refusal(repo_id: str, error: Exception) -> UserError:
    """What an exception of the Hub's client means to the person who pushes."""
    from huggingface_hub import constants

    answered = _answer_in(error)
    status = getattr(getattr(answered, "response", None), "status_code", None)
    said = getattr(answered, "server_message", None) or str(error).strip().rpartition("\n")[2]
    found = f"{constants.ENDPOINT} answered {status}: {said}"
    owner = repo_id.partition("/")[0]
    if status == 401:
        wrong, fix = "the Hub does not know the token", "hf auth login once more, or set HF_TOKEN anew"
    elif status in (403, 404):
        wrong = f"the Hub does not let this token write to {repo_id}"
        fix = f"check that {owner} exists and that the token may write there (hf auth whoami)"
    elif status in (409, 412):
        wrong = f"{repo_id} changed while the run was being sent: nothing of it was taken"
        fix = "look at what changed there, and push again"
    elif status is not None or "metadata" in str(error):
        wrong = f"the Hub did not take the run for {repo_id}"
        fix = "fix what it says, or try again later; what has arrived is not sent again"
    else:
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        wrong, found = "the Hub cannot be reached, or the upload broke off", f"{constants.ENDPOINT}: {reason}"
        fix = "check the network and push again: what has arrived is not sent again"
    return UserError(wrong, found=found, fix=fix)


def _answer_in(error: BaseException) -> BaseException:
    """The error among an error's causes that holds the Hub's answer; itself where there is none."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__
    return cause or error
