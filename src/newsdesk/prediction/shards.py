"""A job in shards: every input file becomes one output file, published whole, under a name known beforehand.

That makes repeating harmless. A shard that is classified twice, because a machine was lost or only seemed to
be, replaces its own output with the same rows; a note written last says that it need not be done again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from newsdesk.data.stream import format_of
from newsdesk.errors import UserError, missing_package
from newsdesk.files import atomic_writer
from newsdesk.prediction.output_table import Format

JOB = "_job.json"
DONE = "_done"
REJECTS = "_rejects"
"""Parts of an output folder that are not data: whoever reads a folder of data skips names that begin so."""

_NOTE = ".json"
_HIDDEN = ("_", ".")
_SAME_FORMAT = {"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet"}
_STREAM_CHUNK = 1 << 22


class Counts(NamedTuple):
    """What became of a shard: rows read, rejected, left without a label, and that for an empty text.

    ``cut`` texts were longer than the model reads; of ``tokens`` of all texts, ``lost`` were not read.
    """

    rows: int
    rejected: int
    unanswered: int = 0
    unreadable: int = 0
    cut: int = 0
    tokens: int = 0
    lost: int = 0


@dataclass(frozen=True)
class Shard:
    """One input file and what becomes of it.

    Attributes:
        source: the input's path below the input folder.
        output: the output's path below the output folder.
        format: the output's format.
        size: of the input, in bytes.
        changed: when the input was last changed, in nanoseconds since 1970.
    """

    source: str
    output: str
    format: Format
    size: int
    changed: int


class Storage:
    """A folder, local or in an object store, named by a path or a URI such as ``s3://bucket/folder``.

    Attributes:
        location: as it was given.
        local: whether it is a folder of this machine.
        name: its last part.
    """

    def __init__(self, location: str) -> None:
        """Connect to it. Raises UserError for a URI that is not understood, and without pyarrow."""
        try:
            from pyarrow import ArrowException, fs
        except ImportError:
            raise missing_package("pyarrow", "ray", "reading and writing folders of files") from None
        self.location = location
        self._fs = fs
        try:
            if "://" in location:
                self._filesystem, self._base = fs.FileSystem.from_uri(location)
            else:
                self._filesystem, self._base = fs.LocalFileSystem(), str(Path(location).absolute())
        except (ArrowException, OSError) as error:
            raise UserError(
                f"{location} cannot be opened",
                found=str(error).splitlines()[0],
                fix="give a path, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or abfs://CONTAINER/FOLDER",
            ) from error
        self.local = self._filesystem.type_name == "local"
        self.name = PurePosixPath(self._base).name

    def files(self, below: str = "") -> Iterator[tuple[str, int, int]]:
        """Name below the folder, bytes and time of change (ns) of each file, by name; none if it is missing.

        Of a file instead of a folder: its own, with the empty name.
        """
        path = self._path(below)
        with self._explained("read"):
            info = self._filesystem.get_file_info(path)
            if info.type == self._fs.FileType.Directory:
                selector = self._fs.FileSelector(path, recursive=True)
                found = self._filesystem.get_file_info(selector)
            else:
                found = [info]
        for entry in sorted(found, key=lambda entry: str(entry.path)):
            if entry.type == self._fs.FileType.File:
                name = PurePosixPath(entry.path).relative_to(self._base).as_posix()
                yield "" if name == "." else name, entry.size, entry.mtime_ns or 0

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        with self._explained("read"):
            try:
                with self._filesystem.open_input_stream(self._path(name)) as stream:
                    content: bytes = stream.read()
                    return content
            except FileNotFoundError:
                return None

    def fetch(self, name: str, folder: Path) -> Path:
        """The file as a local one, copied into ``folder`` if it is not. Raises UserError if it is missing."""
        path = self._path(name)
        if self.local:
            return Path(path)
        copy = folder / PurePosixPath(path).name
        with (
            self._explained("read"),
            self._filesystem.open_input_stream(path) as stream,
            copy.open("wb") as sink,
        ):
            shutil.copyfileobj(stream, sink, _STREAM_CHUNK)
        return copy

    def publish(self, source: Path, name: str) -> None:
        """Put a local file's bytes under ``name``, whole or not at all.

        A local folder gets them by a rename; an object store shows an object once all of it has arrived.
        """
        with self._explained("write"), source.open("rb") as content:
            if self.local:
                with atomic_writer(Path(self._path(name))) as sink:
                    shutil.copyfileobj(content, sink, _STREAM_CHUNK)
            else:
                with self._filesystem.open_output_stream(self._path(name)) as sink:
                    shutil.copyfileobj(content, sink, _STREAM_CHUNK)

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        with self._explained("write"):
            try:
                self._filesystem.delete_file(self._path(name))
            except FileNotFoundError:
                return

    def notes(self) -> list[str]:
        """The outputs that are noted as done."""
        found = (name for name, _, _ in self.files(DONE))
        return [name.removeprefix(f"{DONE}/").removesuffix(_NOTE) for name in found]

    def contains(self, other: Storage) -> bool:
        """Whether the other is this folder, or a folder below it."""
        same = self._filesystem.type_name == other._filesystem.type_name
        return same and PurePosixPath(other._base).is_relative_to(self._base)

    def _path(self, name: str) -> str:
        return str(PurePosixPath(self._base, name))

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot {verb} {self.location}",
                found=(str(error).splitlines() or ["no reason given"])[0],
                fix="check path, rights and credentials on every machine that takes part",
            ) from error


def shards_of(source: Storage, format: Format | None) -> list[Shard]:
    """The shards of an input folder or single file; ``format`` None keeps each file's own.

    Files and folders whose names begin with ``_`` or ``.`` are no data. Raises UserError when there is no
    file, one of unknown format, or two whose outputs would bear the same name.
    """
    shards: dict[str, Shard] = {}
    for name, size, changed in source.files():
        if any(part.startswith(_HIDDEN) for part in PurePosixPath(name).parts):
            continue
        output, chosen = _output_of(name or source.name, format)
        if output in shards:
            raise UserError(
                f"two input files would share the output file {output}",
                found=f"{shards[output].source}, {name}",
                fix="rename one of them",
            )
        shards[output] = Shard(name, output, chosen, size, changed)
    if not shards:
        raise UserError(
            f"there are no data files at {source.location}",
            fix="give --input a file or a folder of csv, tsv, jsonl, json, txt, parquet, xlsx or zip files",
        )
    return list(shards.values())


def refuse_nested(source: Storage, output: Storage) -> None:
    """Raise UserError for an output in the input folder: the job, given again, would classify it."""
    if source.contains(output):
        raise UserError(
            "the output folder lies in the input folder",
            found=f"--input {source.location} --output {output.location}",
            fix="give --output a folder outside",
        )


def begin_job(output: Storage, job: dict[str, Any], shards: list[Shard], folder: Path) -> None:
    """Note in the output folder which job fills it; ``folder`` is for a temporary file.

    Raises UserError when the folder holds anything that this job would not write: two jobs in one folder
    would mix their rows.
    """
    identity = json.loads(json.dumps(job))
    noted = output.read(JOB)
    expected = {shard.output for shard in shards}
    outputs = {name for name, _, _ in output.files() if not name.startswith(_HIDDEN)}
    fix = f"give --output another folder, or empty {output.location} first"
    if outputs - expected or (outputs and noted is None):
        raise UserError(
            f"{output.location} holds files that this job does not write",
            found=", ".join(sorted(outputs - expected or outputs)[:5]),
            fix=fix,
        )
    if noted is not None and json.loads(noted) != identity:
        before = json.loads(noted)
        others = [key for key in identity if before.get(key) != identity[key]]
        raise UserError(
            f"{output.location} holds the output of another job",
            found=f"it differs in {', '.join(others)}",
            fix=fix,
        )
    if noted is None:
        _publish_json(output, identity, JOB, folder)


def done_before(output: Storage, shards: list[Shard]) -> dict[str, Counts]:
    """The counts of the shards that are finished, by output."""
    noted = set(output.notes())
    counts = {shard.output: noted_counts(output, shard) for shard in shards if shard.output in noted}
    return {name: found for name, found in counts.items() if found is not None}


def noted_counts(output: Storage, shard: Shard) -> Counts | None:
    """The counts of a shard that is finished; None if it is not, or if its input has changed since."""
    noted = output.read(_note_of(shard))
    if noted is None:
        return None
    note = json.loads(noted)
    same_input = (note["size"], note["changed"]) == (shard.size, shard.changed)
    return Counts(*(note.get(name, 0) for name in Counts._fields)) if same_input else None


def finish_shard(output: Storage, shard: Shard, written: Path, rejects: Path, counts: Counts) -> None:
    """Publish a shard's output and rejects, then the note that it is done.

    ``written`` and ``rejects`` are local files, the latter there only if rows were rejected; ``counts``
    are for the note.
    """
    rejects_name = f"{REJECTS}/{shard.output}.jsonl"
    if rejects.is_file():
        output.publish(rejects, rejects_name)
    else:
        output.remove(rejects_name)
    output.publish(written, shard.output)
    note = {**counts._asdict(), "size": shard.size, "changed": shard.changed}
    _publish_json(output, note, _note_of(shard), written.parent)


def _note_of(shard: Shard) -> str:
    return f"{DONE}/{shard.output}{_NOTE}"


def _publish_json(output: Storage, content: dict[str, Any], name: str, folder: Path) -> None:
    file = folder / "note.json"
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    output.publish(file, name)


def _output_of(name: str, format: Format | None) -> tuple[str, Format]:
    """Name and format of an input file's output: its own name, with the format added where that differs."""
    form, _ = format_of(Path(name))
    own = _SAME_FORMAT.get(form, "jsonl" if form == "json" else "csv")
    chosen: Format = format or own  # type: ignore[assignment]
    ending = "csv" if chosen == "submission" else chosen
    return (name if _SAME_FORMAT.get(form) == ending else f"{name}.{ending}"), chosen
