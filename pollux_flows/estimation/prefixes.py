"""Prefixes: estimate the input that prompt caching reads and writes.

Of calls with the same prefix, the first ones write it and the others read it. With `implicit_caching="warm"` a single
call goes first, otherwise as many as are in flight at once.
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

# Assumed where the fewest tokens that a model caches are unknown.
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
    """The tokens of each call that prompt caching reads and writes, as means over calls with the same prefix."""

    read: Sequence[float]
    written: Sequence[float]
    why: str | None = None
    is_warm: bool = False
    """True if a first call writes for all others, which also works in batches."""
    writes_all: bool = False
    """True if each call pays for writing its entire input, not only the prefix that others may read."""

    def read_nothing(self) -> Prefixes:
        """Return the worst case: each call writes the tokens that it could have read."""
        written = [read + written for read, written in zip(self.read, self.written, strict=True)]
        return replace(self, read=[0.0] * len(written), written=written)

    def in_batch(self) -> Prefixes:
        """Return the prefixes of a batch, in which no call waits for another."""
        if self.is_warm:
            return self
        alone = self.read_nothing()
        return alone if self.writes_all else replace(alone, written=alone.read)


def find_prefixes(work: Work, inputs: Tokens, config: Config) -> Prefixes:
    """Estimate the prompt caching of the calls of the sample."""
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
        # A call that shares nothing writes its entire input, for the next turn.
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
        why = f"Prompt caching: the {who} about the same sources write to the cache, and the others read from it."
    elif any(written) and (writes_all or plan.target.provider == "anthropic"):
        why = "Prompt caching: calls write their input to the cache, which costs more."
    else:
        why = None
    return Prefixes(read, written, why, goes_warm(plan), writes_all)


def _find_alike(work: Work) -> list[list[int]]:
    """Return groups of the places of calls with the same prefix; none if each has its own sources or plan."""
    plans = {id(each.plan) for each in work.sample}
    if len(plans) > 1 or any(each.call.sources is not None for each in work.sample):
        return []
    groups = defaultdict[int | None, list[int]](list)
    for place, each in enumerate(work.sample):
        groups[each.call.source].append(place)
    return list(groups.values())


def _find_minimum(plan: Plan) -> int:
    """Return the fewest tokens of a prefix that is cached."""
    if plan.target.provider == "openai":
        return OPENAI_LEAST
    return claude.cache_minimum(plan.target.model) or _HIGHEST_MINIMUM
