"""Prices: the cost of the calls to ask, now and as a batch."""

from __future__ import annotations

from dataclasses import dataclass

from pollux_flows import capabilities
from pollux_flows.config import Target
from pollux_flows.errors import ConfigurationError
from pollux_flows.estimation.answers import AnswerLength
from pollux_flows.estimation.estimate import Amount
from pollux_flows.estimation.inputs import InputGroup, Inputs
from pollux_flows.estimation.prefixes import Prefixes
from pollux_flows.options import Options
from pollux_flows.pricing import Cost, cost_at_most, cost_of, total
from pollux_flows.result import Answer, Billing


@dataclass(frozen=True)
class Prices:
    """Prices the calls of a run."""

    target: Target
    options: Options
    inputs: Inputs
    prefixes: Prefixes
    answer: AnswerLength
    scale: float

    def price(self, *, batch: bool = False) -> Amount:
        """Return the low, the expected and the worst cost of all calls."""
        if batch and (refusal := self._find_batch_refusal()) is not None:
            return Amount(unknown=refusal)
        inputs, answer, prefixes = self.inputs, self.answer, self.prefixes.in_batch() if batch else self.prefixes
        low = self._add(inputs.low, answer.low, prefixes, batch=batch)
        expected = self._add(1.0, answer.expected, prefixes, batch=batch)
        worst = Cost(None, answer.unknown)
        if answer.worst is not None:
            worst = self._add(inputs.worst, answer.worst, prefixes.read_nothing(), batch=batch)
        unknown = expected.unknown or low.unknown or worst.unknown
        return Amount(low=low.usd, expected=expected.usd, worst=worst.usd, unknown=unknown)

    def _find_batch_refusal(self) -> str | None:
        """Return the reason why these calls cannot be submitted as a batch, or None if they can."""
        try:
            capabilities.check_deferred(self.target, self.options)
        except ConfigurationError as error:
            return error.message
        return None

    def _add(self, factor: float, output: float, prefixes: Prefixes, *, batch: bool) -> Cost:
        """Return the cost of all calls, with input tokens times the factor and `output` tokens each."""
        costs = []
        for group in self.inputs.group(prefixes):
            cost = self._price_call(group, factor, output, batch=batch)
            if cost.usd is None:
                return cost
            costs.append(Cost(cost.usd * group.calls * self.scale))
        return total(costs)

    def _price_call(self, group: InputGroup, factor: float, output: float, *, batch: bool) -> Cost:
        """Return the price of a call of this group, as if it had been answered."""
        sent = round(group.tokens * factor)
        if self.target.provider == "openrouter":  # its actual price is only reported with the answer
            return cost_at_most(self.target, sent, round(output))
        written = min(round(group.written * factor), sent)
        usage = {
            "input_tokens": sent,
            "output_tokens": round(output),
            "cached_tokens": min(round(group.read * factor), sent - written),
            "cache_write_tokens": written,
        }
        billing = Billing(long_cache_write_tokens=written if self.options.cache_ttl == "1h" else 0)
        answer = Answer(text="", finish_reason="stop", usage=usage, billing=billing)
        return cost_of(self.target, answer, batch=batch)
