"""Parents of all shapes, retried at random moments: each prompt gets its own answer, and none is paid for twice."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.futures import wait

from pollux_flows import ResultEnvelope
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import afan_out, arealtime, realtime
from pollux_flows.simulator import Simulator
from tests.prefect.test_paid_once import asked

# Each shape once; `make parents` has two hundred.
ROUNDS = int(os.environ.get("TEST_PARENTS", "7"))
Answers = dict[int, str]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


class UnluckyError(Exception):
    """What makes a parent start again."""


@dataclass
class Round:
    """What one parent asks, and when it fails."""

    seed: int
    provider: PolluxProvider
    topics: list[str] = field(init=False)
    shuffled: bool = field(init=False)
    fails_after: list[int] = field(init=False)
    answers: Answers = field(default_factory=dict)
    attempt: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)  # noqa: S311 (no secret)
        count = self.dice.randint(2, 8)
        distinct = self.dice.choice([count, count, max(1, count - 2)])
        self.topics = [f"r{self.seed} t{number % distinct}" for number in range(count)]
        self.shuffled = self.dice.random() < 0.5
        self.fails_after = [self.dice.randint(0, count) for _ in range(self.dice.randint(1, 2))]

    def begin(self) -> list[tuple[int, str]]:
        """The topics in the order of this attempt, with their positions."""
        self.attempt, self.done, self.answers = self.attempt + 1, 0, {}
        order = list(enumerate(self.topics))
        if self.shuffled:
            self.dice.shuffle(order)
        return order

    def answered(self, position: int, envelope: ResultEnvelope) -> None:
        self.answers[position] = envelope.text
        self.done += 1
        if self.attempt <= len(self.fails_after) and self.done > self.fails_after[self.attempt - 1]:
            raise UnluckyError

    def end(self) -> None:
        if self.attempt <= len(self.fails_after):
            raise UnluckyError


async def loop(this: Round) -> None:
    for position, topic in this.begin():
        this.answered(position, await arealtime(topic, this.provider))
    this.end()


async def gather(this: Round) -> None:
    async def one(position: int, topic: str) -> None:
        await asyncio.sleep(this.dice.random() / 50)
        this.answered(position, await arealtime(topic, this.provider))

    await asyncio.gather(*(one(*each) for each in this.begin()))
    this.end()


async def gather_at_once(this: Round) -> None:
    order = this.begin()
    for (position, _), envelope in zip(
        order, await asyncio.gather(*(arealtime(topic, this.provider) for _, topic in order)), strict=True
    ):
        this.answered(position, envelope)
    this.end()


async def mapped(this: Round) -> None:
    @task
    def ask(topic: str) -> str:
        return realtime(topic, this.provider).text

    order = this.begin()
    futures = ask.map([topic for _, topic in order])
    await asyncio.to_thread(wait, futures)
    for (position, _), future in zip(order, futures, strict=True):
        this.answered(position, ResultEnvelope(status="ok", answers=[future.result()], confidence=1.0))
    this.end()


async def nested_tasks(this: Round) -> None:
    @task
    async def inner(topic: str) -> ResultEnvelope:
        return await arealtime(topic, this.provider)

    tries: Counter[int] = Counter()

    @task(retries=1, retry_delay_seconds=0)
    async def outer(position: int, topic: str) -> ResultEnvelope:
        tries[position] += 1
        envelope = await inner(topic)
        if tries[position] == 1 and position % 3 == 0:
            raise UnluckyError
        return envelope

    order = this.begin()
    envelopes = await asyncio.gather(*(outer(*each) for each in order))
    for (position, _), envelope in zip(order, envelopes, strict=True):
        this.answered(position, envelope)
    this.end()


async def nested_flows(this: Round) -> None:
    @flow(retries=1, retry_delay_seconds=0)
    async def between(topics: list[str]) -> list[str]:
        texts = [(await arealtime(topic, this.provider)).text for topic in topics]
        if this.attempt == 1 and this.dice.random() < 0.5:
            this.dice.random()
            raise UnluckyError
        return texts

    order = this.begin()
    half = len(order) // 2
    texts = await asyncio.gather(*(between([topic for _, topic in part]) for part in (order[:half], order[half:])))
    for (position, _), text in zip(order, [*texts[0], *texts[1]], strict=True):
        this.answered(position, ResultEnvelope(status="ok", answers=[text], confidence=1.0))
    this.end()


async def fans(this: Round) -> None:
    order = this.begin()
    half = len(order) // 2
    parts = [part for part in (order[:half], order[half:]) if part]
    envelopes = await asyncio.gather(*(afan_out([topic for _, topic in part], this.provider) for part in parts))
    for part, envelope in zip(parts, envelopes, strict=True):
        for (position, _), text in zip(part, envelope.answers, strict=True):
            this.answered(position, ResultEnvelope(status="ok", answers=[text], confidence=1.0))
    this.end()


SHAPES: list[Callable[[Round], Awaitable[None]]] = [
    loop,
    gather,
    gather_at_once,
    mapped,
    nested_tasks,
    nested_flows,
    fans,
]


@pytest.mark.timeout(300 + 20 * ROUNDS)
async def test_parents_that_are_retried(provider: PolluxProvider, simulator: Simulator) -> None:
    """Whatever their shape, and whether they call in the same order or not."""
    simulator.latency_s = 0.01
    for seed in range(ROUNDS):
        this, shape = Round(seed, provider), SHAPES[seed % len(SHAPES)]
        before = len(asked(simulator))

        @flow(name=f"parent {seed}", retries=len(this.fails_after), retry_delay_seconds=0)
        async def parent(this: Any = this, shape: Any = shape) -> None:
            await shape(this)

        await parent()
        texts = [this.answers[position] for position in range(len(this.topics))]
        wrong = [
            (seed, shape.__name__, topic, text)
            for topic, text in zip(this.topics, texts, strict=True)
            if text != f"Simulated answer to: {topic}"
        ]
        paid = Counter(asked(simulator)[before:])
        assert wrong == []
        assert paid == Counter(this.topics), (seed, shape.__name__, this.shuffled, this.fails_after)
