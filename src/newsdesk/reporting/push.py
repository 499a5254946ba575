"""A run to the Hugging Face Hub, in one commit: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE count as everywhere."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsdesk import __version__
from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.reporting.push_plan import PushPlan, plan_push
from newsdesk.sources.hub import without_progress_bars
from newsdesk.stored import read_stored
from newsdesk.training.manifest import Manifest
from newsdesk.training.run_folder import CARD, LABELS, MANIFEST

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

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
