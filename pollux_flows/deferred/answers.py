"""The saved answers of a job, in pieces of a fixed number of items, so that memory use does not grow with the job."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

from pollux_flows.deferred.job import Job
from pollux_flows.deferred.results import Item
from pollux_flows.errors import ConfigurationError
from pollux_flows.output import BUCKETS, Manifest
from pollux_flows.pricing import Cost, total

_PIECE: Final = 1000


class Storage(Protocol):
    """Texts by name, shared by all workers."""

    @property
    def where(self) -> str:
        """The place, for people."""
        ...

    async def put(self, name: str, text: str) -> None:
        """Save a text under this name, replacing an earlier one."""
        ...

    async def get(self, name: str) -> str | None:
        """Return the text of this name; None if there is none."""
        ...


class ItemTally:
    """Sums of the statuses, usage and costs of items."""

    def __init__(self) -> None:
        self._buckets: Counter[str] = Counter()
        self._usage: Counter[str] = Counter()
        self._costs: list[Cost] = []

    def add(self, item: Item) -> None:
        self._buckets[item.bucket] += 1
        for answer, cost in item.paid:
            self._usage.update(answer.usage)
            self._costs.append(cost)

    def make_manifest(self, **more: Any) -> Manifest:
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


async def save_answers(storage: Storage, name: str, items: Iterator[Item]) -> ItemTally:
    """Save all items of a job, and return their totals."""
    tally, number = ItemTally(), 0
    # Off the event loop: reading the results of 50,000 prompts takes many seconds.
    while text := await asyncio.to_thread(_write, tally, islice(items, _PIECE)):
        await storage.put(_piece_name(name, number), text)
        number += 1
    return tally


async def read_pieces(storage: Storage, job: Job) -> AsyncIterator[list[Item]]:
    """Iterate over the pieces of a job's items, in the order of its prompts."""
    for number in _piece_numbers(job):
        yield await _read_piece(storage, job, number)


async def read_items(storage: Storage, job: Job) -> AsyncIterator[Item]:
    """Iterate over all items of a job, in the order of its prompts."""
    async for items in read_pieces(storage, job):
        for item in items:
            yield item


async def merge_answers(storage: Storage, job: Job, newer: Job) -> ItemTally:
    """Replace items of this job that did not succeed by those of `newer` that did. Idempotent.

    A replaced answer that was paid for stays in the item as an earlier one, so that its cost counts.
    """
    tally = ItemTally()
    # Both are in the order of the prompts, so they can be merged piece by piece.
    others = read_items(storage, newer)
    other = await anext(others, None)
    for number in _piece_numbers(job):
        items, replacements = await _read_piece(storage, job, number), {}
        while other is not None and other.outcome.index <= items[-1].outcome.index:
            replacements[other.outcome.index] = other
            other = await anext(others, None)
        merged = [_merge(item, replacements.get(item.outcome.index)) for item in items]
        await storage.put(_piece_name(job.name, number), await asyncio.to_thread(_write, tally, merged))
    return tally


async def find_retryable(storage: Storage, job: Job) -> list[int]:
    """Return the indexes of the prompts that did not succeed, and may if they are submitted again."""
    return [item.outcome.index async for item in read_items(storage, job) if _may_succeed(item)]


async def find_unanswered(storage: Storage, job: Job) -> list[int]:
    """Return the indexes of all prompts that did not succeed."""
    return [item.outcome.index async for item in read_items(storage, job) if item.bucket != "succeeded"]


def first_piece(job: Job) -> str:
    """Return the name of the first piece of the job's answers."""
    return _piece_name(job.name, 0)


def _merge(item: Item, newer: Item | None) -> Item:
    """Return the newer item if it succeeded, otherwise the older one, with all answers that were paid for."""
    if newer is None or newer.key == item.key:
        return item
    merged, replaced = (newer, item) if newer.bucket == "succeeded" else (item, newer)
    known = {outcome.identity for outcome in merged.earlier}
    paid = [each for each in (*replaced.earlier, replaced.outcome) if each.answer and each.identity not in known]
    return merged.model_copy(update={"earlier": [*merged.earlier, *paid]}) if paid else merged


def _may_succeed(item: Item) -> bool:
    problem = item.outcome.problem
    # The next answer may fit the schema, or not be missing or empty.
    return item.bucket != "succeeded" and (problem is None or problem.retryable or problem.kind == "empty")


def _write(tally: ItemTally, items: Iterable[Item]) -> str:
    """Return the items as text, and add each to the tally."""
    lines = []
    for item in items:
        tally.add(item)
        lines.append(item.model_dump_json(exclude_defaults=True))
    return "\n".join(lines)


def _piece_name(name: str, number: int) -> str:
    return f"{name}/answers-{number:04}"


def _piece_numbers(job: Job) -> range:
    return range(-(-job.count // _PIECE))


async def _read_piece(storage: Storage, job: Job, number: int) -> list[Item]:
    """Return one piece of the job's answers. A missing one is an error, never an empty one."""
    text = await storage.get(_piece_name(job.name, number))
    lines = [] if text is None else text.split("\n")
    items = await asyncio.to_thread(lambda: [Item.model_validate_json(line) for line in lines])
    if len(items) != min(_PIECE, job.count - number * _PIECE):
        raise ConfigurationError(
            f"The answers of {job.name}, or some of them, are not in this worker's result storage ({storage.where}).",
            hint="All workers that submit and collect need the same result storage: set "
            "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK to a storage that they share.",
        )
    return items
