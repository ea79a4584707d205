"""Automatic caching: decide from list prices whether a cache makes the calls of a run cheaper.

Where a provider sells caches (Gemini), the sources are held in a cache while the run lasts, which costs the price of
input once, a tenth of it for each prompt, and the storage. Where a prompt writes to a cache that later ones read
(Anthropic), the first call is made before the others. Other providers cache repeated prefixes automatically. Caching
does not change answers.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from pollux_flows import capabilities, claude
from pollux_flows.caching.sweep import delete_temporary
from pollux_flows.caching.worth import price_cache, price_prefix
from pollux_flows.files.content import Content
from pollux_flows.files.mime import is_text_like
from pollux_flows.pipeline.caches import CacheChoice, CacheRequest
from pollux_flows.pipeline.execute import Execution
from pollux_flows.pipeline.plan import Plan, PlannedCall
from pollux_flows.plain import canonical
from pollux_flows.pricing import dollars
from pollux_flows.source import Source
from pollux_flows.state.leases import run_to_completion

# More than one round of calls takes. A cache that is too short for its run is extended.
_SHORTEST_S: Final = 120
_ROUND_S: Final = 30
# The fewest tokens that Gemini caches, by model; for others, the highest of all minimums.
_GEMINI_2_5_MINIMUM: Final = 2_048
_HIGHEST_MINIMUM: Final = 4_096
_BYTES_PER_TOKEN: Final = {"text": 4, "application": 200, "audio": 500, "video": 1_000}
_IMAGE_TOKENS: Final = 258


@asynccontextmanager
async def cache_automatically(execution: Execution, calls: Sequence[PlannedCall]) -> AsyncIterator[None]:
    """Use caches in an execution where they make these calls cheaper, and delete those it created at the end."""
    plan = plan_cache(execution.plan, calls, execution.config.request_concurrency)
    execution.use_plan(plan)
    try:
        yield
    finally:
        if plan.cache_choice is not None and plan.cache_choice.mode == "explicit":
            execution.plan = _report_refusal(execution)
            if execution.caches is not None and execution.created_by is not None:
                deleted = await run_to_completion(
                    delete_temporary(execution.caches, execution.config, execution.created_by)
                )
                for use in execution.cache_uses:
                    use.end_deleted(deleted, time.time())


def plan_cache(plan: Plan, calls: Sequence[PlannedCall], concurrency: int) -> Plan:
    """Return the plan with the cheapest caching for these of its calls, and the reason for the choice."""
    if (obstacle := _find_obstacle(plan, calls)) is not None:
        return plan.change_caching(_choose_none(obstacle), request=plan.cache_request)
    if plan.target.provider == "anthropic":
        choice = _choose_warm(plan, calls)
        warm = {"implicit_caching": "warm"} if choice.mode == "warm" else {}
        return plan.change_caching(choice, options=plan.options.model_copy(update=warm))
    seconds = _SHORTEST_S + _ROUND_S * math.ceil(len(calls) / concurrency)
    choice = _choose_explicit(plan, calls, seconds)
    if choice.mode == "none":
        return plan.change_caching(choice)
    request = CacheRequest(
        sources=plan.sources,
        system_instruction=plan.options.system_instruction,
        tools=plan.options.tools,
        ttl_seconds=seconds,
    )
    return plan.change_caching(choice, request=request)


def estimate_tokens(source: Source, content: Content | None) -> int | None:
    """Estimate the tokens of a source from its length; None for an address, whose length is unknown."""
    if source.source_type in {"text", "json"}:
        return len(source.text or "") // _BYTES_PER_TOKEN["text"]
    if content is None:
        return None
    kind = content.mime_type.partition("/")[0]
    if kind == "image":
        return _IMAGE_TOKENS
    kind = "text" if is_text_like(content.mime_type) else kind
    return content.size_bytes // _BYTES_PER_TOKEN.get(kind, _BYTES_PER_TOKEN["application"])


def _find_obstacle(plan: Plan, calls: Sequence[PlannedCall]) -> str | None:
    """Return the reason why a cache cannot help, regardless of its price; None if it can."""
    options, target = plan.options, plan.target
    if options.cache is not None:
        return "the options name a cache already"
    if max(Counter(call.source for call in calls).values(), default=0) <= 1:
        return "no two prompts that are to be answered share anything" if calls else "all prompts are answered already"
    if any(call.prompt is None for call in calls):
        return "a call without a prompt must send its sources"
    if not (plan.sources or options.system_instruction or options.tools):
        return "the prompts have no sources or instructions in common"
    if target.provider == "anthropic":
        return None if options.implicit_caching is None else "the options set implicit_caching"
    if not capabilities.has_caches(target):
        return f"{target.provider} caches repeated prefixes of {target.model} automatically"
    if not capabilities.fits_cache(target, options):
        return "tool_choice, and instructions and tools in provider_options, cannot be combined with a cache"
    if any(source.gemini_url_context for source in plan.sources):
        return "an address that Gemini opens while it answers cannot be cached"
    return None


def _choose_explicit(plan: Plan, calls: Sequence[PlannedCall], seconds: int) -> CacheChoice:
    is_2_5 = plan.target.model.removeprefix("models/").startswith("gemini-2.5-")
    least = _GEMINI_2_5_MINIMUM if is_2_5 else _HIGHEST_MINIMUM
    paying: dict[int | None, float] = {}
    reasons: list[str] = []
    prompts, plain = 0, 0.0
    for source, count, tokens in _find_long_enough(plan, calls, least, reasons):
        prices = price_cache(plan.target, tokens)
        if prices is None or prices.stored_per_hour is None:
            return _choose_none(f"the price of a cache of {plan.target.model} is unknown")
        price = prices.total(count, seconds)
        if price >= count * prices.sent:
            reasons.append(
                f"for {count} prompts a cache costs {dollars(price)}, and sending the sources with each "
                f"{dollars(count * prices.sent)}"
            )
            continue
        paying[source] = price
        prompts += count
        plain += count * prices.sent
    if not paying:
        return _choose_none(reasons[0])
    cached = "the sources" if None in paying else f"{len(paying)} of {plan.broadcast_over} sources"
    why = (
        f"{cached} in a cache for {seconds} seconds cost about {dollars(sum(paying.values()))}, "
        f"and sent with each of {prompts} prompts {dollars(plain)}"
    )
    return CacheChoice(mode="explicit", why=why, sources=[source for source in paying if source is not None])


def _choose_warm(plan: Plan, calls: Sequence[PlannedCall]) -> CacheChoice:
    least = claude.cache_minimum(plan.target.model) or _HIGHEST_MINIMUM
    reasons: list[str] = []
    warm = plain = 0.0
    # Sources that cannot be cached are sent at the same price either way.
    for _, count, tokens in _find_long_enough(plan, calls, least, reasons):
        prices = price_prefix(plan.target, tokens, for_an_hour=plan.options.cache_ttl == "1h")
        if prices is None:
            return _choose_none(f"the price of caching with {plan.target.model} is unknown")
        warm += prices.total(count, 0.0)
        plain += count * prices.sent
    if not plain:
        return _choose_none(reasons[0])
    if warm >= plain:
        return _choose_none(f"cached, the sources cost {dollars(warm)}, and sent with each prompt {dollars(plain)}")
    return CacheChoice(
        mode="warm",
        why=f"written to the cache by the first prompt and read by the others, the sources cost about {dollars(warm)}, "
        f"and uncached {dollars(plain)}",
    )


def _find_long_enough(
    plan: Plan, calls: Sequence[PlannedCall], least: int, reasons: list[str]
) -> Iterator[tuple[int | None, int, int]]:
    """Yield each source that can be cached, with its calls and tokens; append to `reasons` why others cannot."""
    for source, count in Counter(call.source for call in calls).items():
        if (tokens := _count_tokens(plan, source)) is None:
            reasons.append("the length of the content at an address is unknown")
        elif tokens < least:
            reasons.append(f"caching needs {least:,} tokens, and the prompts share about {tokens:,}")
        else:
            yield source, count, tokens


def _count_tokens(plan: Plan, source: int | None) -> int | None:
    """Estimate how many tokens the calls about that source have in common; None if unknown."""
    indexes = range(len(plan.sources)) if source is None else [source]
    counts = [estimate_tokens(plan.sources[index], plan.contents[index]) for index in indexes]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    options = plan.options
    characters = len(options.system_instruction or "") + (len(canonical(options.tools)) if options.tools else 0)
    return sum(known) + characters // _BYTES_PER_TOKEN["text"]


def _report_refusal(execution: Execution) -> Plan:
    """Return the plan of an execution, with a note in its choice of caching if a cache could not be used."""
    plan, refusals = execution.plan, [use.refusal for use in execution.cache_uses if use.refusal is not None]
    if plan.cache_choice is None or not refusals:
        return plan
    why = f"{plan.cache_choice.why}; the cache could not be used, so the sources were sent: {refusals[0].message}"
    choice = plan.cache_choice.model_copy(update={"why": why})
    return plan.change_caching(choice, request=plan.cache_request)


def _choose_none(why: str) -> CacheChoice:
    return CacheChoice(mode="none", why=why)
