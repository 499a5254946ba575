"""Texts of many requests to batches: a bounded queue, one thread that tokenises, and some that compute.

The event loop only hands texts over and takes answers back. A thread that is free takes the oldest text that
waits, and with it others of like length as far as the budget of tokens goes: nothing waits for a batch to
fill, and batches grow with the load.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError, first_line
from newsdesk.model.tokenizer import Encoded, TokenIds
from newsdesk.serving.refusals import Refusal

T = TypeVar("T")

Row = tuple[TokenIds, str]
"""The token ids of a text as they are read, special ones included, and the key of the model that is asked."""

_RATE_MEMORY = 0.1  # share of a new batch in the running mean of the speed
_JOBS_TOKENISED_TOGETHER = 64
_HEADROOM = 0.75  # of a request's time, that it may be expected to wait: speeds vary


@dataclass(frozen=True)
class Computed:
    """What an engine computes of a row: its logits, (classes,), and how far it is from the training topics.

    The distance is None where a model has no off-topic score.
    """

    logits: NDArray[np.float32]
    distance: float | None = None


class Engine(Protocol):
    """What computes rows of one or several models; those of one engine may share a batch."""

    def compute(self, rows: Sequence[Row]) -> Sequence[Computed]:
        """One result for each row, in their order. Called by several threads at once."""


class Model(Protocol):
    """What the batcher needs to know of a model. It stays the same one for all texts of a request."""

    @property
    def key(self) -> str:
        """What its engine knows it by."""

    @property
    def engine(self) -> Engine:
        """What computes it."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The token ids of texts. Called by the thread that tokenises."""


@dataclass
class Stages:
    """Seconds that a request spent waiting for the tokenizer and in it, in the queue, and being computed."""

    tokenise: float = 0.0
    queue: float = 0.0
    compute: float = 0.0


@dataclass(frozen=True)
class Answered:
    """All that was computed of a request's texts.

    Attributes:
        encoded: their token ids, and what became of each.
        logits: (texts, classes).
        distances: (texts,); None where the model has no off-topic score.
        stages: where its time went.
    """

    encoded: Encoded
    logits: NDArray[np.float32]
    distances: NDArray[np.float32] | None
    stages: Stages


@dataclass(eq=False)
class _Job(Generic[T]):
    """The texts of a request to one model."""

    model: Model
    texts: Sequence[str]
    render: Callable[[Answered], T]
    future: asyncio.Future[T]
    begun: float
    check: Callable[[Encoded], None]
    encoded: Encoded | None = None
    computed: list[Computed | None] = field(default_factory=list)
    left: int = 0
    stages: Stages = field(default_factory=Stages)
    over: bool = False  # answered, refused, or no longer wanted


@dataclass(eq=False)
class _Item:
    """A text of a job, tokenised."""

    job: _Job[Any]
    place: int
    ids: TokenIds
    number: int
    since: float

    @property
    def tokens(self) -> int:
        return len(self.ids)


OnBatch = Callable[[int, int, float], None]
"""Told of every batch: its texts, their tokens, and the seconds that it took."""


