"""Lengths: estimate the input tokens of calls from the length of their input, without reading or sending anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pollux_flows.caching.auto import estimate_tokens
from pollux_flows.estimation.work import SampledCall
from pollux_flows.pipeline.attach import delivery_of
from pollux_flows.pipeline.plan import Plan
from pollux_flows.plain import canonical

CHARACTERS_PER_TOKEN: Final = 4
# Assumed for a page at an address, which may have a hundred tokens or a hundred thousand.
ADDRESS_TOKENS: Final = 1_000
LARGEST_SENT: Final = 8 << 20
"""The largest file, in bytes, that is sent to the counter although the call would upload it."""


@dataclass(frozen=True, slots=True)
class Length:
    """The estimated input tokens of one call, by length."""

    sampled: SampledCall
    countable: float
    """The tokens that the provider can count."""
    prompt: float
    """The tokens of the prompt, which are part of `countable`."""
    uploads: float
    """The tokens of files that are too large to be counted without an upload."""
    shared: int
    """The bytes of sources that must be sent to count the call."""

    @property
    def tokens(self) -> float:
        return self.countable + self.uploads


class _PlanLengths:
    """The lengths of the calls of one plan. Shared input is measured once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        options, history = plan.options, plan.history.turns
        texts = [options.system_instruction or "", *(turn.content or "" for turn in history)]
        schema = options.response_json_schema()
        values = [value for value in (options.tools, schema) if value]
        characters = sum(map(len, texts)) + sum(len(canonical(value)) for value in values)
        self._characters = characters
        self._sums: dict[tuple[int, ...], tuple[float, float, int]] = {}

    def measure(self, sampled: SampledCall) -> Length:
        sources = tuple(self._plan.sources_of(sampled.call))
        if sources not in self._sums:
            parts = list(map(self._of_source, sources))
            self._sums[sources] = (sum(p[0] for p in parts), sum(p[1] for p in parts), sum(p[2] for p in parts))
        countable, uploads, size = self._sums[sources]
        prompt = len(sampled.call.prompt or "")
        characters = self._characters + prompt
        countable += characters / CHARACTERS_PER_TOKEN
        return Length(sampled, countable, prompt / CHARACTERS_PER_TOKEN, uploads, size)

    def _of_source(self, index: int) -> tuple[float, float, int]:
        plan = self._plan
        source, content = plan.sources[index], plan.contents[index]
        tokens = estimate_tokens(source, content)
        if tokens is None:
            return ADDRESS_TOKENS, 0.0, 0
        if is_too_large(plan, index):
            return 0.0, tokens, 0
        return tokens, 0.0, len(source.text or "") if content is None else content.size_bytes


def measure_calls(sample: Sequence[SampledCall]) -> list[Length]:
    """Return the lengths of these calls, in their order."""
    plans: dict[int, _PlanLengths] = {}
    lengths = []
    for each in sample:
        if id(each.plan) not in plans:
            plans[id(each.plan)] = _PlanLengths(each.plan)
        lengths.append(plans[id(each.plan)].measure(each))
    return lengths


def is_too_large(plan: Plan, index: int) -> bool:
    """Return whether a source would have to be uploaded to be counted; a smaller one can be sent to the counter."""
    content = plan.contents[index]
    return content is not None and content.size_bytes > LARGEST_SENT and delivery_of(plan, index) == "upload"


def describe_sources(sample: Sequence[SampledCall]) -> list[str]:
    """Return the assumptions about sources whose length is not counted, or unknown."""
    kinds: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    for plan, call in sample:
        for index in plan.sources_of(call):
            if (id(plan), index) not in seen:
                seen.add((id(plan), index))
                if is_too_large(plan, index):
                    kinds["upload"] += 1
                elif estimate_tokens(plan.sources[index], plan.contents[index]) is None:
                    kinds["address"] += 1
    found = []
    if number := kinds["upload"]:
        found.append(
            f"{number} of the sources are too large to be counted without an upload: their tokens are estimated from "
            "their size, and may be a few times more or fewer."
        )
    if number := kinds["address"]:
        found.append(
            f"{number} of the sources are at an address that the provider opens. If it does not count them, "
            f"{ADDRESS_TOKENS:,} tokens are assumed for each."
        )
    return found
