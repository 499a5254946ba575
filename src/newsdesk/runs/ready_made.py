"""Classifiers that are installed with newsdesk: finished runs, known by name, which are never written to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from newsdesk.errors import UserError
from newsdesk.files import damaged, sha256_of
from newsdesk.runs.manifest import Manifest
from newsdesk.stored import read_stored

FOLDER = Path(__file__).parents[1] / "ready_made"
"""A run for each classifier, and their catalogue."""
CATALOGUE = "classifiers.toml"

_FIX = "install newsdesk again: pip install --force-reinstall --no-deps newsdesk"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ReadyMade:
    """A classifier that comes with newsdesk.

    Attributes:
        name: what verbs take in place of a run's folder.
        description: one line for ``newsdesk models list``.
        data_set: the name of the data set that it was trained on.
        notice: what its licence asks of whoever uses it, a sentence.
        card: what its model card says of its use and limits, in Markdown, above what every card says.
        manifest_sha256: of its manifest.json, which holds those of its other files.
    """

    name: str
    description: str
    data_set: str
    notice: str
    card: str
    manifest_sha256: str

    @property
    def path(self) -> Path:
        """Its run."""
        return FOLDER / self.name

    def verify(self) -> None:
        """Check every file against its sha256. Raises UserError for the first that is missing or differs."""
        manifest = self.path / _MANIFEST
        self._verify(_MANIFEST, self.manifest_sha256)
        for file, expected in read_stored(manifest, Manifest, fix=_FIX).files.items():
            self._verify(file, expected)

    def _verify(self, file: str, expected: str) -> None:
        path = self.path / file
        found = sha256_of(path) if path.is_file() else "no such file"
        if found != expected:
            raise damaged(path, f"{found}, expected {expected}", fix=_FIX)


@cache
def ready_made() -> Mapping[str, ReadyMade]:
    """The classifiers by name, as the catalogue has them."""
    import tomllib

    entries = tomllib.loads((FOLDER / CATALOGUE).read_text(encoding="utf-8"))
    return {name: ReadyMade(name, **facts) for name, facts in entries.items()}


def named(path: Path) -> ReadyMade | None:
    """The ready-made classifier whose name a path is, even where something is at that path; else None."""
    if len(path.parts) != 1 or not (FOLDER / path).is_dir():  # nearly always: the catalogue is not read
        return None
    return ready_made().get(str(path))


def located(path: Path) -> Path:
    """``path``, or where it is the name of a ready-made classifier and nothing is there, that one's run.

    Raises UserError where the installed files are not those that newsdesk was released with.
    """
    known = named(path)
    if known is None or path.exists():
        return path
    known.verify()
    return known.path


def name_of(path: Path) -> str | None:
    """The name of the ready-made classifier whose run is at ``path``; None for any other folder."""
    return path.name if path.parent == FOLDER and path.name in ready_made() else None


def require_own(path: Path, what: str, *, otherwise: str = "") -> None:
    """Raise UserError where ``what`` would be written into a ready-made classifier.

    ``otherwise`` names a way to have it elsewhere: ``name another file with --out``.
    """
    name = name_of(path)
    if name is None:
        return
    copied = f"make a run of your own first: newsdesk models pull {name} --out runs/{name}"
    raise UserError(
        f"{what} cannot be kept in {name}, which belongs to the installation of newsdesk",
        found=str(path),
        fix=f"{otherwise}, or {copied}" if otherwise else copied,
    )
