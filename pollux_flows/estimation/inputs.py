"""Inputs: the input tokens of all calls, extrapolated from the counts of a few."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pollux_flows.estimation.counting import Counts
from pollux_flows.estimation.estimate import Amount
from pollux_flows.estimation.lengths import Length
from pollux_flows.estimation.prefixes import Prefixes

# The range of actual tokens relative to an estimate by length: fewer in plain English, more in code and other scripts.
_FEWER: Final = 0.75
_MORE: Final = 2.0
# Calls are priced in groups of similar length, as some prices depend on the length of the prompt.
_GROUPS: Final = 64


class InputGroup(NamedTuple):
    """Calls of similar length, with their mean numbers of tokens."""

    calls: int
    tokens: float
    read: float
    """The tokens that are read from a cache."""
    written: float
    """The tokens that are written to a cache."""


@dataclass(frozen=True)
class Inputs:
    """The input tokens of each call of the sample."""

    expected: Sequence[float]
    prompts: Sequence[float]
    """The tokens that no other call shares."""
    cached: float
    """The tokens of each call that are in the cache of the options."""
    low: float
    """The lowest number of tokens, as a factor of the expected one."""
    worst: float
    """The highest number of tokens, as a factor of the expected one."""

    @classmethod
    def of(cls, lengths: Sequence[Length], counts: Counts) -> Inputs:
        """Extrapolate by length from the counted calls to the others."""
        counted = counts.by_place
        by_length = math.fsum(lengths[place].countable for place in counted)
        if not by_length:
            prompts = [each.prompt for each in lengths]
            return cls([each.tokens for each in lengths], prompts, 0.0, low=_FEWER, worst=_MORE)
        cached = sum(count.cached_tokens for count in counted.values()) / len(counted)
        sent = {place: count.input_tokens - count.cached_tokens for place, count in counted.items()}
        ratio = sum(sent.values()) / by_length
        expected = [
            cached + sent.get(place, ratio * each.countable) + each.uploads for place, each in enumerate(lengths)
        ]
        low, worst = 1.0, 1.0
        if len(counted) < len(lengths):
            ratios = [tokens / lengths[place].countable / ratio for place, tokens in sent.items()]
            low, worst = min(ratios), max(ratios)
        share = math.fsum(each.uploads for each in lengths) / (math.fsum(expected) or 1.0)
        return cls(
            expected,
            [ratio * each.prompt for each in lengths],
            cached,
            low=low * (1 - share) + _FEWER * share,
            worst=worst * (1 - share) + _MORE * share,
        )

    def total(self, scale: float) -> Amount:
        """Return the sum over all calls, each of which represents `scale` calls."""
        tokens = math.fsum(self.expected) * scale
        return Amount(low=round(tokens * self.low), expected=round(tokens), worst=round(tokens * self.worst))

    def group(self, prefixes: Prefixes) -> Iterator[InputGroup]:
        """Yield groups of calls of similar length."""
        order = sorted(range(len(self.expected)), key=self.expected.__getitem__)
        size = max(1, -(-len(order) // _GROUPS))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            tokens, read, written = (
                math.fsum(values[place] for place in places) / len(places)
                for values in (self.expected, prefixes.read, prefixes.written)
            )
            yield InputGroup(len(places), tokens, self.cached + read, written)
