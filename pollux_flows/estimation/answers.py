"""Answer lengths: estimated from earlier answers, from the response schema, or from a default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pollux_flows.claude import BUDGETS
from pollux_flows.config import Target
from pollux_flows.estimation.estimate import Amount
from pollux_flows.estimation.lengths import CHARACTERS_PER_TOKEN
from pollux_flows.estimation.schema_size import ITEMS, TEXT_CHARACTERS, size_of_answer
from pollux_flows.options import Options
from pollux_flows.result import Outcome

DEFAULT_TOKENS: Final = 250
"""The default for an answer without further information: two paragraphs."""
_LEAST_TOKENS: Final = 10
_THINKING_TOKENS: Final = {"none": 0, "minimal": 512, **BUDGETS}


@dataclass(frozen=True)
class AnswerLength:
    """The output tokens of one call."""

    low: float
    expected: float
    worst: int | None
    why: list[str]
    unknown: str | None = None
    """Why the worst case is unknown."""

    def total(self, calls: int) -> Amount:
        """Return the tokens of this number of answers."""
        worst = None if self.worst is None else self.worst * calls
        low, expected = round(self.low * calls), round(self.expected * calls)
        return Amount(low=low, expected=expected, worst=worst, unknown=self.unknown)


def estimate_answer(target: Target, options: Options, earlier: Sequence[Outcome], worst: int | None) -> AnswerLength:
    """Estimate the tokens of the answer to one call, with the assumptions. `worst` is the limit; None if unknown."""
    found = [tokens for each in earlier if (tokens := _output_tokens(each)) is not None]
    if found:
        low, expected = float(min(found)), math.fsum(found) / len(found)
        why = [f"Output: earlier answers to these prompts ({len(found):,} in the journal) took {expected:,.0f} tokens."]
    else:
        low, expected, why = _assume(options)
    if worst is None:
        unknown = f"Without max_tokens, the longest possible answer of {target.model} is unknown."
        return AnswerLength(low, expected, None, why, unknown)
    limit = "max_tokens" if options.max_tokens else "the most that is possible without max_tokens"
    why.append(f"Worst case: answers of {worst:,} tokens, {limit}.")
    return AnswerLength(min(low, worst), min(expected, worst), worst, why)


def _assume(options: Options) -> tuple[float, float, list[str]]:
    schema = options.response_json_schema()
    if schema is None:
        low, expected = float(_LEAST_TOKENS), float(DEFAULT_TOKENS)
        why = [f"Output: there are no earlier answers to these prompts: {DEFAULT_TOKENS} tokens are assumed for each."]
    else:
        size = size_of_answer(schema)
        low, expected = size.least / CHARACTERS_PER_TOKEN, size.expected / CHARACTERS_PER_TOKEN
        unlimited = f"{TEXT_CHARACTERS} characters are assumed for a text, and {ITEMS} items for a list, without limits"
        why = [f"Output: {expected:,.0f} tokens per answer, from the response_schema; {unlimited}."]
    budget = options.reasoning_budget_tokens
    if budget is None and options.reasoning_effort is not None:
        budget = _THINKING_TOKENS.get(options.reasoning_effort, max(_THINKING_TOKENS.values()))
    if budget:
        expected += budget / 2
        why.append(f"Thinking: half of {budget:,} tokens is assumed for each call.")
    elif budget is None:
        why.append("Thinking that the model does without reasoning options is not included.")
    return low, expected, why


def _output_tokens(outcome: Outcome) -> int | None:
    return None if outcome.answer is None else outcome.answer.usage.get("output_tokens")
