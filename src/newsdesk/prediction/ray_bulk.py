"""Predictions on many machines: Ray Data hands input files (shards) to workers, each with a model of its own.

Every input file becomes one output file, published whole under a name known beforehand; a note written last
says that it is done. So a shard that is classified twice, because a machine was lost or only seemed to be,
replaces its own output with the same rows. Ray Data's own writers name files by the job and the task, and its
readers give up a file for one bad row: only names of files go through them, ``predict_file`` does the rest.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from newsdesk import __version__
from newsdesk.data.dialect import Dialect
from newsdesk.errors import UserError, counted, missing_package
from newsdesk.files import atomic_writer, json_bytes, parsed_json
from newsdesk.prediction.abstention import PROMISES
from newsdesk.prediction.bulk import predict_file
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.open_model import OnnxClassifier, open_model
from newsdesk.prediction.output_table import Format, output_for
from newsdesk.prediction.resumable_output import Counts
from newsdesk.runs.folder import MANIFEST
from newsdesk.stored import WrongContentError, from_content

JOB, DONE, REJECTS = "_job.json", "_done", "_rejects"
"""Parts of an output folder that are not data: whoever reads a folder of data skips names that begin so."""

_HIDDEN = ("_", ".")
_STREAM_CHUNK = 1 << 22


@dataclass(frozen=True)
class JobBegun:
    """The job's files are known: how many there are, and how many an earlier call finished."""

    shards: int
    done: int


@dataclass(frozen=True)
class ShardDone:
    """A shard is finished, written to ``output`` in the output folder; ``done`` ``of`` all shards are."""

    output: str
    counts: Counts
    done: int
    of: int


RayEvent: TypeAlias = JobBegun | ShardDone


@dataclass(frozen=True)
class Totals(Counts):
    """What is in the output folder in the end: the counts of so many ``shards``."""

    shards: int = 0


def predict_on_ray(
    predictor: Classifier,
    source: str,
    destination: str,
    *,
    address: str | None = None,
    workers: int | None = None,
    cores: int = 1,
    format: Format | None = None,
    strict: bool = False,
    observe: Callable[[RayEvent], None] = lambda _event: None,
    **settings: Any,
) -> Totals:
    """Classify every row of every file at ``source`` on a Ray cluster; each file becomes one output file.

    ``destination`` gets the outputs under the inputs' names, ``_rejects/`` with the bad rows of each,
    ``_done/`` with a note of each finished file, and ``_job.json``. Given again after whatever failed, the
    same call does the files that are not done. A file that cannot be read to its end does not stop the
    others; an error names such files when all others are done.

    Args:
        predictor: an ONNX export, from ``newsdesk.open_model``; its files travel to the workers through Ray.
        source: a file or folder, as a path that all machines share or the URI of an object store.
        destination: a folder, likewise.
        address: the cluster's, as ``ray.init`` takes it; None: ``RAY_ADDRESS``, else this machine alone.
        workers, cores: how many, each with a model in memory (None: as the cluster's cores allow now), and
            how many cores each gets.
        format: of all outputs; None: each file keeps its own.
        strict, observe: stop at the first file with a bad row; called for every finished file.
        settings: those of ``predict_file`` that say what is read, named and promised.

    Raises UserError when predictor, paths or cluster cannot be used, when the output folder contains anything
    else, and for files that could not be classified.
    """
    if not isinstance(predictor, OnnxClassifier):
        raise UserError(
            f"workers on Ray compute ONNX exports, not {predictor.path}",
            found=predictor.engine,
            fix="newsdesk export RUN --to onnx-int8, and predict with that",
        )
    predictor.decision_rule(**{name: settings[name] for name in settings if name in PROMISES})  # or refuse
    inputs, outputs = Storage(source), Storage(destination)
    shards = shards_of(inputs, format)
    _ray()  # before anything is written
    stated = {name: each.to_dict() if isinstance(each, Dialect) else each for name, each in settings.items()}
    identity = {"newsdesk": __version__, "model": predictor.fingerprint, "format": format, **stated}
    begin_job(inputs, outputs, identity, shards)
    done = done_before(outputs, shards)
    waiting = [shard for shard in shards if shard.output not in done]
    observe(JobBegun(len(shards), len(done)))
    if waiting:
        with _connected(address) as ray:
            files = (*predictor.files, MANIFEST)  # workers check them against the manifest
            exported = ray.put({name: (predictor.path / name).read_bytes() for name in files})
            arguments = (exported, source, destination, {**settings, "strict": strict}, cores)
            reports = _reports(ray, waiting, arguments, workers, cores)
            failures = _follow(reports, done, len(shards), strict, observe)
        _check_finished(outputs, done, failures, strict)
    totals = Totals(*(sum(column) for column in zip(*map(astuple, done.values()), strict=True)))
    return replace(totals, shards=len(shards))


