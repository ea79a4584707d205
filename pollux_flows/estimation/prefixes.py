"""Prefixes: the input that prompt caching reads and writes, where the provider or the options cache it.

Of calls that begin alike, the first ones write and the others read. With `implicit_caching="warm"` a single one goes
first, else as many as are under way at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from pollux_flows import claude
from pollux_flows.capabilities import bills_cache_writes
from pollux_flows.config import Config
from pollux_flows.estimation.work import Work
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.prefix import OPENAI_LEAST, caches_prefix, goes_warm

# Where it is not known from how many tokens on a model caches.
_HIGHEST_MINIMUM: Final = 4_096


class Tokens(Protocol):
    """The input tokens of each call of the sample."""

    @property
    def expected(self) -> Sequence[float]: ...
    @property
    def prompts(self) -> Sequence[float]: ...
    @property
    def cached(self) -> float: ...


@dataclass(frozen=True)
class Prefixes:
    """The tokens of each call that prompt caching reads and writes, on average over the calls that begin alike."""

    read: Sequence[float]
    written: Sequence[float]
    why: str | None = None
    is_warm: bool = False
    """True if a first call writes for all others, as it does in batches, too."""
    writes_all: bool = False
    """True if each call pays for writing all that it sends, and not only what others may read."""

    def read_nothing(self) -> Prefixes:
        """Return the worst case: each call writes what it could have read."""
        written = [read + written for read, written in zip(self.read, self.written, strict=True)]
        return replace(self, read=[0.0] * len(written), written=written)

    def in_batch(self) -> Prefixes:
        """Return what the calls of a batch read and write: none of them waits for another."""
        if self.is_warm:
            return self
        alone = self.read_nothing()
        return alone if self.writes_all else replace(alone, written=alone.read)


def find_prefixes(work: Work, inputs: Tokens, config: Config) -> Prefixes:
    """Return what prompt caching takes from the calls of the sample."""
    read, written = [0.0] * len(work.sample), [0.0] * len(work.sample)
    plan = work.sample[0].plan
    if not (plan.target.provider == "openai" or caches_prefix(plan)):
        return Prefixes(read, written)
    minimum = _find_minimum(plan)
    writes_all = plan.target.provider == "openai" and bills_cache_writes(plan.target.model)
    if writes_all:
        written = [tokens if tokens >= minimum else 0.0 for tokens in inputs.expected]
    for places in _find_alike(work):
        calls = len(places) * work.scale
        # A call that shares nothing writes all that it sends, for the next turn.
        own = 0.0 if calls > 1 else inputs.prompts[places[0]]
        tokens = min(inputs.expected[place] - inputs.prompts[place] - inputs.cached for place in places) + own
        if tokens < minimum:
            continue
        first = min(1.0, (1 if goes_warm(plan) else config.request_concurrency) / calls)
        for place in places:
            read[place] = tokens * (1 - first)
            written[place] = inputs.expected[place] - read[place] if writes_all else tokens * first
    if any(read):
        who = "first call" if goes_warm(plan) else f"first {config.request_concurrency} calls"
        why = f"Prompt caching: the {who} about the same sources write what the others read."
    elif any(written) and (writes_all or plan.target.provider == "anthropic"):
        why = "Prompt caching: calls write what they send, which costs more."
    else:
        why = None
    return Prefixes(read, written, why, goes_warm(plan), writes_all)


def _find_alike(work: Work) -> list[list[int]]:
    """Return the places of calls that begin alike; none where each has sources, or a plan, of its own."""
    plans = {id(each.plan) for each in work.sample}
    if len(plans) > 1 or any(each.call.sources is not None for each in work.sample):
        return []
    groups = defaultdict[int | None, list[int]](list)
    for place, each in enumerate(work.sample):
        groups[each.call.source].append(place)
    return list(groups.values())


def _find_minimum(plan: Plan) -> int:
    """Return from how many tokens on a prefix is cached."""
    if plan.target.provider == "openai":
        return OPENAI_LEAST
    return claude.cache_minimum(plan.target.model) or _HIGHEST_MINIMUM
