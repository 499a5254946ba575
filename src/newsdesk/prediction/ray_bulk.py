"""Predictions on many machines: Ray Data hands shards to workers, each with a model of its own.

Ray repeats what a lost machine was doing. Ray Data's own writers name files by the job and the task, so that
a job begun again writes its rows a second time, and its readers give up a file for one bad row. Here the
rows that travel through Ray Data are names of files; reading and writing is ``predict_file``'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from newsdesk import __version__
from newsdesk.data.dialect import Dialect
from newsdesk.errors import UserError, counted, missing_package
from newsdesk.model.tokenizer import Truncation
from newsdesk.prediction.abstention import PROMISES
from newsdesk.prediction.bulk import predict_file
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.open_model import OnnxClassifier
from newsdesk.prediction.output_table import Format
from newsdesk.prediction.shards import (
    Counts,
    Shard,
    Storage,
    begin_job,
    done_before,
    finish_shard,
    noted_counts,
    refuse_nested,
    shards_of,
)
from newsdesk.runs.exported import ExportedModel
from newsdesk.runs.folder import MANIFEST


@dataclass(frozen=True)
class JobBegun:
    """The job's files are known: how many there are, and how many an earlier call finished."""

    shards: int
    done: int


@dataclass(frozen=True)
class ShardDone:
    """A shard is finished.

    Attributes:
        output: its output's path below the output folder.
        rows: rows of its input, bad ones included.
        rejected: how many of them were bad.
        unanswered: how many were left without a label.
        done: how many shards are finished, this one included.
        of: how many there are.
    """

    output: str
    rows: int
    rejected: int
    unanswered: int
    done: int
    of: int


@dataclass(frozen=True)
class Totals:
    """What lies in the output folder in the end.

    Attributes:
        shards: files.
        rows: rows read for them, bad ones included.
        rejected: how many of these were bad.
        unanswered: how many were left without a label,
        unreadable: and how many of these because their text says nothing.
        cut, tokens, lost: texts that were cut, tokens of all texts, and those not read.
    """

    shards: int
    rows: int
    rejected: int
    unanswered: int = 0
    unreadable: int = 0
    cut: int = 0
    tokens: int = 0
    lost: int = 0

    @property
    def truncation(self) -> Truncation:
        """How many of the texts were cut."""
        return Truncation(self.rows - self.rejected, self.cut, self.tokens, self.lost)


RayEvent: TypeAlias = JobBegun | ShardDone


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
    same call goes on with the files that are not done. A file that cannot be read to its end does not stop
    the others; an error names such files when all others are done.

    Args:
        predictor: an ONNX export, from ``newsdesk.load``; its files travel to the workers through Ray.
        source: a file or folder, as a path that all machines share or the URI of an object store.
        destination: a folder, likewise.
        address: the cluster's, as ``ray.init`` takes it; None: ``RAY_ADDRESS``, else this machine alone.
        workers: how many, each with a model in memory; None: what the cluster's cores hold now.
        cores: of each worker.
        format: of all outputs; None: each file keeps its own.
        strict: stop at the first file with a bad row.
        observe: called for every finished file.
        settings: those of ``predict_file`` that say what is read, named and promised.

    Raises:
        UserError: when predictor, paths or cluster cannot be used, when the output folder holds anything
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
    refuse_nested(inputs, outputs)
    shards = shards_of(inputs, format)
    _ray()  # before anything is written
    with TemporaryDirectory(prefix="newsdesk-") as folder:
        begin_job(outputs, _identity(predictor, format, settings), shards, Path(folder))
    done = done_before(outputs, shards)
    waiting = [shard for shard in shards if shard.output not in done]
    observe(JobBegun(len(shards), len(done)))
    if waiting:
        with _connected(address) as ray:
            exported = ray.put(_files_of(predictor.exported))
            arguments = (exported, source, destination, {**settings, "strict": strict}, cores)
            reports = _reports(ray, waiting, arguments, workers, cores)
            failures = _follow(reports, done, len(shards), strict, observe)
        _check_finished(outputs, done, failures, strict)
    return Totals(len(shards), *(sum(column) for column in zip(*done.values(), strict=True)))


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
        self._predictor = OnnxClassifier(ExportedModel(Path(self._folder.name)), threads=cores)
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
            return {"output": shard.output, **Counts(0, 0)._asdict(), "failure": f"{error.wrong}{found}"}
        return {"output": shard.output, **counts._asdict(), "failure": ""}

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
            counts = Counts(
                done.rows_read,
                done.rejected,
                done.unanswered,
                done.unreadable,
                done.cut,
                done.tokens,
                done.lost,
            )
            finish_shard(self._outputs, shard, written, rejects, counts)
            return counts


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster for as long as the block lasts; a connection that was there stays.

    Raises UserError without Ray or the cluster, and for whatever of Ray fails in the block.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # Ray Data tells its plans unasked
        yield ray
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise UserError(
            "the job on Ray broke off",
            found=(str(error).strip().splitlines() or [type(error).__name__])[-1],
            fix="see that all machines have the same newsdesk[ray] and give the same command again: it goes "
            "on with the files that are not done; --debug shows what Ray says",
        ) from error
    finally:
        if ours:
            ray.shutdown()


def _identity(
    predictor: OnnxClassifier, format: Format | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What has to be the same for a job to go on, as JSON values."""
    stated = {name: each.to_dict() if isinstance(each, Dialect) else each for name, each in settings.items()}
    return {"newsdesk": __version__, "model": predictor.fingerprint, "format": format, **stated}


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
        if report["failure"]:
            failures.append(f"{report['output']}: {report['failure']}")
            if strict:
                break
        else:
            done[report["output"]] = counts = Counts(*(report[name] for name in Counts._fields))
            observe(ShardDone(report["output"], *counts[:3], len(done), of))
    return failures


def _check_finished(outputs: Storage, done: dict[str, Counts], failures: list[str], strict: bool) -> None:
    """Raise UserError if shards failed, or were written where this machine cannot see them."""
    again = "the same command goes on with the files that are not done"
    if failures:
        raise UserError(
            "stopped at a file with a bad row" if strict else f"files not classified: {len(failures):,}",
            found="; ".join(failures[:3]) + ("; ..." if len(failures) > 3 else ""),
            fix=f"fix the files, or leave --strict out; {again}" if strict else f"fix the files; {again}",
        )
    unseen = set(done) - set(outputs.notes())
    if unseen:
        raise UserError(
            f"the workers wrote to a folder {outputs.location} that is not the one here",
            found=f"{counted(len(unseen), 'file')} are done and not to be seen, such as {min(unseen)}",
            fix="give --output a folder that all machines share, or the URI of an object store",
        )


def _files_of(exported: ExportedModel) -> dict[str, bytes]:
    """The bytes of an exported model's files by name; each worker checks them against the manifest."""
    names = (*exported.manifest.files, MANIFEST)
    return {name: (exported.path / name).read_bytes() for name in names}