@dataclass(frozen=True)
class Shard:
    """One input file and what becomes of it.

    Attributes:
        source, output: the paths below the input and the output folder.
        format: of the output.
        size, changed: bytes of the input, and when it was last changed, in nanoseconds since 1970.
    """

    source: str
    output: str
    format: Format
    size: int
    changed: int

    @property
    def note(self) -> str:
        """The file in the output folder that says that it is done."""
        return f"{DONE}/{self.output}.json"


class Storage:
    """A folder, ``local`` or in an object store, at a ``location`` such as ``s3://bucket/folder``."""

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
        with self._explained("read"), suppress(FileNotFoundError):
            content: bytes = self._filesystem.open_input_stream(self._path(name)).read()
            return content
        return None

    def fetch(self, name: str, folder: Path) -> Path:
        """The file as a local one, copied into ``folder`` if it is not. Raises UserError if it is missing."""
        path = self._path(name)
        if self.local:
            return Path(path)
        copy = folder / PurePosixPath(path).name
        with self._explained("read"):
            self._fs.copy_files(path, str(copy), source_filesystem=self._filesystem)
        return copy

    def publish(self, content: Path | bytes, name: str) -> None:
        """Put bytes, or those of a local file, under ``name``, whole or not at all, as object stores do."""
        path = self._path(name)
        with (
            self._explained("write"),
            io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream,
            atomic_writer(Path(path)) if self.local else self._filesystem.open_output_stream(path) as sink,
        ):
            shutil.copyfileobj(stream, sink, _STREAM_CHUNK)

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        with self._explained("write"), suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(name))

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

    An output has its input's name, with the format added where that differs. Files and folders whose names
    begin with ``_`` or ``.`` are no data. Raises UserError when there is no file, one of unknown format, or
    two whose outputs would have the same name.
    """
    shards: dict[str, Shard] = {}
    for name, size, changed in source.files():
        if any(part.startswith(_HIDDEN) for part in PurePosixPath(name).parts):
            continue
        output = name or source.name
        output, chosen = output_for(output, format)
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


def begin_job(source: Storage, output: Storage, job: Mapping[str, Any], shards: list[Shard]) -> None:
    """Note in the output folder which job fills it.

    Raises UserError when the output is in the input, or contains anything that this job would not write.
    """
    if source.contains(output):
        raise UserError(
            "the output folder is inside the input folder",
            found=f"--input {source.location} --output {output.location}",
            fix="give --output a folder outside",
        )
    identity = json.loads(json.dumps(job))
    noted = output.read(JOB)
    expected = {shard.output for shard in shards}
    outputs = {name for name, _, _ in output.files() if not name.startswith(_HIDDEN)}
    fix = f"give --output another folder, or empty {output.location} first"
    if outputs - expected or (outputs and noted is None):
        raise UserError(
            f"{output.location} contains files that this job does not write",
            found=", ".join(sorted(outputs - expected or outputs)[:5]),
            fix=fix,
        )
    if noted is None:
        output.publish(json_bytes(identity), JOB)
    elif (before := _noted_object(noted)) != identity:
        raise UserError(
            f"{output.location} contains the output of another job",
            found=f"it differs in {', '.join(key for key in identity if before.get(key) != identity[key])}",
            fix=fix,
        )


def _noted_object(content: bytes | None) -> dict[str, Any]:
    """The object in a note; an empty one where there is none, or the note is damaged."""
    with suppress(ValueError):
        found = parsed_json(content or b"")
        return found if isinstance(found, dict) else {}
    return {}


def done_before(output: Storage, shards: list[Shard]) -> dict[str, Counts]:
    """The counts of the shards that are finished, by output."""
    noted = {name for name, _, _ in output.files(DONE)}
    counts = {shard.output: noted_counts(output, shard) for shard in shards if shard.note in noted}
    return {name: found for name, found in counts.items() if found is not None}


def noted_counts(output: Storage, shard: Shard) -> Counts | None:
    """The counts of a shard that is finished; None if it is not, or if its input has changed since."""
    note = _noted_object(output.read(shard.note))
    if (note.get("size"), note.get("changed")) != (shard.size, shard.changed) or "rows_read" not in note:
        return None
    try:
        return from_content(Counts, note)
    except WrongContentError:
        return None


def finish_shard(output: Storage, shard: Shard, written: Path, rejects: Path, counts: Counts) -> None:
    """Publish a shard's output and rejects, local files of which the latter may be missing; then the note."""
    rejects_name = f"{REJECTS}/{shard.output}.jsonl"
    if rejects.is_file():
        output.publish(rejects, rejects_name)
    else:
        output.remove(rejects_name)
    output.publish(written, shard.output)
    output.publish(json_bytes({**asdict(counts), "size": shard.size, "changed": shard.changed}), shard.note)


