"""Lengths: the input tokens of calls, by the length of what they send. Nothing is read or sent for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pollux_flows.caching.auto import estimate_tokens
from pollux_flows.estimation.work import Sampled
from pollux_flows.pipeline.attach import delivery_of
from pollux_flows.pipeline.plan import Plan
from pollux_flows.plain import canonical

CHARACTERS_PER_TOKEN: Final = 4
# A page at an address: some take a hundred tokens, some a hundred thousand.
ADDRESS_TOKENS: Final = 1_000
LARGEST_SENT: Final = 8 << 20
"""The most bytes of a file that is sent along to be counted, although the call would upload it."""


@dataclass(frozen=True, slots=True)
class Length:
    """The input tokens of one call, by length."""

    sampled: Sampled
    countable: float
    """Of what the provider can count."""
    prompt: float
    """Of the prompt, which is a part of that."""
    uploads: float
    """Of files that are too large to be counted without an upload."""
    shared: int
    """The bytes of the sources that it takes to have the call counted."""

    @property
    def tokens(self) -> float:
        return self.countable + self.uploads


class _PlanLengths:
    """The lengths of what the calls of one plan share, each measured once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        options, said = plan.options, plan.said.turns
        texts = [options.system_instruction or "", *(turn.content or "" for turn in said)]
        schema = options.response_json_schema()
        values = [value for value in (options.tools, schema) if value]
        characters = sum(map(len, texts)) + sum(len(canonical(value)) for value in values)
        self._characters = characters
        self._sums: dict[tuple[int, ...], tuple[float, float, int]] = {}

    def measure(self, sampled: Sampled) -> Length:
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


def measure_calls(sample: Sequence[Sampled]) -> list[Length]:
    """Return the lengths of these calls, in their order."""
    plans: dict[int, _PlanLengths] = {}
    lengths = []
    for each in sample:
        if id(each.plan) not in plans:
            plans[id(each.plan)] = _PlanLengths(each.plan)
        lengths.append(plans[id(each.plan)].measure(each))
    return lengths


def is_too_large(plan: Plan, index: int) -> bool:
    """Return whether a source would have to be uploaded to be counted; a smaller one can be sent along."""
    content = plan.contents[index]
    return content is not None and content.size_bytes > LARGEST_SENT and delivery_of(plan, index) == "upload"


def describe_sources(sample: Sequence[Sampled]) -> list[str]:
    """Return what is assumed about sources whose length is not counted, or not known."""
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
            f"{number} of the sources are at an address that the provider opens. Where it does not count them, "
            f"{ADDRESS_TOKENS:,} tokens are assumed for each."
        )
    return found
