"""Test of parent flows of many shapes, retried at random moments: each prompt gets its own answer, paid for once."""

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
from tests.prefect.test_paid_once import read_prompts

# The suite tries each shape once; `make parents` has two hundred rounds.
ROUNDS = int(os.environ.get("TEST_PARENTS", "7"))
Answers = dict[int, str]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


class UnluckyError(Exception):
    """The error that makes a parent start again."""


@dataclass
class ParentRun:
    """The prompts of one parent, and when it fails."""

    seed: int
    provider: PolluxProvider
    topics: list[str] = field(init=False)
    is_shuffled: bool = field(init=False)
    fails_after: list[int] = field(init=False)
    answers: Answers = field(default_factory=dict)
    attempt: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)  # noqa: S311 (no secret)
        count = self.dice.randint(2, 8)
        distinct = self.dice.choice([count, count, max(1, count - 2)])
        self.topics = [f"r{self.seed} t{number % distinct}" for number in range(count)]
        self.is_shuffled = self.dice.random() < 0.5
        self.fails_after = [self.dice.randint(0, count) for _ in range(self.dice.randint(1, 2))]

    def begin(self) -> list[tuple[int, str]]:
        """Begin an attempt, and return its topics in their order, with their positions."""
        self.attempt, self.done, self.answers = self.attempt + 1, 0, {}
        order = list(enumerate(self.topics))
        if self.is_shuffled:
            self.dice.shuffle(order)
        return order

    def add_answer(self, position: int, envelope: ResultEnvelope) -> None:
        self.answers[position] = envelope.text
        self.done += 1
        if self.attempt <= len(self.fails_after) and self.done > self.fails_after[self.attempt - 1]:
            raise UnluckyError

    def end(self) -> None:
        if self.attempt <= len(self.fails_after):
            raise UnluckyError


async def call_in_a_loop(run: ParentRun) -> None:
    for position, topic in run.begin():
        run.add_answer(position, await arealtime(topic, run.provider))
    run.end()


async def gather_tasks(run: ParentRun) -> None:
    async def ask(position: int, topic: str) -> None:
        await asyncio.sleep(run.dice.random() / 50)
        run.add_answer(position, await arealtime(topic, run.provider))

    await asyncio.gather(*(ask(*each) for each in run.begin()))
    run.end()


async def gather_in_one_call(run: ParentRun) -> None:
    order = run.begin()
    for (position, _), envelope in zip(
        order, await asyncio.gather(*(arealtime(topic, run.provider) for _, topic in order)), strict=True
    ):
        run.add_answer(position, envelope)
    run.end()


async def map_a_task(run: ParentRun) -> None:
    @task
    def ask(topic: str) -> str:
        return realtime(topic, run.provider).text

    order = run.begin()
    futures = ask.map([topic for _, topic in order])
    await asyncio.to_thread(wait, futures)
    for (position, _), future in zip(order, futures, strict=True):
        run.add_answer(position, ResultEnvelope(status="ok", answers=[future.result()], confidence=1.0))
    run.end()


async def nest_tasks(run: ParentRun) -> None:
    @task
    async def inner(topic: str) -> ResultEnvelope:
        return await arealtime(topic, run.provider)

    tries: Counter[int] = Counter()

    @task(retries=1, retry_delay_seconds=0)
    async def outer(position: int, topic: str) -> ResultEnvelope:
        tries[position] += 1
        envelope = await inner(topic)
        if tries[position] == 1 and position % 3 == 0:
            raise UnluckyError
        return envelope

    order = run.begin()
    envelopes = await asyncio.gather(*(outer(*each) for each in order))
    for (position, _), envelope in zip(order, envelopes, strict=True):
        run.add_answer(position, envelope)
    run.end()


async def nest_flows(run: ParentRun) -> None:
    @flow(retries=1, retry_delay_seconds=0)
    async def between(topics: list[str]) -> list[str]:
        texts = [(await arealtime(topic, run.provider)).text for topic in topics]
        if run.attempt == 1 and run.dice.random() < 0.5:
            run.dice.random()
            raise UnluckyError
        return texts

    order = run.begin()
    half = len(order) // 2
    texts = await asyncio.gather(*(between([topic for _, topic in part]) for part in (order[:half], order[half:])))
    for (position, _), text in zip(order, [*texts[0], *texts[1]], strict=True):
        run.add_answer(position, ResultEnvelope(status="ok", answers=[text], confidence=1.0))
    run.end()


async def fan_out_in_parts(run: ParentRun) -> None:
    order = run.begin()
    half = len(order) // 2
    parts = [part for part in (order[:half], order[half:]) if part]
    envelopes = await asyncio.gather(*(afan_out([topic for _, topic in part], run.provider) for part in parts))
    for part, envelope in zip(parts, envelopes, strict=True):
        for (position, _), text in zip(part, envelope.answers, strict=True):
            run.add_answer(position, ResultEnvelope(status="ok", answers=[text], confidence=1.0))
    run.end()


SHAPES: list[Callable[[ParentRun], Awaitable[None]]] = [
    call_in_a_loop,
    gather_tasks,
    gather_in_one_call,
    map_a_task,
    nest_tasks,
    nest_flows,
    fan_out_in_parts,
]


@pytest.mark.timeout(300 + 20 * ROUNDS)
async def test_each_prompt_of_a_retried_parent_is_paid_for_once(provider: PolluxProvider, simulator: Simulator) -> None:
    """The parents have different shapes, and some call in another order when they are retried."""
    simulator.latency_s = 0.01
    for seed in range(ROUNDS):
        run, shape = ParentRun(seed, provider), SHAPES[seed % len(SHAPES)]
        before = len(read_prompts(simulator))

        @flow(name=f"parent {seed}", retries=len(run.fails_after), retry_delay_seconds=0)
        async def parent(run: Any = run, shape: Any = shape) -> None:
            await shape(run)

        await parent()
        texts = [run.answers[position] for position in range(len(run.topics))]
        wrong = [
            (seed, shape.__name__, topic, text)
            for topic, text in zip(run.topics, texts, strict=True)
            if text != f"Simulated answer to: {topic}"
        ]
        paid = Counter(read_prompts(simulator)[before:])
        assert wrong == []
        assert paid == Counter(run.topics), (seed, shape.__name__, run.is_shuffled, run.fails_after)