class ShardWorker:
    """Classifies shards with one model, loaded once; Ray Data keeps as many of these as there is room for."""

    def __init__(
        self, exported: Any, source: str, destination: str, settings: dict[str, Any], cores: int
    ) -> None:
        """Unpack the exported model, a reference to files in Ray's memory; load it on ``cores`` threads."""
        import ray

        self._folder = TemporaryDirectory(prefix="newsdesk-")  # for as long as the worker lives
        for name, content in ray.get(exported).items():
            path = Path(self._folder.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self._predictor = open_model(self._folder.name, threads=cores)
        self._inputs, self._outputs = Storage(source), Storage(destination)
        self._settings = settings

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Classify the shard unless that was done; ``failure`` in the report says why it could not be."""
        shard = Shard(**row)
        try:
            # Ray asks again for what was finished on a machine that is lost since.
            counts = noted_counts(self._outputs, shard) or self._classify(shard)
        except UserError as error:
            found = f" ({error.found})" if error.found else ""
            return {"output": shard.output, **asdict(Counts()), "failure": f"{error.wrong}{found}"}
        return {"output": shard.output, **asdict(counts), "failure": ""}

    def _classify(self, shard: Shard) -> Counts:
        with TemporaryDirectory(prefix="newsdesk-") as folder:
            written, rejects = Path(folder, "written", Path(shard.output).name), Path(folder, "rejects.jsonl")
            done = predict_file(
                self._predictor,
                self._inputs.fetch(shard.source, Path(folder)),
                written,
                format=shard.format,
                rejects=rejects,
                **self._settings,
            )
            counts = Counts(*(getattr(done, entry.name) for entry in fields(Counts)))
            finish_shard(self._outputs, shard, written, rejects, counts)
            return counts


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster for as long as the block lasts; a connection that was there stays.

    Raises UserError without the cluster, and for whatever of Ray fails in the block.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # Ray Data logs its plans unasked
        yield ray
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise UserError(
            "the job on Ray broke off",
            found=(str(error).strip().splitlines() or [type(error).__name__])[-1],
            fix="see that all machines have the same newsdesk[ray] and give the same command again: it does "
            "the files that are not done; --debug shows what Ray says",
        ) from error
    finally:
        if ours:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing_package("ray", "ray", "--engine ray") from None
    return ray


def _reports(
    ray: Any, waiting: list[Shard], arguments: tuple[Any, ...], workers: int | None, cores: int
) -> Iterator[dict[str, Any]]:
    """The workers' reports, in whatever order they come."""
    size = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // cores)
    rows = ray.data.from_items([asdict(shard) for shard in waiting], override_num_blocks=len(waiting))
    # One shard at a time: what waits at a worker that is lost would wait until it is replaced.
    pool = ray.data.ActorPoolStrategy(size=min(size, len(waiting)), max_tasks_in_flight_per_actor=1)
    reports = rows.map(ShardWorker, compute=pool, num_cpus=cores, fn_constructor_args=arguments)
    yield from reports.iter_rows()


def _follow(
    reports: Iterator[dict[str, Any]],
    done: dict[str, Counts],
    of: int,
    strict: bool,
    observe: Callable[[RayEvent], None],
) -> list[str]:
    """Enter what is finished into ``done``; what is said of each of the other shards."""
    failures = []
    for report in reports:
        output, failure = report.pop("output"), report.pop("failure")
        if failure:
            failures.append(f"{output}: {failure}")
            if strict:
                break
        else:
            done[output] = Counts(**report)
            observe(ShardDone(output, done[output], len(done), of))
    return failures


def _check_finished(outputs: Storage, done: dict[str, Counts], failures: list[str], strict: bool) -> None:
    """Raise UserError if shards failed, or were written where this machine cannot see them."""
    again = "the same command does the files that are not done"
    if failures:
        raise UserError(
            "stopped at a file with a bad row" if strict else f"files not classified: {len(failures):,}",
            found="; ".join(failures[:3]) + ("; ..." if len(failures) > 3 else ""),
            fix=f"fix the files, or leave --strict out; {again}" if strict else f"fix the files; {again}",
        )
    noted = {name for name, _, _ in outputs.files(DONE)}
    unseen = [output for output in done if f"{DONE}/{output}.json" not in noted]
    if unseen:
        raise UserError(
            f"the workers wrote to a folder {outputs.location} that is not the one here",
            found=f"{counted(len(unseen), 'file')} are done but not visible here, such as {min(unseen)}",
            fix="give --output a folder that all machines share, or the URI of an object store",
        )
