"""A run to the Hugging Face Hub, in one commit: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE work as everywhere."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from newsdesk import __version__
from newsdesk.data.duplicates import KNOWN_TEXTS
from newsdesk.errors import UserError, first_line
from newsdesk.files import read_regular, sha256_of
from newsdesk.hub import transfer
from newsdesk.hub.transfer import watched
from newsdesk.progress import silent
from newsdesk.reports.facts import RunFacts
from newsdesk.reports.model_card import card_text, existing_card, require_readable_metadata
from newsdesk.runs.exported import KINDS, find_exported
from newsdesk.runs.folder import CARD, MANIFEST, RunFolder, open_run
from newsdesk.runs.labels import LABELS
from newsdesk.runs.linear_model import LINEAR_MODEL
from newsdesk.runs.manifest import Manifest
from newsdesk.stored import read_stored, stored_bytes

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo

T = TypeVar("T")

COMMIT_SECONDS = 30.0
"""For a commit, besides what its bytes take at the least rate of a transfer."""

_PARTS = (
    *("labels.json", "log.jsonl", "metrics.json", "recipe.toml"),
    *(
        "adapter/*",
        "tokenizer/*",
        "calibration.*",
        "off_topic.*",
        "linear_model.*",
        "known_texts.*",
        "predictions-*.csv",
    ),
)
"""The files that a run is used, explained and compared with; everything else in its folder stays."""
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_OF_EVERY_RUN = {MANIFEST, LABELS, "recipe.toml"}
_OF_NEW_REPOSITORIES = {".gitattributes", ".gitignore", "LICENSE", CARD}


@dataclass(frozen=True)
class PushPlan:
    """What is sent and what stays.

    Attributes:
        run: the run.
        repo_id: ``organisation/name``.
        uploads: the files, in the order of their paths.
        left_out: why a file of the run's folder is not sent, by its path.
        notes: what the owner should know before publishing.
    """

    run: RunFolder
    repo_id: str
    uploads: tuple[CommitOperationAdd, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types; sizes in bytes."""
        return {
            "repository": self.repo_id,
            "files": [
                {
                    "path": upload.path_in_repo,
                    "bytes": upload.upload_info.size,
                    "sha256": upload.upload_info.sha256.hex(),
                }
                for upload in self.uploads
            ],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Push:
    """What a push did.

    Attributes:
        plan: what was sent.
        url: the address of the repository.
        commit: the id of the commit.
        private: whether only its owners see it.
        changed: False where the Hub already had everything, and no commit was made.
        removed: files of an earlier push that this run no longer has.
    """

    plan: PushPlan
    url: str
    commit: str
    private: bool
    changed: bool
    removed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The push as JSON types."""
        done = {name: value for name, value in vars(self).items() if name != "plan"}
        return {**self.plan.to_dict(), **done, "removed": list(self.removed)}


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
    """Upload a run to the Hub, into a repository that is created where there is none.

    ``newsdesk.push("runs/wire", "my-desk/wire")``

    All files come in one commit: a reader sees the run before or the run after. An interrupted push can be
    repeated; what has arrived is not sent again. Nothing in the run's folder is changed.

    Args:
        run_path: a finished run.
        repo_id: ``organisation/name`` or ``user/name``.
        private: whether only its owners see a new repository; an existing one has to be of that kind.
        revision: the branch to push to, created where there is none; None: main.
        with_exports: send the run's exports too.
        message: of the commit; None: one that names newsdesk's version.
        observe: called with what will be sent, before anything is.
        progress_bars: let the Hub's client draw its own on standard error.

    Raises:
        UserError: when the run is not complete, there is no token, or the Hub refuses it.
    """
    plan = plan_push(run_path, repo_id, with_exports=with_exports)
    _require_means(repo_id)
    observe(plan)
    from huggingface_hub import CommitOperationDelete, HfApi

    api = HfApi(library_name="newsdesk", library_version=__version__)
    with _explained(repo_id), nullcontext() if progress_bars else _without_progress_bars():
        there = _repository(api, repo_id, private=private, revision=revision)
        pushed, card = _earlier_push(api, there)
        if card is not None:
            plan = plan_push(run_path, repo_id, with_exports=with_exports, card=card)
        removed = sorted((pushed & _names(there)) - {upload.path_in_repo for upload in plan.uploads})
        size = sum(upload.upload_info.size for upload in plan.uploads)
        commit = _asked(
            api.create_commit,
            repo_id,
            [*(CommitOperationDelete(name, is_folder=False) for name in removed), *plan.uploads],
            commit_message=message or f"A run of newsdesk {__version__}",
            revision=revision,
            parent_commit=there.sha,
            seconds=COMMIT_SECONDS + size / transfer.LEAST_RATE,
        )
    url = f"{api.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")
    return Push(plan, url, commit.oid, private, commit.oid != there.sha, tuple(removed))


def plan_push(
    run_path: str | Path, repo_id: str, *, with_exports: bool = False, card: str | None = None
) -> PushPlan:
    """What a push of a run would send; nothing is sent, nothing is written.

    ``card`` is the card to update; None: the one in the run. Raises UserError when the run is not complete, a
    file differs from its manifest, the card cannot be read, or ``repo_id`` is invalid.
    """
    _require_repo_id(repo_id)
    run = open_run(Path(run_path))
    sealed = run.manifest.files
    sent = {name: name for name in sealed if any(fnmatchcase(name, part) for part in _PARTS)}
    sent |= {name: f"adapter/{name}" for name in _ADAPTER_FILES}  # where peft looks for them
    uploads = {
        name: _upload(name, run.path / file, sealed.get(file, "no entry"))
        for name, file in sent.items()
        if not _holds_texts(run.path / file)
    }
    for exported in (find_exported(run.path / "export" / kind) for kind in KINDS if with_exports):
        if exported is not None:
            folder = exported.path.relative_to(run.path).as_posix()
            files = {**exported.manifest.files, MANIFEST: sha256_of(exported.path / MANIFEST)}
            for file, sha256 in files.items():
                uploads[f"{folder}/{file}"] = _upload(f"{folder}/{file}", exported.path / file, sha256)
    text = card_text(RunFacts.of(run, repo_id), card if card is not None else existing_card(run))
    require_readable_metadata(text)
    uploads[CARD] = _upload(CARD, text.encode())
    hashes = {name: uploads[name].upload_info.sha256.hex() for name in sorted(uploads)}
    uploads[MANIFEST] = _upload(MANIFEST, stored_bytes(replace(run.manifest, files=hashes)))
    files_here = (path for path in sorted(run.path.rglob("*")) if path.is_file())
    here = {path.relative_to(run.path).as_posix(): path for path in files_here}
    left_out = {name: _why_left(name, path, sealed) for name, path in here.items() if name not in uploads}
    return PushPlan(run, repo_id, tuple(uploads[name] for name in sorted(uploads)), left_out, _notes(run))


def _upload(name: str, content: Path | bytes, sha256: str | None = None) -> CommitOperationAdd:
    """A file of the repository. Raises UserError when it has another ``sha256`` than the one recorded."""
    from huggingface_hub import CommitOperationAdd

    if isinstance(content, Path):
        operation = CommitOperationAdd(name, content) if content.is_file() else None
        found = operation.upload_info.sha256.hex() if operation else "no such file"
        if operation is None or found != sha256:
            raise UserError(
                f"{content} is missing or not the file that was sealed",
                found=f"{found}, in {MANIFEST} {sha256}",
                fix="put the original file back, or evaluate the run again, which seals it as it is now",
            )
        return operation
    return CommitOperationAdd(name, content)


def _holds_texts(path: Path) -> bool:
    """Whether a file of predictions has the column of texts, which ``evaluate --with-text`` puts last."""
    if path.suffix != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8", newline="") as stream:
        return next(csv.reader(stream), [""])[-1] == "text"


def _why_left(name: str, path: Path, sealed: Mapping[str, str]) -> str:
    """Why the rules do not send a file."""
    if name.startswith("checkpoints/"):
        return "a checkpoint, for resuming the training here"
    if name.startswith("export/"):
        return "an export; --with-exports sends it"
    if name not in sealed:
        return f"not in {MANIFEST}"
    return "holds texts, which may not be free to copy" if _holds_texts(path) else "not needed to use the run"


def _notes(run: RunFolder) -> tuple[str, ...]:
    notes, facts = [], RunFacts.of(run)
    if facts.base_on_hub is None:
        notes.append(
            f"the base model {facts.base} is not on the Hub: without it, nobody can use these adapters"
        )
    if facts.is_stacked:
        notes.append(
            f"with {LINEAR_MODEL}, newsdesk adds a linear model to the encoder; peft alone answers without it"
        )
    if (run.path / KNOWN_TEXTS).is_file():
        notes.append(f"with {KNOWN_TEXTS}, whoever has a text can tell whether the run was trained on it")
    evaluated = {place for entry in facts.splits.values() for place in (entry.source, entry.model)}
    local = sorted({*run.manifest.local_paths, *(place for place in evaluated if Path(place).is_absolute())})
    if local:
        notes.append(f"the recipe, manifest or figures contain paths of this machine: {', '.join(local)}")
    return tuple(notes)


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
            f"{repo_id!r} cannot be the name of a repository on the Hub",
            found=fault,
            fix="write organisation/name or user/name: letters, digits and . _ - only",
        )


def _require_means(repo_id: str) -> None:
    """Raise UserError when the Hub may not be asked, or there is no token to ask it with."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"nothing was sent to {repo_id}", found="HF_HUB_OFFLINE is set", fix="unset HF_HUB_OFFLINE"
        )
    if get_token() is None:
        raise UserError(
            "the Hub accepts uploads only with a token",
            found="no token: neither HF_TOKEN nor a login",
            fix="hf auth login, or set HF_TOKEN to a token that may write",
        )


