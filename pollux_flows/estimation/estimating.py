"""Estimating: estimate the tokens, cost and time of a run from its calls. Nothing is generated or uploaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from pollux_flows.caching.auto import plan_cache
from pollux_flows.config import Config
from pollux_flows.estimation.answers import AnswerLength, estimate_answer
from pollux_flows.estimation.counting import Counts, count_tokens, make_request_body
from pollux_flows.estimation.estimate import Amount, Estimate
from pollux_flows.estimation.inputs import Inputs
from pollux_flows.estimation.lengths import CHARACTERS_PER_TOKEN, describe_sources, measure_calls
from pollux_flows.estimation.prefixes import Prefixes, find_prefixes
from pollux_flows.estimation.prices import Prices
from pollux_flows.estimation.work import Work, find_work
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.terms import Terms
from pollux_flows.pipeline.worst_case import find_output_limit
from pollux_flows.pricing import price_table
from pollux_flows.result import Outcome

_MINUTE_S: Final = 60.0
_NOTHING_TO_COUNT: Final = "Counting would require uploads."


async def estimate_plan(plan: Plan, config: Config, terms: Terms | None = None) -> Estimate:
    """Estimate the calls of a plan on these terms. Nothing is generated or uploaded."""
    return await estimate_calls(await find_work(plan, terms or Terms()), config)


async def estimate_calls(work: Work, config: Config) -> Estimate:
    """Estimate these calls from a sample of them. Nothing is generated or uploaded."""
    if not work.sample:
        return _estimate_nothing(work, config)
    options, body = work.sample[0].plan.options, make_request_body(work.sample[0], config)
    lengths = measure_calls(work.sample)
    counts = await count_tokens(lengths, config)
    inputs = Inputs.of(lengths, counts)
    prefixes = find_prefixes(work, inputs, config)
    answer = estimate_answer(config.target, options, work.earlier, find_output_limit(config.target, body))
    prices = Prices(config.target, options, inputs, prefixes, answer, work.scale)
    tokens_in, tokens_out = inputs.total(work.scale), answer.total(work.to_ask)
    duration, limits = _estimate_duration(work, config, tokens_in, tokens_out)
    return Estimate(
        **_count_calls(work, config),
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cost_usd=prices.price(),
        batch_cost_usd=prices.price(batch=True),
        duration_s=duration,
        caching=_advise_caching(work, config),
        counted=len(counts.by_place),
        assumptions=[*_list_assumptions(work, config, counts, answer, prefixes), *limits],
    )


def _estimate_nothing(work: Work, config: Config) -> Estimate:
    tokens, usd = Amount(low=0, expected=0, worst=0), Amount(low=0.0, expected=0.0, worst=0.0)
    return Estimate(
        **_count_calls(work, config) | {"to_ask": 0},
        input_tokens=tokens,
        output_tokens=tokens,
        cost_usd=usd,
        batch_cost_usd=usd,
        duration_s=usd,
        caching="There is nothing to ask.",
        counted=0,
        assumptions=[],
    )


def _count_calls(work: Work, config: Config) -> dict[str, Any]:
    """Return the fields of an estimate that come from its work."""
    return {
        "target": config.target,
        "calls": work.calls,
        "duplicates": work.duplicates,
        "reused": work.reused,
        "unusable": work.unusable,
        "to_ask": work.to_ask,
        "prices": price_table(),
    }


def _advise_caching(work: Work, config: Config) -> str:
    plan = work.only_plan
    if plan is None:
        return "Caching was not considered: the rows of a table share no sources."
    choice = plan_cache(plan, [each.call for each in work.sample], config.request_concurrency).cache_choice
    if choice is None or choice.mode == "none":
        return f'cache="auto" would cache nothing: {choice.why if choice else "the reason is unknown"}.'
    return f'cache="auto" is cheaper: {choice.why}.'


def _list_assumptions(
    work: Work, config: Config, counts: Counts, answer: AnswerLength, prefixes: Prefixes
) -> Iterator[str]:
    is_routed = config.provider == "openrouter"
    counted, sampled, asked = len(counts.by_place), len(work.sample), work.to_ask
    if not counted:
        yield f"Input: by length, {CHARACTERS_PER_TOKEN} characters per token. {counts.problem or _NOTHING_TO_COUNT}"
    elif counted == asked:
        yield f"Input: {config.provider} has counted the tokens of every call."
    else:
        how = "from the shortest to the longest; the others are estimated by their length"
        yield f"Input: {config.provider} has counted the tokens of {counted} of {asked:,} calls, {how}."
        if counts.problem:
            yield f"Counting stopped: {counts.problem}"
    if sampled != asked:
        yield f"A sample of {sampled:,} calls represents all {asked:,}."
    yield from work.why
    yield from describe_sources(work.sample)
    yield from answer.why
    if prefixes.why:
        yield prefixes.why
    routes = ", with OpenRouter's price for the model; a route may cost more" if is_routed else ""
    yield f"Prices: {price_table()}{routes}."


def _estimate_duration(work: Work, config: Config, tokens_in: Amount, tokens_out: Amount) -> tuple[Amount, list[str]]:
    """Estimate the time of the calls, by the slowest of their limits, and return the assumptions."""
    waits: list[Callable[[float], float]] = []
    why = []
    latency = _find_latency(work.earlier)
    if latency is not None:
        rounds = math.ceil(work.to_ask / config.request_concurrency)
        waits.append(lambda _: rounds * latency)
        why.append(f"Time: earlier answers took {latency:.1f} s, with {config.request_concurrency} calls at once.")
    if (requests := config.requests_per_minute) is not None:
        waits.append(lambda _: work.to_ask / requests * _MINUTE_S)
        why.append(f"Time: at most {requests:,} requests a minute.")
    if (tokens := config.tokens_per_minute) is not None:
        waits.append(lambda used: used / tokens * _MINUTE_S)
        why.append(f"Time: at most {tokens:,} tokens a minute.")
    missing = f"The time {config.model} takes to answer is unknown: the journal has no answers to these prompts."
    if not waits:
        return Amount(unknown=missing), why

    def find_longest(ins: float | None, outs: float | None) -> float | None:
        return None if ins is None or outs is None else round(max(wait(ins + outs) for wait in waits), 1)

    return Amount(
        low=find_longest(tokens_in.low, tokens_out.low),
        expected=find_longest(tokens_in.expected, tokens_out.expected),
        worst=find_longest(tokens_in.worst, tokens_out.worst),
        unknown=missing if latency is None else tokens_out.unknown,
    ), why


def _find_latency(earlier: Sequence[Outcome]) -> float | None:
    """Return the mean duration of earlier answers; None if there are none."""
    seconds = [each.duration_s for each in earlier if each.duration_s > 0]
    return math.fsum(seconds) / len(seconds) if seconds else None
