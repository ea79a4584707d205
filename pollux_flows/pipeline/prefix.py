"""Prefix caching: let the first of several calls write their common prefix to the provider's cache.

Providers cache the prefix of a prompt, but a call can read it only after the call that wrote it has been answered: N
concurrent calls about one document pay for N documents of input, or with cache writes for a quarter more. With
`implicit_caching="warm"` the first call about each set of sources goes first, and the others wait for its answer and
then read the cache: 1.25 + 0.1 (N - 1) documents instead of N.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from pollux_flows import claude
from pollux_flows.capabilities import bills_cache_writes, implicit_caching
from pollux_flows.pipeline.plan import Plan
from pollux_flows.result import Outcome
from pollux_flows.state.identity import digest, source_identity

# After this many failed first calls, waiting for another one costs more time than it saves money.
_FIRST_CALLS: Final = 3
_KEY_CHARS: Final = 32
OPENAI_LEAST: Final = 1024
"""The fewest tokens of a prefix that OpenAI caches."""


def caches_prefix(plan: Plan) -> bool:
    """Return whether the calls of the plan request prompt caching."""
    return implicit_caching(plan.target.provider, plan.options, plan.total, _sharing(plan))


def goes_warm(plan: Plan) -> bool:
    """Return whether a first call goes before the others."""
    return plan.options.implicit_caching == "warm" and _sharing(plan) > 1


def prefix_key(plan: Plan, sources: Sequence[int]) -> str | None:
    """Return the prompt cache key of the calls about these sources; None for providers other than OpenAI."""
    options = plan.options
    if plan.target.provider != "openai" or not (sources or options.system_instruction):
        return None
    identities = []
    for index in sources:
        content = plan.contents[index]
        hashed = (content.sha256, content.mime_type) if content else None
        identities.append(source_identity(plan.sources[index], "openai", hashed))
    shared = {"system": options.system_instruction, "tools": options.tools or [], "sources": identities}
    return f"pollux-{digest('prefix', shared)[:_KEY_CHARS]}"


def prefix_warnings(plan: Plan, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield warnings about prompt caching that was requested and had no effect."""
    options, model = plan.options, plan.target.model
    if options.implicit_caching == "warm" and plan.total > 1 and not goes_warm(plan):
        why = "each source has one prompt" if plan.sharing == 1 else "the prompts have no sources or instructions"
        yield f"implicit_caching='warm' had no effect: {why}, so no two calls have the same prefix."
    if options.cache_ttl == "1h" and plan.target.provider == "openai" and not bills_cache_writes(model):
        yield f"cache_ttl={options.cache_ttl!r} had no effect: OpenAI decides for {model} how long it caches."
    elif options.cache_ttl == "1h" and plan.target.provider != "openai" and not caches_prefix(plan):
        yield f"cache_ttl={options.cache_ttl!r} had no effect: these calls cache nothing. Set implicit_caching='warm'."
    if not options.implicit_caching or not caches_prefix(plan):
        return
    fresh = [outcome for outcome in outcomes if outcome.reused is None]
    least = claude.cache_minimum(model) if plan.target.provider == "anthropic" else None
    if goes_warm(plan) and _have_failed(sum(outcome.answer is None for outcome in fresh)) and not _is_read(fresh):
        yield "Nothing was read from a cache (implicit_caching): the first calls failed, and the others did not wait."
    elif least is not None and cached_nothing(fresh):
        yield (
            f"Nothing was cached (implicit_caching): {model} caches prefixes of {least:,} tokens or more, and silently "
            "ignores shorter ones."
        )
    elif plan.target.provider == "openai" and len(fresh) > 1 and not _is_read(fresh):
        yield (
            "Nothing was read from a cache (implicit_caching): OpenAI caches prefixes of "
            f"{OPENAI_LEAST:,} tokens or more."
        )


class WarmUps:
    """Lets one call about each set of sources go first, and the others after its answer.

    If the first call fails, is cancelled, or was answered elsewhere, the next one takes its place. After a few failures
    the others run concurrently, and write nothing.
    """

    def __init__(self, plan: Plan) -> None:
        self._goes_warm = goes_warm(plan)
        self._caches = caches_prefix(plan)
        # A part of a plan with a single call, executed on another machine, has no other call to write for.
        self._calls = Counter(call.source for call in plan.calls)
        self._turns: defaultdict[int | None, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._warm: set[int | None] = set()
        self._failed: Counter[int | None] = Counter()

    def is_needed(self, source: int | None) -> bool:
        """Return whether calls about that source still run one after the other."""
        return self._goes_warm and source not in self._warm and not self._writes_in_vain(source)

    def caches(self, source: int | None) -> bool:
        """Return whether a call about that source requests prompt caching."""
        return self._caches and not (self._goes_warm and self._writes_in_vain(source))

    @asynccontextmanager
    async def take_turn(self, source: int | None) -> AsyncIterator[None]:
        """Wait until a call about that source may start: at once, unless another one goes first."""
        if self.is_needed(source):
            async with self._turns[source]:
                if self.is_needed(source):
                    yield
                    return
        yield

    def record(self, source: int | None, outcome: Outcome) -> None:
        """Record, within its turn, the outcome of a call: a call that was just answered has written the prefix."""
        if not self.is_needed(source):
            return
        if outcome.answer is None:
            self._failed[source] += 1
        elif outcome.reused is None:
            self._warm.add(source)

    def _writes_in_vain(self, source: int | None) -> bool:
        """Return whether no other call would read the prefix that a call about that source writes."""
        has_failed = source not in self._warm and _have_failed(self._failed[source])
        return has_failed or self._calls[source] == 1


def _have_failed(first_calls: int) -> bool:
    return first_calls >= _FIRST_CALLS


def _sharing(plan: Plan) -> int:
    """Return how many calls of the plan have the same prefix."""
    options = plan.options
    has_prefix = bool(plan.sources or plan.history.turns or options.system_instruction or options.tools)
    return plan.sharing if has_prefix else 1


def cached_nothing(outcomes: Sequence[Outcome]) -> bool:
    """Return whether calls were made, and the provider reported that none of them read or wrote a cache."""
    usages = [outcome.answer.usage for outcome in outcomes if outcome.answer is not None]
    reported = [usage for usage in usages if {"cached_tokens", "cache_write_tokens"} <= usage.keys()]
    return bool(reported) and not any(usage["cached_tokens"] or usage["cache_write_tokens"] for usage in reported)


def _is_read(outcomes: Sequence[Outcome]) -> bool:
    return any(outcome.answer is not None and outcome.answer.usage.get("cached_tokens") for outcome in outcomes)
