"""The batcher keeps its queue short, its answers apart, and its promises in time."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.model.tokenizer import Encoded
from newsdesk.serving.batching import Batcher, Computed
from newsdesk.serving.refusals import Refusal


@dataclass(eq=False)
class Echo:
    """Says which token each row begins with, and keeps the sizes of its batches; waits for ``open``."""

    seconds: float = 0.0
    open: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)
    fails_on: int | None = None

    def __post_init__(self) -> None:
        self.open.set()

    def compute(self, rows):
        self.open.wait(10)
        time.sleep(self.seconds)
        self.batches.append([len(ids) for ids, _ in rows])
        if any(ids[0] == self.fails_on for ids, _ in rows):
            raise UserError("this row cannot be computed", found="its first token", fix="leave it out")
        return [Computed(np.float32([ids[0], len(ids)])) for ids, _ in rows]


@dataclass(eq=False)
class Numbers:
    """A model whose texts are numbers: the tokens of ``7 3`` are three sevens."""

    engine: Echo
    key: str = "numbers"

    def encode(self, texts: Sequence[str]) -> Encoded:
        ids = [np.full(int(text.split()[1]), int(text.split()[0]), dtype=np.int64) for text in texts]
        lengths = np.array(list(map(len, ids)), dtype=np.int64)
        return Encoded(ids, lengths, (None,) * len(ids), None, 0)


def with_batcher(work, **settings):
    """Run ``work(batcher)`` in an event loop."""

    async def whole():
        batcher = Batcher(**{"most_waiting": 5000, "tokens_per_batch": 64, "threads": 2, **settings})
        batcher.start()
        try:
            return await work(batcher)
        finally:
            batcher.stop()

    return asyncio.run(whole())


async def ask(batcher, model, *texts, seconds=5.0):
    return await batcher.run(model, texts, lambda answered: answered.logits[:, 0].tolist(), seconds=seconds)


def test_every_request_gets_its_own_answers_in_their_order():
    generator = random.Random(1)
    requests = [
        [f"{generator.randrange(10_000)} {generator.randint(1, 40)}" for _ in range(generator.randint(1, 9))]
        for _ in range(200)
    ]

    model = Numbers(Echo())

    async def work(batcher):
        return await asyncio.gather(*(ask(batcher, model, *texts) for texts in requests))

    answers = with_batcher(work)
    assert answers == [[float(text.split()[0]) for text in texts] for texts in requests]
    sizes = [len(batch) * max(batch) for batch in model.engine.batches if len(batch) > 1]
    assert max(sizes) <= 64


def test_a_full_queue_refuses_at_once_and_answers_what_it_accepted():
    model = Numbers(Echo())
    model.engine.open.clear()

    async def work(batcher):
        accepted = [asyncio.create_task(ask(batcher, model, f"{number} 3")) for number in range(10)]
        await asyncio.sleep(0.05)
        begun = time.perf_counter()
        with pytest.raises(Refusal) as refused:
            await ask(batcher, model, "11 3")
        seconds = time.perf_counter() - begun
        model.engine.open.set()
        return await asyncio.gather(*accepted), refused.value, seconds, batcher.waiting

    answers, refusal, seconds, left = with_batcher(work, most_waiting=10)
    assert answers == [[float(number)] for number in range(10)]
    assert (refusal.kind, refusal.retry_after) == ("overloaded", 1.0)
    assert seconds < 0.02
    assert left == 0


def test_a_request_is_refused_when_its_time_is_over_and_its_texts_are_not_computed():
    model = Numbers(Echo())
    model.engine.open.clear()

    async def work(batcher):
        first = asyncio.create_task(ask(batcher, model, "1 60"))
        second = asyncio.create_task(ask(batcher, model, "1 60"))
        await asyncio.sleep(0.05)
        begun = time.perf_counter()
        with pytest.raises(Refusal) as refused:
            await ask(batcher, model, "2 60", seconds=0.1)
        seconds = time.perf_counter() - begun
        model.engine.open.set()
        await asyncio.gather(first, second)
        await ask(batcher, model, "3 60")
        return refused.value.kind, seconds

    kind, seconds = with_batcher(work)
    assert kind == "late"
    assert 0.09 < seconds < 0.3
    assert sum(map(len, model.engine.batches)) == 3


def test_a_row_that_cannot_be_computed_fails_its_own_request_alone():
    model = Numbers(Echo(fails_on=13))
    model.engine.open.clear()

    async def work(batcher):
        asked = [asyncio.create_task(ask(batcher, model, f"{number} 2")) for number in (12, 13, 14)]
        await asyncio.sleep(0.05)
        model.engine.open.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, failed, third = with_batcher(work, threads=1)
    assert (first, third) == ([12.0], [14.0])
    assert failed.kind == "failed"
    assert failed.message == "this row cannot be computed: its first token"


def test_texts_of_like_length_share_a_batch_that_begins_with_the_oldest():
    model = Numbers(Echo())
    model.engine.open.clear()

    async def work(batcher):
        held = asyncio.create_task(ask(batcher, model, "0 1"))
        await asyncio.sleep(0.05)
        texts = [f"1 {length}" for length in (5, 30, 6, 32, 5, 31, 6)]
        asked = [asyncio.create_task(ask(batcher, model, text)) for text in texts]
        await asyncio.sleep(0.05)
        model.engine.open.set()
        await asyncio.gather(held, *asked)

    with_batcher(work, threads=1)
    assert [sorted(batch) for batch in model.engine.batches[1:]] == [[5, 5, 6, 6], [30, 31], [32]]


def test_threads_that_are_idle_share_what_there_is():
    model = Numbers(Echo(seconds=0.02))

    async def work(batcher):
        await asyncio.sleep(0.05)
        await ask(batcher, model, *(f"{number} 4" for number in range(8)))

    with_batcher(work, threads=2, tokens_per_batch=512)
    assert sorted(map(len, model.engine.batches)) == [4, 4]


def test_load_that_cannot_be_answered_in_time_is_refused_before_the_queue_is_full():
    model = Numbers(Echo(seconds=0.05))

    async def work(batcher):
        for _ in range(3):  # full batches, by which it learns its speed: 2 texts in 0.05 seconds
            await ask(batcher, model, "1 32", "2 32")
        asked = [
            asyncio.create_task(ask(batcher, model, f"{number} 32", seconds=0.5)) for number in range(60)
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = with_batcher(work, threads=1)
    kinds = [each.kind if isinstance(each, Refusal) else "answered" for each in found]
    assert 10 <= kinds.count("answered") <= 25
    assert kinds.count("overloaded") > 30