class Batcher:
    """Answers the texts of requests, some at a time.

    Attributes:
        most_waiting: texts that may be in it at once; a request that would exceed this is refused.
        tokens_per_batch: the rows of a batch times its longest, at most, where it has more than one.
        threads: how many compute.
        waiting: texts that are in it.
    """

    def __init__(
        self,
        *,
        most_waiting: int,
        tokens_per_batch: int,
        threads: int,
        on_batch: OnBatch = lambda _texts, _tokens, _seconds: None,
    ) -> None:
        self.most_waiting = most_waiting
        self.tokens_per_batch = tokens_per_batch
        self.threads = threads
        self.waiting = 0
        self._on_batch = on_batch
        self._given: list[_Job[Any]] = []
        self._queues: dict[Engine, list[_Item]] = {}
        self._numbers = 0
        self._idle = 0
        self._stopped = False
        self._running: list[threading.Thread] = []
        self._texts_per_second: float | None = None
        lock = threading.Lock()
        self._job_given, self._item_queued = threading.Condition(lock), threading.Condition(lock)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the threads, which answer to the running event loop."""
        self._loop = asyncio.get_running_loop()
        for target in (self._tokenise_jobs, *[self._compute_batches] * self.threads):
            thread = threading.Thread(target=target, name=f"newsdesk{target.__name__}", daemon=True)
            thread.start()
            self._running.append(thread)

    def stop(self, seconds: float = 0.0) -> None:
        """Let the threads end when they are through with what they have; wait so long for them.

        A process that ends while one of them computes is aborted by the library that computes.
        """
        with self._job_given:
            self._stopped = True
            self._job_given.notify_all()
            self._item_queued.notify_all()
        over = time.monotonic() + seconds
        for thread in self._running:
            thread.join(max(0.0, over - time.monotonic()))

    @property
    def expected_wait(self) -> float:
        """Seconds that a text given now would wait, by the speed of full batches so far; 0: not known."""
        return self.waiting / self._texts_per_second if self._texts_per_second else 0.0

    async def run(
        self,
        model: Model,
        texts: Sequence[str],
        render: Callable[[Answered], T],
        *,
        seconds: float,
        check: Callable[[Encoded], None] = lambda _encoded: None,
    ) -> T:
        """What ``render`` makes, in a thread, of all that is computed of these texts.

        ``check`` is called before they are computed, and may refuse them. Raises Refusal at once where too
        much waits already, after ``seconds`` where it is not done by then, and where the texts cannot be
        tokenised or computed.
        """
        assert self._loop is not None
        wait = self.expected_wait
        if self.waiting + len(texts) > self.most_waiting or wait > _HEADROOM * seconds:
            raise Refusal("overloaded", "the server has more to do than it can", retry_after=max(wait, 1.0))
        future: asyncio.Future[T] = self._loop.create_future()
        job = _Job(model, texts, render, future, time.perf_counter(), check)
        self.waiting += len(texts)
        try:
            with self._job_given:
                self._given.append(job)
                self._job_given.notify()
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            late = f"not answered within {seconds:g} seconds"
            raise Refusal("late", late, retry_after=max(self.expected_wait, 1.0)) from None
        finally:
            job.over = True
            self.waiting -= len(texts)

    # --- the thread that tokenises

    def _tokenise_jobs(self) -> None:
        while True:
            with self._job_given:
                while not self._given and not self._stopped:
                    self._job_given.wait()
                if not self._given:
                    return
                taken = self._given[:_JOBS_TOKENISED_TOGETHER]
                del self._given[:_JOBS_TOKENISED_TOGETHER]
            by_model: dict[Model, list[_Job[Any]]] = {}
            for job in taken:
                if not job.over:
                    by_model.setdefault(job.model, []).append(job)
            for model, jobs in by_model.items():
                self._tokenise(model, jobs)

    def _tokenise(self, model: Model, jobs: Sequence[_Job[Any]]) -> None:
        """Tokenise the texts of jobs together, and put them into the queue; alone where one of them fails."""
        try:
            together = model.encode([text for job in jobs for text in job.texts])
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._tokenise(model, [job])
            else:
                self._deliver([(jobs[0], None, _as_refusal(error, "invalid"))])
            return
        start, now = 0, time.perf_counter()
        items = []
        for job in jobs:
            end = start + len(job.texts)
            job.encoded = replace(
                together,
                ids=together.ids[start:end],
                lengths=together.lengths[start:end],
                unreadable=together.unreadable[start:end],
            )
            start, job.left = end, len(job.texts)
            try:
                job.check(job.encoded)
            except Exception as error:
                self._deliver([(job, None, _as_refusal(error, "invalid"))])
                continue
            job.computed = [None] * job.left
            job.stages.tokenise = now - job.begun
            items += [(job, place, ids) for place, ids in enumerate(job.encoded.ids)]
        if not items:
            return
        with self._item_queued:
            queue = self._queues.setdefault(model.engine, [])
            queue += [
                _Item(job, place, ids, self._numbers + number, now)
                for number, (job, place, ids) in enumerate(items)
            ]
            self._numbers += len(items)
            self._item_queued.notify(min(len(items), self.threads))

    # --- the threads that compute

    def _compute_batches(self) -> None:
        while True:
            with self._item_queued:
                self._idle += 1
                while not self._queues and not self._stopped:
                    self._item_queued.wait()
                if not self._queues:
                    return
                engine, items = self._take()
                self._idle -= 1
            if items:
                self._compute(engine, items)

    def _take(self) -> tuple[Engine, list[_Item]]:
        """The oldest text that waits and those nearest to its length; called with the lock held.

        Threads that are idle share what there is.
        """
        engine = min(self._queues, key=lambda each: self._queues[each][0].number)
        waiting = [item for item in self._queues[engine] if not item.job.over]
        if not waiting:
            del self._queues[engine]
            return engine, []
        oldest, longest = waiting[0], waiting[0].tokens
        share = -(-sum(item.tokens for item in waiting) // self._idle)
        budget, chosen = min(self.tokens_per_batch, share), [oldest]
        for item in sorted(waiting[1:], key=lambda item: abs(item.tokens - oldest.tokens)):
            longest = max(longest, item.tokens)
            if (len(chosen) + 1) * longest > budget:
                break
            chosen.append(item)
        numbers = {item.number for item in chosen}
        left = [item for item in waiting if item.number not in numbers]
        if left:
            self._queues[engine] = left
        else:
            del self._queues[engine]
        return engine, chosen

    def _compute(self, engine: Engine, items: Sequence[_Item]) -> None:
        """Compute a batch, and render the jobs that it completes; rows alone where the batch fails."""
        begun = time.perf_counter()
        try:
            results = engine.compute([(item.ids, item.job.model.key) for item in items])
        except Exception as error:
            if len(items) > 1:
                for item in items:
                    self._compute(engine, [item])
            else:
                self._deliver([(items[0].job, None, _as_refusal(error, "failed"))])
            return
        now = time.perf_counter()
        self._note_speed(items, now - begun)
        complete = []
        with self._item_queued:
            for item, result in zip(items, results, strict=True):
                job = item.job
                job.computed[item.place] = result
                job.stages.queue = max(job.stages.queue, begun - item.since)
                job.stages.compute += now - begun
                job.left -= 1
                if not job.left:
                    complete.append(job)
        self._deliver([self._rendered(job) for job in complete if not job.over])

    def _note_speed(self, items: Sequence[_Item], seconds: float) -> None:
        tokens = sum(item.tokens for item in items)
        self._on_batch(len(items), tokens, seconds)
        if 2 * tokens < self.tokens_per_batch:
            return
        found, before = self.threads * len(items) / max(seconds, 1e-9), self._texts_per_second
        self._texts_per_second = found if before is None else before + _RATE_MEMORY * (found - before)

    def _rendered(self, job: _Job[Any]) -> tuple[_Job[Any], Any, Exception | None]:
        assert job.encoded is not None
        computed = [each for each in job.computed if each is not None]
        distances = [each.distance for each in computed if each.distance is not None]
        try:
            answered = Answered(
                job.encoded,
                np.stack([each.logits for each in computed]),
                np.array(distances, dtype=np.float32) if len(distances) == len(computed) else None,
                job.stages,
            )
            return job, job.render(answered), None
        except Exception as error:
            return job, None, _as_refusal(error, "failed")

    # --- back to the event loop

    def _deliver(self, done: Sequence[tuple[_Job[Any], Any, Exception | None]]) -> None:
        if done and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, done)


def _resolve(done: Sequence[tuple[_Job[Any], Any, Exception | None]]) -> None:
    for job, result, error in done:
        if job.future.done():
            continue
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)


def _as_refusal(error: Exception, kind: Any) -> Exception:
    """What a client is told of a failure: the sentence of an error that explains itself, else nothing."""
    if isinstance(error, UserError):
        found = f": {first_line(error.found)}" if error.found else ""
        return Refusal(kind, f"{error.wrong}{found}")
    return error
