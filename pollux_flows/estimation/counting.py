"""Counting: the input tokens of a sample of calls, by the provider's own counter. It is free, and generates nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from pollux_flows.config import Config
from pollux_flows.errors import APIError, raise_if_error
from pollux_flows.estimation.lengths import Length, is_uploaded, source_indexes
from pollux_flows.files.content import load
from pollux_flows.pipeline.answers import Answers
from pollux_flows.pipeline.attach import Attachments, delivery_of
from pollux_flows.pipeline.execute import Execution
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.terms import Terms
from pollux_flows.providers.base import Call
from pollux_flows.providers.material import Material
from pollux_flows.providers.registry import find_provider
from pollux_flows.providers.session import Session, open_session
from pollux_flows.providers.tokens import TokenCount

_MOST_CALLS: Final = 20
_MOST_BYTES: Final = 32 << 20
_AT_ONCE: Final = 4


@dataclass
class Counts:
    """The provider's counts of some calls, by their places in the sample, and why there are no more of them."""

    by_place: dict[int, TokenCount] = field(default_factory=dict)
    problem: str | None = None


async def count_tokens(lengths: Sequence[Length], config: Config) -> Counts:
    """Have the provider count up to twenty of these calls. Where it does not, the result says why."""
    if not lengths:
        return Counts()
    provider = find_provider(config.provider)
    if provider.tokens is None:
        _check_request(lengths[0], config)
        return Counts(problem=f"{config.provider} has no counter of tokens.")
    counts = Counts()
    async with open_session(config) as session, AsyncExitStack() as stack:
        counter = _Counter(session, stack)
        first, *others = _choose(lengths)
        # A server without a counter is asked once.
        await counter.count(first, lengths[first], counts)
        room = asyncio.Semaphore(_AT_ONCE)

        async def count(place: int) -> None:
            async with room:
                if counts.problem is None:
                    await counter.count(place, lengths[place], counts)

        for each in await asyncio.gather(*map(count, others), return_exceptions=True):
            raise_if_error(each)
    return counts


def _choose(lengths: Sequence[Length]) -> list[int]:
    """Return the places of calls of all lengths, the shortest and the longest included, within what may be sent."""
    mean = sum(each.size for each in lengths) / len(lengths)
    most = max(1, min(_MOST_CALLS, len(lengths), int(_MOST_BYTES / max(1.0, mean))))
    order = sorted(range(len(lengths)), key=lambda place: lengths[place].tokens)
    if most == 1:
        return [order[len(order) // 2]]
    return [order[round(step * (len(order) - 1) / (most - 1))] for step in range(most)]


def _check_request(length: Length, config: Config) -> None:
    """Refuse what only a finished request shows, as the run would."""
    plan, call = length.sampled
    execution = _execution(plan, config)
    sources = source_indexes(plan, call.source)
    pretended = tuple(Material(plan.sources[index], plan.sources[index].mime_type, text="") for index in sources)
    find_provider(config.provider).generate.request(execution.make_call(call, pretended, plan.options.cache_handle))


def _execution(plan: Plan, config: Config) -> Execution:
    """Return what makes the calls of a plan. It is never run."""
    return Execution(plan, config, Answers(config.target, Terms()), AsyncExitStack())


class _Counter:
    """Counts calls over one connection; what the calls of a plan share is made ready once."""

    def __init__(self, session: Session, stack: AsyncExitStack) -> None:
        self._session, self._stack = session, stack
        self._plans: dict[int, tuple[Execution, Attachments]] = {}

    async def count(self, place: int, length: Length, counts: Counts) -> None:
        """Add the count of this call to the others, or why the provider does not count it."""
        call = await self._make_call(length)
        if call is None:
            return
        try:
            counts.by_place[place] = await self._session.count_tokens(call)
        except APIError as error:
            counts.problem = error.message

    async def _make_call(self, length: Length) -> Call | None:
        """Return the call as it would be made, but without files to upload; None if nothing is left of it."""
        plan, planned = length.sampled
        if id(plan) not in self._plans:
            attachments = Attachments(plan, self._session)
            self._stack.push_async_callback(attachments.close)
            self._plans[id(plan)] = _execution(plan, self._session.config), attachments
        execution, attachments = self._plans[id(plan)]
        indexes = [index for index in source_indexes(plan, planned.source) if not is_uploaded(plan, index)]
        said = range(plan.own_sources, len(plan.sources))
        if any(is_uploaded(plan, index) for index in said) or (not indexes and planned.prompt is None):
            return None
        materials = [await self._material(plan, index, attachments) for index in indexes]
        return execution.make_call(planned, tuple(materials), plan.options.cache_handle)

    async def _material(self, plan: Plan, index: int, attachments: Attachments) -> Material:
        content = plan.contents[index]
        if content is None or delivery_of(plan, index) != "upload":
            (material,) = await attachments.materials([index])
            return material
        source = plan.sources[index]
        data = await load(source, content, limit_s=self._session.config.timeout_s)
        return Material(source, content.mime_type, text=data.decode())
