"""Extract: make one envelope from the outcomes of the calls, in the order of the prompts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from pollux_flows.document import CLEAN_INPUT
from pollux_flows.options import Options
from pollux_flows.pipeline.conversation import make_state
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.prefix import caches_prefix, prefix_warnings
from pollux_flows.pipeline.savings import UsedCache, measure_savings, run_cost
from pollux_flows.pipeline.structured import LONGEST_S, TOOLS_S, Reading, read_answers, shape_warning, tool_arguments
from pollux_flows.plain import replace_surrogates
from pollux_flows.pricing import Cost, price_table, total
from pollux_flows.result import STATE, UNREADABLE, Answer, CallFailure, FinishReason, Outcome, ResultEnvelope, Status

# Finish reasons of incomplete answers.
_CUT: Final[dict[FinishReason | None, str]] = {
    "max_tokens": "was cut at the token limit; raise max_tokens",
    "other": "may be incomplete: the provider ended it in an unusual way",
}


def extract_envelope(
    plan: Plan,
    outcomes: Sequence[Outcome],
    *,
    duration_s: float,
    limit_s: float = LONGEST_S,
    readings: Sequence[Reading] | None = None,
    caches: Sequence[UsedCache] = (),
    batch: bool = False,
) -> ResultEnvelope:
    """Return one envelope with all outcomes of a plan, in the order of its calls. Blocks; call it off the event loop.

    With a response schema, `structured` holds instances of the caller's model; an answer that takes longer than
    `limit_s` to parse has none. `readings` are passed if the answers were parsed before. `caches` are the registered
    caches that the calls used (`Execution.used_caches`), and `batch` says that the answers have batch prices.
    """
    # In a broadcast, calls are numbered across all sources; in an envelope, the prompts of its source start at 0.
    outcomes = [outcome.at(index) for index, outcome in enumerate(outcomes)]
    answers = [outcome.answer for outcome in outcomes]
    failures = [
        (problem := outcome.problem) and problem.model_copy(update={"index": index})
        for index, outcome in enumerate(outcomes)
    ]
    if readings is None:
        readings = read_answers(plan.options, answers, limit_s=limit_s)
    warnings = [
        shape_warning(index, reading.problem) for index, reading in enumerate(readings or []) if reading.problem
    ]
    warnings += [warning for outcome in outcomes for warning in _warnings(outcome)]
    warnings += prefix_warnings(plan, outcomes)
    status = _status(answers, failures)
    usage = _usage(answers)
    has_handle = _has_handle(plan, caches)
    cost = run_cost(plan.target, outcomes, caches)
    envelope = {
        "status": status,
        "answers": ["" if answer is None else answer.text for answer in answers],
        "confidence": 0.9 if status == "ok" else 0.5,
        "usage": usage,
        "metrics": {
            "duration_s": round(duration_s, 3),
            "n_calls": len(outcomes),
            "finish_reasons": [answer and answer.finish_reason for answer in answers],
            **_cache_metrics(plan, outcomes, caches, cost, batch=batch),
            **_cost_metrics(outcomes, cost),
        },
        "diagnostics": {
            "raw_responses": [{} if answer is None else _raw(answer) for answer in answers],
            "calls": [
                _describe_call(outcome) | _cache_use(outcome, has_handle) | _misfit(reading)
                for outcome, reading in zip(outcomes, readings or [Reading()] * len(outcomes), strict=True)
            ],
            "warnings": replace_surrogates(warnings),  # they may quote a caller's validator
            **({} if (choice := plan.cache_choice) is None else {"cache": {"mode": choice.mode, "why": choice.why}}),
        },
        "structured": None if readings is None else [reading.typed for reading in readings],
        "reasoning": _if_any([answer and answer.reasoning for answer in answers]),
        "tool_calls": _if_any([_tool_calls(plan.options, answer) for answer in answers]),
        "errors": _if_any(failures),
        STATE: _state(plan, outcomes),
    }
    return ResultEnvelope.model_validate(envelope, context=CLEAN_INPUT)


def extract_each(
    plan: Plan,
    outcomes: Sequence[Outcome],
    *,
    duration_s: float,
    limit_s: float = LONGEST_S,
    caches: Sequence[UsedCache] = (),
) -> list[ResultEnvelope]:
    """Return one envelope per source, in order, from the outcomes of a plan with `each_source`."""
    by_call = {call.index: outcome for call, outcome in zip(plan.calls, outcomes, strict=True)}
    return [
        extract_envelope(
            part := plan.about(source),
            [by_call[call.index] for call in part.calls],
            duration_s=duration_s,
            limit_s=limit_s,
            caches=[cache for cache in caches if cache.source == source],
        )
        for source in range(len(plan.sources))
    ]


def _state(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """Return the conversation state after a single call; None for several calls."""
    if len(plan.calls) != 1:
        return None
    sources, contents = plan.sources[: plan.own_sources], plan.contents[: plan.own_sources]
    asked = (plan.calls[0].prompt, sources, contents)
    return make_state(plan.history.turns, asked, plan.options, plan.target, outcomes[0])


def _status(answers: Sequence[Answer | None], failures: Sequence[CallFailure | None]) -> Status:
    complete = [
        failure is None and answer is not None and answer.finish_reason not in _CUT
        for answer, failure in zip(answers, failures, strict=True)
    ]
    if all(complete):
        return "ok"
    return "error" if failures and all(failures) else "partial"


def _warnings(outcome: Outcome) -> list[str]:
    warnings = []
    if outcome.answer is not None and (why := _CUT.get(outcome.answer.finish_reason)):
        raw = outcome.answer.raw_finish_reason
        warnings.append(f"The answer to prompts[{outcome.index}] {why} (finish reason: {raw}).")
    if outcome.answer is not None and (unread := outcome.answer.artifacts.get(UNREADABLE)):
        warnings.append(
            f"The answer to prompts[{outcome.index}] has {len(unread)} part(s) that cannot be read. They "
            f"are in diagnostics.raw_responses[{outcome.index}].artifacts.{UNREADABLE}."
        )
    if outcome.spilled is not None:
        warnings.append(
            f"The answer to prompts[{outcome.index}] could not be saved in the state, and was written to "
            f"{outcome.spilled} for the next run on that machine: {outcome.save_error}"
        )
    elif outcome.save_error is not None:
        warnings.append(
            f"The answer to prompts[{outcome.index}] could not be saved, so another run would pay for it again: "
            f"{outcome.save_error}"
        )
    if outcome.unknown_attempts and outcome.answer is not None:
        warnings.append(
            f"prompts[{outcome.index}] was asked again after {outcome.unknown_attempts} attempt(s) whose outcome is "
            "unknown: the provider may have billed those too."
        )
    return warnings


def _usage(answers: Sequence[Answer | None]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for answer in answers:
        total.update({} if answer is None else answer.usage)
    return dict(total)


def _cache_metrics(
    plan: Plan, outcomes: Sequence[Outcome], caches: Sequence[UsedCache], cost: Cost, *, batch: bool
) -> dict[str, Any]:
    """Return the metrics of caching. A call is a hit if the provider reported cached tokens for it."""
    handle, usage = _has_handle(plan, caches), _usage([outcome.answer for outcome in outcomes])
    hits = sum(_has_read_cache(outcome) for outcome in outcomes)
    is_cached = handle or hits > 0 or usage.get("cache_write_tokens", 0) > 0
    savings = is_cached and measure_savings(
        plan.target, outcomes, caches, spent=cost, has_handle=plan.options.cache is not None, batch=batch
    )
    return {
        "cache_used": handle and 0 < hits == len(outcomes),
        "cache_mode": "persistent" if handle else "implicit" if caches_prefix(plan) else "none",
        "cache_hit": hits > 0,
        "n_cache_hits": hits,
        **{name: usage[name] for name in ("cached_tokens", "cache_write_tokens") if name in usage},
        **({"caching": savings} if savings else {}),
    }


def _has_handle(plan: Plan, caches: Sequence[UsedCache]) -> bool:
    """Return whether the calls used a cache handle, of the caller or of the run."""
    return plan.options.cache is not None or plan.cache_request is not None or bool(caches)


def _cache_use(outcome: Outcome, has_handle: bool) -> dict[str, bool]:
    """Return whether a call read from a cache, if the provider reports that or the call used a handle."""
    reported = outcome.answer is not None and "cached_tokens" in outcome.answer.usage
    return {"cache_used": _has_read_cache(outcome)} if reported or has_handle else {}


def _has_read_cache(outcome: Outcome) -> bool:
    return outcome.answer is not None and outcome.answer.usage.get("cached_tokens", 0) > 0


def _cost_metrics(outcomes: Sequence[Outcome], cost: Cost) -> dict[str, Any]:
    """Return the cost of the answers and created caches, and the amount that reused answers saved.

    One unknown price makes a sum unknown.
    """
    reused = [outcome for outcome in outcomes if outcome.answer is not None and outcome.reused]
    return {
        "cost_usd": cost.usd,
        **({} if cost.unknown is None else {"cost_unknown": cost.unknown}),
        "n_reused": len(reused),
        "saved_usd": total(Cost(outcome.cost_usd, outcome.cost_unknown) for outcome in reused).usd,
        "prices": price_table(),
    }


def _raw(answer: Answer) -> dict[str, Any]:
    return answer.model_dump(mode="json", exclude_none=True, exclude_defaults=True) | {
        "text": answer.text,
        "usage": answer.usage,
    }


def _describe_call(outcome: Outcome) -> dict[str, Any]:
    """Return the diagnostics of a call: its attempts, times, cost and save error."""
    # Only what is needed, as Prefect visits each name and value, which takes a third of the time of a rerun. A reused
    # answer took no attempts and no time in this run.
    empty = {
        name
        for name in ("unknown_attempts", "waited_s", "cost_unknown", "save_error", "spilled")
        if not getattr(outcome, name)
    }
    of_other_run = {"attempts", "duration_s", "waited_s"} if outcome.reused else set()
    excluded = {"answer", "failure", "index", "identity", "paid_before_usd", "counted_in"} | empty | of_other_run
    return outcome.model_dump(mode="json", exclude=excluded)


def _misfit(reading: Reading) -> dict[str, str]:
    """Return the reason why an answer does not have the requested shape, if it does not."""
    return {"misfit": reading.problem} if reading.problem else {}


def _tool_calls(options: Options, answer: Answer | None) -> list[dict[str, str]]:
    tools, deadline = options.tools or [], time.monotonic() + TOOLS_S
    return [
        {
            "id": call.id,
            "name": call.name,
            "arguments": tool_arguments(tools, call.name, call.arguments, deadline=deadline),
        }
        for call in ([] if answer is None else answer.tool_calls)
    ]


def _if_any(values: list[Any]) -> list[Any] | None:
    return values if any(values) else None
