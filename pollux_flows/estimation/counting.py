"""Counting: have the provider count the input tokens of a sample of calls, which is free and generates nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from pollux_flows.config import Config
from pollux_flows.errors import APIError, raise_if_error
from pollux_flows.estimation.lengths import CHARACTERS_PER_TOKEN, Length, is_too_large
from pollux_flows.estimation.work import SampledCall
from pollux_flows.files.content import load
from pollux_flows.files.mime import is_text_like
from pollux_flows.pipeline.answers import Answers
from pollux_flows.pipeline.attach import Attachments, delivery_of
from pollux_flows.pipeline.execute import Execution
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.terms import Terms
from pollux_flows.providers.material import Material
from pollux_flows.providers.registry import find_provider
from pollux_flows.providers.session import Session, open_session
from pollux_flows.providers.tokens import TokenCount

_MOST_CALLS: Final = 20
_MOST_BYTES: Final = 32 << 20
_AT_ONCE: Final = 4
# Sources up to this size are sent with each call that is counted, larger ones only once.
_SMALL: Final = 4_096
_Group = tuple[int, tuple[int, ...]]


@dataclass
class Counts:
    """The provider's counts of some calls, by their places in the sample, and the error that stopped counting."""

    by_place: dict[int, TokenCount] = field(default_factory=dict)
    problem: str | None = None


def make_request_body(sampled: SampledCall, config: Config) -> dict[str, Any]:
    """Return the request of a call, without the content of its sources. Raises if the request would be invalid."""
    plan, call = sampled
    sources = (plan.sources[index] for index in plan.sources_of(call))
    make_placeholders = tuple(Material(source, source.mime_type, text="") for source in sources)
    made = _execution(plan, config).make_call(call, make_placeholders, plan.options.cache_handle)
    return find_provider(config.provider).generate.request(made)


async def count_tokens(lengths: Sequence[Length], config: Config) -> Counts:
    """Have the provider count up to twenty of these calls. If it cannot, the result says why."""
    if not lengths:
        return Counts()
    provider = find_provider(config.provider)
    if provider.tokens is None:
        return Counts(problem=f"{config.provider} cannot count tokens.")
    chosen = _choose(lengths)
    counts = Counts()
    async with open_session(config) as session, AsyncExitStack() as stack:
        counter = _Counter(session, stack, [lengths[place] for place in chosen])
        room = asyncio.Semaphore(_AT_ONCE)

        async def count(place: int) -> None:
            async with room:
                if counts.problem is not None:
                    return
                try:
                    if (found := await counter.count(lengths[place])) is not None:
                        counts.by_place[place] = found
                except APIError as error:
                    counts.problem = error.message

        await count(chosen[0])  # alone, so that a server without a counter gets only one request
        for each in await asyncio.gather(*map(count, chosen[1:]), return_exceptions=True):
            raise_if_error(each)
    return counts


def _choose(lengths: Sequence[Length]) -> list[int]:
    """Return the places of calls of all lengths, including the shortest and the longest, within the size limit."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place].tokens)
    for most in range(min(_MOST_CALLS, len(order)), 1, -1):
        chosen = [order[round(step * (len(order) - 1) / (most - 1))] for step in range(most)]
        shared = {_group(lengths[place]): lengths[place].shared for place in chosen}
        if sum(shared.values()) + CHARACTERS_PER_TOKEN * sum(lengths[place].prompt for place in chosen) <= _MOST_BYTES:
            return chosen
    return [order[len(order) // 2]]


def _group(length: Length) -> _Group:
    """Return the plan and the sources of a call, which it may share with others."""
    plan, call = length.sampled
    return id(plan), tuple(plan.sources_of(call))


def _execution(plan: Plan, config: Config) -> Execution:
    """Return an execution of the plan, which is only used to make its calls and never run."""
    return Execution(plan, config, Answers(config.target, Terms()), AsyncExitStack())


class _Counter:
    """Counts calls over one connection. Sources that several calls share are sent once."""

    def __init__(self, session: Session, stack: AsyncExitStack, lengths: Sequence[Length]) -> None:
        self._session, self._stack = session, stack
        self._calls = Counter(map(_group, lengths))
        self._plans: dict[int, tuple[Execution, Attachments]] = {}
        self._sources: dict[_Group, asyncio.Task[int]] = {}

    async def count(self, length: Length) -> TokenCount | None:
        """Return the count of this call; None if it cannot be counted."""
        plan, planned = length.sampled
        if any(is_too_large(plan, index) for index in range(plan.own_sources, len(plan.sources))):
            return None
        if planned.prompt is None or length.shared <= _SMALL or self._calls[_group(length)] == 1:
            return await self._count(length)
        if (group := _group(length)) not in self._sources:
            self._sources[group] = asyncio.create_task(self._count_sources(length))
        sources = await self._sources[group]
        count = await self._count(length, with_sources=False)
        return count and TokenCount(sources + count.input_tokens, count.cached_tokens)

    async def _count_sources(self, length: Length) -> int:
        """Return how many tokens the sources add to a call."""
        complete, bare = await self._count(length), await self._count(length, with_sources=False)
        return complete.input_tokens - bare.input_tokens if complete and bare else 0

    async def _count(self, length: Length, *, with_sources: bool = True) -> TokenCount | None:
        plan, planned = length.sampled
        if id(plan) not in self._plans:
            attachments = Attachments(plan, self._session)
            self._stack.push_async_callback(attachments.close)
            self._plans[id(plan)] = _execution(plan, self._session.config), attachments
        execution, attachments = self._plans[id(plan)]
        indexes = [
            index
            for index in plan.sources_of(planned)
            if not is_too_large(plan, index) and (with_sources or index >= plan.own_sources)
        ]
        if not indexes and planned.prompt is None:
            return None
        materials = [await self._make_material(plan, index, attachments) for index in indexes]
        return await self._session.count_tokens(
            execution.make_call(planned, tuple(materials), plan.options.cache_handle)
        )

    async def _make_material(self, plan: Plan, index: int, attachments: Attachments) -> Material:
        """Return a source as it is sent, but with its content instead of an uploaded file."""
        content = plan.contents[index]
        if content is None or delivery_of(plan, index) != "upload":
            (material,) = await attachments.materials([index])
            return material
        source = plan.sources[index]
        data = await load(source, content, limit_s=self._session.config.timeout_s)
        if content.utf8 and is_text_like(content.mime_type):
            return Material(source, content.mime_type, text=data.decode())
        return Material(source, content.mime_type, data=data)
