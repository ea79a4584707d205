"""Keep: a job's answers, a piece at a time, so that a job of any length fits into memory."""

from __future__ import annotations

import asyncio
import json
import posixpath
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import IO, Any, Final, Protocol, cast

import fsspec

from pollux_flows.address import shown
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.manifest import BUCKETS, Manifest
from pollux_flows.deferred.results import Item
from pollux_flows.errors import ConfigurationError, SourceError
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


async def kept(shelf: Shelf, job: Job) -> AsyncIterator[Item]:
    """All items of a job, in the order of its prompts."""
    for number in _numbers(job):
        for item in await _taken(shelf, job, number):
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
            if other.bucket == "succeeded":
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


def output_of(output: str, name: str) -> str:
    """The file for a job's lines: `output` itself or, if that is a folder, one in it."""
    return f"{output}{name}.jsonl" if output.endswith("/") else output


async def write_output(shelf: Shelf, job: Job, output: str, manifest: Manifest) -> None:
    """Write a line a prompt to `output`, and the manifest beside it. What is there already is replaced, as a whole."""
    path = output_of(output, job.name)
    try:
        async with _written_to(path) as file:
            for number in _numbers(job):
                file.write(await asyncio.to_thread(_lines, await _taken(shelf, job, number)))
        async with _written_to(f"{path.removesuffix('.jsonl')}.manifest.json") as file:
            file.write(manifest.model_dump_json(indent=2) + "\n")
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(
            f"The answers of {job.name} could not be written to {shown(path)}: {type(error).__name__}: {error}",
            hint="Make room or give the worker the right to write there. The answers are kept; it is tried again.",
        ) from None


def checked_output(output: str) -> str:
    """The place for the answers, whole; or a ConfigurationError, before anything is handed in."""
    if not output.strip():
        raise ConfigurationError("output is blank.", hint="Write a path or an address, or leave it out.")
    try:
        fs, path = fsspec.core.url_to_fs(output)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(
            f"output cannot be {shown(output)!r}: {error}",
            hint="Write a path, or an address such as s3://bucket/answers.jsonl, whose package is installed.",
        ) from None
    if not _is_local(fs):
        return output
    folder = output.endswith("/")
    if not folder and fs.isdir(path):
        raise ConfigurationError(
            f"output {path!r} is a folder.", hint="Write a slash at its end, or name a file in it."
        )
    return f"{path}/" if folder else str(path)  # whoever collects may be at home elsewhere


def line_of(item: Item) -> str:
    """One line of the output."""
    outcome, answer, problem = item.outcome, item.outcome.answer, item.outcome.problem
    said = {
        "index": outcome.index,
        "status": item.bucket,
        "answer": None if answer is None else answer.text,
        "structured": item.structured,
        "finish_reason": answer and answer.finish_reason,
        "usage": answer.usage if answer else {},
        "cost_usd": outcome.cost_usd,
        "error": problem.message if problem else item.warning,
    }
    return json.dumps(said, ensure_ascii=False)


class _written_to:  # noqa: N801 (used like a function)
    """A text file that is there only once it is whole."""

    def __init__(self, url: str) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(url)
        # An object store shows an object when it is closed; a disk shows a file from its first byte.
        self._local = _is_local(self._fs)
        self._writes = f"{self._path}.unfinished" if self._local else self._path

    async def __aenter__(self) -> IO[str]:
        if self._local and (folder := posixpath.dirname(self._path)):
            self._fs.makedirs(folder, exist_ok=True)
        self._file = cast(IO[str], self._fs.open(self._writes, "w", encoding="utf-8", newline="\n"))
        return self._file

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None and self._local:
            self._fs.mv(self._writes, self._path)


def _is_local(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _better(item: Item, newer: Item | None) -> Item:
    if newer is None or newer.key == item.key:
        return item
    earlier = [outcome for outcome in (*item.earlier, item.outcome) if outcome.answer is not None]
    return newer.model_copy(update={"earlier": [*earlier, *newer.earlier]})


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


def _lines(items: Iterable[Item]) -> str:
    return "".join(f"{line_of(item)}\n" for item in items)


def _piece(name: str, number: int) -> str:
    return f"{name}/answers-{number:04}"


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