def _repository(api: HfApi, repo_id: str, *, private: bool, revision: str | None) -> ModelInfo:
    """The repository as it is before the push, created where there was none.

    Raises UserError when its visibility is not the one asked for, or it contains something other than a run.
    """
    _asked(api.create_repo, repo_id, private=private, exist_ok=True)
    if revision is not None:
        _asked(api.create_branch, repo_id, branch=revision, exist_ok=True)
    there = _asked(api.model_info, repo_id, revision=revision)
    if bool(there.private) != private:
        raise UserError(
            f"{repo_id} is {'public: everybody would see the run' if private else 'private, and stays so'}",
            found=f"asked for {'--private' if private else '--public'}",
            fix=f"use {'--public' if private else '--private'}, change it in the repository's settings, "
            "or choose another name",
        )
    others = _names(there) - _OF_NEW_REPOSITORIES
    if others and not others >= _OF_EVERY_RUN:
        raise UserError(
            f"{repo_id} is taken: it contains something other than a run of newsdesk",
            found=", ".join(sorted(others)[:5]),
            fix="choose another name, or empty the repository first",
        )
    return there


def _names(there: ModelInfo) -> set[str]:
    return {sibling.rfilename for sibling in there.siblings or ()}


def _earlier_push(api: HfApi, there: ModelInfo) -> tuple[set[str], str | None]:
    """The files of the last push, and the card, if someone has edited it on the Hub since."""
    if not _names(there) >= {CARD, MANIFEST}:
        return set(), None
    with tempfile.TemporaryDirectory() as folder:
        for name in (CARD, MANIFEST):
            _asked(api.hf_hub_download, there.id, name, revision=there.sha, local_dir=folder)
        card, manifest = Path(folder, CARD), Path(folder, MANIFEST)
        pushed = read_stored(manifest, Manifest, fix="choose another name").files
        edited = sha256_of(card) != pushed.get(CARD)
        return set(pushed), read_regular(card).decode(errors="replace") if edited else None


