"""Keep: a job's answers, a piece at a time, so that a job of any length fits into memory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

from pollux_flows.deferred.job import Job
from pollux_flows.deferred.manifest import BUCKETS, Manifest
from pollux_flows.deferred.results import Item
from pollux_flows.errors import ConfigurationError
from pollux_flows.pricing import Cost, total

_TOGETHER: Final = 1000


class Shelf(Protocol):
    """Where texts are kept by name, for every worker."""

    @property
    def where(self) -> str:
        """In words for people."""
        ...

    async def put(self, name: str, text: str) -> None:
        """Keep the text, whatever was there."""
        ...

    async def get(self, name: str) -> str | None: ...


class Tally:
    """Counts items as they come by."""

    def __init__(self) -> None:
        self._buckets: Counter[str] = Counter()
        self._usage: Counter[str] = Counter()
        self._costs: list[Cost] = []

    def add(self, item: Item) -> None:
        self._buckets[item.bucket] += 1
        for answer, cost in item.paid:
            self._usage.update(answer.usage)
            self._costs.append(cost)

    def manifest(self, **more: Any) -> Manifest:
        cost = total(self._costs)
        return Manifest(
            submitted=self._buckets.total(),
            **{bucket: self._buckets[bucket] for bucket in BUCKETS},
            cost_usd=cost.usd,
            cost_unknown=cost.unknown,
            usage=dict(self._usage),
            collected_at=time.time(),
            **more,
        )


async def keep(shelf: Shelf, name: str, items: Iterator[Item]) -> Tally:
    """Put all items of a job on the shelf."""
    tally, number = Tally(), 0
    # Off the event loop: reading the results of 50,000 prompts takes many seconds.
    while text := await asyncio.to_thread(_counted, tally, islice(items, _TOGETHER)):
        await shelf.put(_piece(name, number), text)
        number += 1
    return tally


async def pieces(shelf: Shelf, job: Job) -> AsyncIterator[list[Item]]:
    """All items of a job, in the order of its prompts, so many at a time."""
    for number in _numbers(job):
        yield await _taken(shelf, job, number)


async def kept(shelf: Shelf, job: Job) -> AsyncIterator[Item]:
    """The same one by one."""
    async for items in pieces(shelf, job):
        for item in items:
            yield item


async def overlay(shelf: Shelf, job: Job, newer: Job) -> Tally:
    """Put what succeeded in the job `newer` in the place of what did not in this one. Doing it twice changes nothing.

    What was paid for and is replaced stays behind it: it counts as a cost.
    """
    tally = Tally()
    # Both come in the order of the prompts, so neither has to be held as a whole.
    others = kept(shelf, newer)
    other = await anext(others, None)
    for number in _numbers(job):
        items, better = await _taken(shelf, job, number), {}
        while other is not None and other.outcome.index <= items[-1].outcome.index:
            better[other.outcome.index] = other
            other = await anext(others, None)
        completed = [_better(item, better.get(item.outcome.index)) for item in items]
        await shelf.put(_piece(job.name, number), await asyncio.to_thread(_counted, tally, completed))
    return tally


async def worth_another_try(shelf: Shelf, job: Job) -> list[int]:
    """The prompts that did not succeed, and may when they are handed in again."""
    return [item.outcome.index async for item in kept(shelf, job) if _may_succeed(item)]


async def without_answer(shelf: Shelf, job: Job) -> list[int]:
    """All prompts that did not succeed."""
    return [item.outcome.index async for item in kept(shelf, job) if item.bucket != "succeeded"]


def _better(item: Item, newer: Item | None) -> Item:
    """The newer one if it succeeded; either way, with all that was paid for."""
    if newer is None or newer.key == item.key:
        return item
    stays, goes = (newer, item) if newer.bucket == "succeeded" else (item, newer)
    known = {outcome.identity for outcome in stays.earlier}
    paid = [outcome for outcome in (*goes.earlier, goes.outcome) if outcome.answer and outcome.identity not in known]
    return stays.model_copy(update={"earlier": [*stays.earlier, *paid]}) if paid else stays


def _may_succeed(item: Item) -> bool:
    problem = item.outcome.problem
    # An answer that does not fit, or that is missing, may be another the next time; so may an empty one.
    return item.bucket != "succeeded" and (problem is None or problem.retryable or problem.kind == "empty")


def _counted(tally: Tally, items: Iterable[Item]) -> str:
    """The items as text, each of them counted."""
    lines = []
    for item in items:
        tally.add(item)
        lines.append(item.model_dump_json(exclude_defaults=True))
    return "\n".join(lines)


def _read(text: str) -> list[Item]:
    return [Item.model_validate_json(line) for line in text.split("\n")]


def _piece(name: str, number: int) -> str:
    return f"{name}/answers-{number:04}"


def first_piece(job: Job) -> str:
    """Return the name of the first piece of the job's answers."""
    return _piece(job.name, 0)


def _numbers(job: Job) -> range:
    return range(-(-job.count // _TOGETHER))


async def _taken(shelf: Shelf, job: Job, number: int) -> list[Item]:
    """A piece of the job's answers. One that is not there is never taken for an empty one."""
    text = await shelf.get(_piece(job.name, number))
    items = [] if text is None else await asyncio.to_thread(_read, text)
    if len(items) != min(_TOGETHER, job.count - number * _TOGETHER):
        raise ConfigurationError(
            f"The answers of {job.name} are not, or not all, in this worker's result storage ({shelf.where}).",
            hint="Give all workers that submit and collect the same result storage: set "
            "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK to a storage that they share.",
        )
    return items
