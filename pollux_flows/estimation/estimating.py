"""Estimating: a run's tokens, price and time, from its calls. The provider only counts tokens, which is free."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pollux_flows import capabilities
from pollux_flows.caching.auto import plan_cache
from pollux_flows.config import Config, Target
from pollux_flows.estimation.answers import AnswerLength, estimate_answer
from pollux_flows.estimation.counting import Counts, count_tokens
from pollux_flows.estimation.estimate import Amount, Estimate
from pollux_flows.estimation.lengths import CHARACTERS_PER_TOKEN, Length, describe_sources, measure_calls
from pollux_flows.estimation.work import Work, find_work
from pollux_flows.options import Options
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.terms import Terms
from pollux_flows.pricing import Cost, cost_of, price_table, total
from pollux_flows.result import Answer, Outcome

# How far tokens may be from a count by length: less for plain English, more for code and for other scripts.
_FEWER: Final = 0.75
_MORE: Final = 2.0
# Calls are priced in so many groups of similar length: some prices depend on the length of the prompt.
_GROUPS: Final = 64
_MINUTE_S: Final = 60.0
_NOTHING_TO_COUNT: Final = "All of it would have to be uploaded to be counted."


async def estimate_plan(plan: Plan, config: Config, terms: Terms | None = None) -> Estimate:
    """Return what the calls of a plan are expected to take on these terms. Nothing is generated or uploaded."""
    return await estimate_calls(await find_work(plan, terms or Terms()), config)


async def estimate_calls(work: Work, config: Config) -> Estimate:
    """Return what these calls are expected to take, from a sample of them. Nothing is generated or uploaded."""
    lengths = measure_calls(work.sample)
    counts = await count_tokens(lengths, config)
    inputs = _Inputs.of(lengths, counts)
    options = work.sample[0].plan.options if work.sample else Options()
    answer = estimate_answer(config.target, options, work.earlier)
    now, batch = (_price(work, config.target, inputs, answer, batch=batch) for batch in (False, True))
    tokens_in = inputs.total(work.scale)
    tokens_out = Amount(
        low=round(answer.low * work.to_ask),
        expected=round(answer.expected * work.to_ask),
        worst=None if answer.worst is None else answer.worst * work.to_ask,
        unknown=answer.unknown,
    )
    duration, limits = _estimate_time(work, config, tokens_in, tokens_out)
    return Estimate(
        target=config.target,
        calls=work.calls,
        duplicates=work.duplicates,
        reused=work.reused,
        to_ask=work.to_ask,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cost_usd=now,
        batch_cost_usd=batch,
        duration_s=duration,
        caching=_advise_caching(work, config),
        counted=len(counts.by_place),
        prices=price_table(),
        assumptions=_list_assumptions(work, config, lengths, counts, answer) + limits if work.to_ask else [],
    )


@dataclass(frozen=True)
class _Inputs:
    """The input tokens of each call of the sample."""

    expected: Sequence[float]
    cached: Sequence[float]
    """Those of them that are read from the cache that the options name."""
    low: float
    """As a share of the expected ones."""
    worst: float

    @classmethod
    def of(cls, lengths: Sequence[Length], counts: Counts) -> _Inputs:
        """Extrapolate from the calls that were counted, by length, to the others."""
        counted = counts.by_place
        by_length = math.fsum(lengths[place].countable for place in counted)
        if not by_length:
            return cls([each.tokens for each in lengths], [0.0] * len(lengths), _FEWER, _MORE)
        ratio = sum(count.input_tokens for count in counted.values()) / by_length
        cached = sum(count.cached_tokens for count in counted.values()) / len(counted)
        expected = [
            (counted[place].input_tokens if place in counted else ratio * each.countable) + each.uploads
            for place, each in enumerate(lengths)
        ]
        ratios = [count.input_tokens / lengths[place].countable / ratio for place, count in counted.items()]
        is_complete = len(counted) == len(lengths)
        low, worst = (1.0, 1.0) if is_complete else (min(ratios), max(ratios))
        uploads = math.fsum(each.uploads for each in lengths)
        share = uploads / (math.fsum(expected) or 1.0)
        return cls(
            expected,
            [min(cached, tokens) for tokens in expected],
            low=low * (1 - share) + _FEWER * share,
            worst=worst * (1 - share) + _MORE * share,
        )

    def total(self, scale: float) -> Amount:
        tokens = math.fsum(self.expected) * scale
        return Amount(low=round(tokens * self.low), expected=round(tokens), worst=round(tokens * self.worst))

    def groups(self) -> Iterator[tuple[int, float, float]]:
        """Yield the sizes of groups of calls of similar length, with their mean tokens and cached tokens."""
        order = sorted(range(len(self.expected)), key=self.expected.__getitem__)
        size = max(1, -(-len(order) // _GROUPS))
        for start in range(0, len(order), size):
            group = order[start : start + size]
            tokens = math.fsum(self.expected[place] for place in group) / len(group)
            yield len(group), tokens, math.fsum(self.cached[place] for place in group) / len(group)


def _price(work: Work, target: Target, inputs: _Inputs, answer: AnswerLength, *, batch: bool) -> Amount:
    if not work.to_ask:
        return Amount(low=0.0, expected=0.0, worst=0.0)
    if batch and capabilities.support(target.provider, "deferred") == "no":
        return Amount(unknown=f"{target.provider} has no batches.")
    if target.provider == "openrouter":
        return Amount(unknown="OpenRouter's price depends on the route that it takes, and is known with the answer.")

    def price(factor: float, output: float) -> Cost:
        return total(
            _multiply(cost_of(target, _answer(tokens * factor, cached, output), batch=batch), count * work.scale)
            for count, tokens, cached in inputs.groups()
        )

    low, expected = price(inputs.low, answer.low), price(1.0, answer.expected)
    worst = Cost(None, answer.unknown) if answer.worst is None else price(inputs.worst, answer.worst)
    return Amount(
        low=low.usd, expected=expected.usd, worst=worst.usd, unknown=expected.unknown or low.unknown or worst.unknown
    )


def _answer(tokens: float, cached: float, output: float) -> Answer:
    usage = {"input_tokens": round(tokens), "cached_tokens": min(round(cached), round(tokens))}
    return Answer(text="", finish_reason="stop", usage={**usage, "output_tokens": round(output)})


def _multiply(cost: Cost, number: float) -> Cost:
    return cost if cost.usd is None else Cost(cost.usd * number)


def _estimate_time(work: Work, config: Config, tokens_in: Amount, tokens_out: Amount) -> tuple[Amount, list[str]]:
    """Return the time that the calls take within the limits, and what it is assumed from."""
    latency = _mean_latency(work.earlier)
    why = []
    waits: list[Callable[[float], float]] = []
    if latency is not None:
        waits.append(lambda _: math.ceil(work.to_ask / config.request_concurrency) * latency)
        why.append(
            f"Time: earlier answers took {latency:.1f} s each, and {config.request_concurrency} calls are under way at "
            "once."
        )
    if (requests := config.requests_per_minute) is not None:
        waits.append(lambda _: work.to_ask / requests * _MINUTE_S)
        why.append(f"Time: at most {requests:,} requests a minute.")
    if (tokens := config.tokens_per_minute) is not None:
        waits.append(lambda used: used / tokens * _MINUTE_S)
        why.append(f"Time: at most {tokens:,} tokens a minute.")
    if not work.to_ask:
        return Amount(low=0.0, expected=0.0, worst=0.0), []
    missing = (
        f"How long {config.target.model} takes to answer is not known: the journal has no answers to such prompts."
    )
    if not waits:
        return Amount(unknown=missing), why

    def longest(ins: float | None, outs: float | None) -> float | None:
        return None if ins is None or outs is None else round(max(wait(ins + outs) for wait in waits), 1)

    return Amount(
        low=longest(tokens_in.low, tokens_out.low),
        expected=longest(tokens_in.expected, tokens_out.expected),
        worst=longest(tokens_in.worst, tokens_out.worst),
        unknown=missing if latency is None else tokens_out.unknown,
    ), why


def _mean_latency(earlier: Sequence[Outcome]) -> float | None:
    seconds = [each.duration_s for each in earlier if each.duration_s > 0]
    return math.fsum(seconds) / len(seconds) if seconds else None


def _advise_caching(work: Work, config: Config) -> str:
    plan = work.whole_plan
    if plan is None:
        return "Nothing is to be asked." if not work.to_ask else "Not looked at: the calls are of different requests."
    choice = plan_cache(plan, [each.call for each in work.sample], config.request_concurrency).cache_choice
    if choice is None or choice.mode == "none":
        return f'cache="auto" would cache nothing: {choice.why if choice else "it is not known why"}.'
    return f'cache="auto" pays: {choice.why}.'


def _list_assumptions(
    work: Work, config: Config, lengths: Sequence[Length], counts: Counts, answer: AnswerLength
) -> list[str]:
    counted, sampled, asked = len(counts.by_place), len(lengths), work.to_ask
    if not counted:
        found = [f"Input: by length, {CHARACTERS_PER_TOKEN} characters a token. {counts.problem or _NOTHING_TO_COUNT}"]
    elif counted == asked:
        found = [f"Input: {config.provider} has counted the tokens of every call."]
    else:
        how = "from the shortest to the longest; the others are in proportion to their length"
        found = [f"Input: {config.provider} has counted the tokens of {counted} of {asked:,} calls, {how}."]
        found += [f"It has not counted more: {counts.problem}"] if counts.problem else []
    if sampled != asked:
        found.append(f"{sampled:,} calls stand for all {asked:,}.")
    found += [*describe_sources(work.sample), *answer.why]
    found.append(f"Prices: {price_table()}, without the discounts of prompt caching that a provider gives by itself.")
    return found