def _asked(ask: Callable[..., T], *arguments: Any, seconds: float | None = None, **named: Any) -> T:
    """What the Hub's client returns, or TransferError when it takes longer than a server may."""
    limit = transfer.ANSWER_SECONDS if seconds is None else seconds
    return watched(lambda _watch: ask(*arguments, **named), "asking the Hub", silent, stall=limit)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep the Hub client's own bars off the terminal: progress is the command line's to show."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn whatever the Hub's client raises into a UserError; the original stays attached as the cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of whichever HTTP library the client's version uses
        raise _refusal(repo_id, error) from error


def _refusal(repo_id: str, error: Exception) -> UserError:
    """What an exception of the Hub's client means to the person who pushes."""
    from huggingface_hub import constants

    answered: BaseException = error
    while getattr(answered, "response", None) is None and answered.__cause__ is not None:
        answered = answered.__cause__
    status = getattr(getattr(answered, "response", None), "status_code", None)
    said = first_line(getattr(answered, "server_message", None) or str(error).strip().rpartition("\n")[2])
    found = f"{constants.ENDPOINT} answered {status}: {said}"
    if status == 401:
        wrong, fix = "the Hub does not know the token", "hf auth login again, or set HF_TOKEN to a valid one"
    elif status in (403, 404):
        wrong = f"the Hub does not let this token write to {repo_id}"
        owner = repo_id.partition("/")[0]
        fix = f"check that {owner} exists and that the token may write there (hf auth whoami)"
    elif status in (409, 412):
        wrong = f"{repo_id} changed while the run was being sent: nothing was committed"
        fix = "look at what changed there, and push again"
    elif status == 429:
        wrong = "the Hub answers no more requests for now: nothing was committed"
        fix = "push again later: what has arrived is not sent again"
    elif status is not None or "metadata" in str(error):
        wrong = f"the Hub did not accept the run for {repo_id}"
        fix = "fix what it says, or try again later; what has arrived is not sent again"
    else:
        reason = first_line(error.__cause__ or error) or type(error).__name__
        wrong, found = "the Hub cannot be reached, or the upload broke off", f"{constants.ENDPOINT}: {reason}"
        fix = "check the network and push again: what has arrived is not sent again"
    return UserError(wrong, found=found, fix=fix)
