"""Questions: the prompt and sources of each row of a chunk. Equal rows share a question; unusable ones have an error.

A cell of a source column is a text, a path, an address, a YouTube link or an arXiv id, as a person would paste it; or
an object with `uri` and `mime_type`, or with the fields of a Source; or a list of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pollux_flows.errors import PolluxError
from pollux_flows.files.content import Content
from pollux_flows.mapping.spec import MapSpec
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.source import Source
from pollux_flows.tables.template import RowError

_READS_AT_ONCE: Final = 16


@dataclass(frozen=True)
class Question:
    """A prompt with its sources, and the first row of the chunk that asks it."""

    row: int
    prompt: str
    sources: tuple[Source, ...] = ()


@dataclass
class Questions:
    """The distinct questions of a chunk, and for each of its rows the number of its question or an error."""

    distinct: list[Question] = field(default_factory=list)
    places: list[int | RowError] = field(default_factory=list)

    def refuse(self, refused: Mapping[Source, RowError]) -> None:
        """Remove the questions whose sources cannot be used, and give their rows the error instead."""
        reasons = {
            number: refused[source]
            for number, question in enumerate(self.distinct)
            for source in question.sources
            if source in refused
        }
        left = [number for number in range(len(self.distinct)) if number not in reasons]
        renumbered = {number: new for new, number in enumerate(left)}
        self.distinct = [self.distinct[number] for number in left]
        self.places = [
            place if isinstance(place, RowError) else reasons.get(place) or renumbered[place] for place in self.places
        ]


def read_questions(rows: Sequence[Mapping[str, Any]], spec: MapSpec) -> Questions:
    """Return the questions of these rows. No source is opened."""
    questions = Questions()
    numbers: dict[tuple[str, tuple[Source, ...]], int] = {}
    for index, row in enumerate(rows):
        try:
            prompt = spec.template.render(row)
            sources = tuple(source for name in spec.source_columns for source in _read_sources(name, row.get(name)))
        except RowError as error:
            questions.places.append(error)
            continue
        number = numbers.setdefault((prompt, sources), len(numbers))
        if number == len(questions.distinct):
            questions.distinct.append(Question(index, prompt, sources))
        questions.places.append(number)
    return questions


async def plan_questions(questions: Questions, spec: MapSpec, *, first_row: int = 0, limit_s: float) -> Plan:
    """Read the sources of the questions, refuse rows whose sources cannot be used, and plan one call per question.

    The index of a call is that of the first row that asks it, counted from `first_row`.
    """
    sources, _ = number_sources(questions.distinct, spec)
    examined = await _examine(sources, spec, limit_s)
    refused = {source: found for source, found in examined.items() if isinstance(found, RowError)}
    if refused:
        questions.refuse(refused)
    usable, sources_by_prompt = number_sources(questions.distinct, spec)
    request = make_request(
        [question.prompt for question in questions.distinct],
        target=spec.target,
        sources=usable,
        options=spec.options,
        sources_by_prompt=sources_by_prompt,
    )
    contents = [found if isinstance(found := examined[source], Content) else None for source in usable]
    numbers = [first_row + question.row for question in questions.distinct]
    return await asyncio.to_thread(make_plan, request, contents, numbers=numbers)


def number_sources(questions: Collection[Question], spec: MapSpec) -> tuple[list[Source], list[list[int]] | None]:
    """Return the distinct sources of these questions, and for each question the numbers of its sources.

    For a table without source columns, return None instead of the numbers.
    """
    numbers: dict[Source, int] = {}
    lists = [[numbers.setdefault(each, len(numbers)) for each in question.sources] for question in questions]
    return list(numbers), lists if spec.source_columns else None


async def _examine(sources: Sequence[Source], spec: MapSpec, limit_s: float) -> dict[Source, Content | RowError | None]:
    """Return the content of each source that is a file, None for other sources, or the error of an unusable one."""
    at_once = asyncio.Semaphore(_READS_AT_ONCE)

    async def examine(source: Source) -> Content | RowError | None:
        async with at_once:
            try:
                request = make_request(None, target=spec.target, sources=[source], options=spec.options)
                return (await read_sources(request, limit_s=limit_s))[0]
            except PolluxError as error:
                return RowError(error.message, hint=error.hint or "")

    return dict(zip(sources, await asyncio.gather(*map(examine, sources)), strict=True))


def _read_sources(column: str, cell: Any) -> list[Source]:
    """Return the sources in a cell."""
    if isinstance(cell, list | tuple):
        return [source for each in cell for source in _read_sources(column, each)]
    try:
        match cell:
            case str() if cell.strip():
                return [Source.from_pasted(cell)]
            case {"source_type": str()}:
                return [Source.model_validate({name: value for name, value in cell.items() if value is not None})]
            case {"uri": str() as uri}:
                return [_with_type(uri, str(cell.get("mime_type") or ""))]
    except PolluxError as error:
        raise RowError(f"{column}: {error.message}", hint=error.hint or "") from None
    if cell is None or isinstance(cell, str):
        raise RowError(f"{column} is empty.", hint="Fill it in, or leave the row out.")
    raise RowError(
        f"{column} holds a {type(cell).__name__}, which cannot be a source.",
        hint="Write a text, a path, an address, an object with uri and mime_type, or a list of these.",
    )


def _with_type(uri: str, mime_type: str) -> Source:
    source = Source.from_pasted(uri)
    return (
        source.model_copy(update={"mime_type": mime_type, "trust_mime_type": source.source_type == "file"})
        if (mime_type)
        else source
    )
