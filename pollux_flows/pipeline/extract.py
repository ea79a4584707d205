"""Extract: from what the calls brought back to one envelope, in prompt order."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from pollux_flows.capabilities import implicit_caching
from pollux_flows.options import Options
from pollux_flows.pipeline.plan import Plan
from pollux_flows.providers.validation import problems, without_invented_nulls
from pollux_flows.result import Answer, CallFailure, Outcome, ResultEnvelope, Status


def extract_envelope(plan: Plan, outcomes: Sequence[Outcome], *, duration_s: float) -> ResultEnvelope:
    """One envelope from all outcomes of a plan, given in the order of its calls."""
    # In a broadcast, calls are numbered through all sources; in its envelope, each source's prompts start at 0.
    outcomes = [outcome.model_copy(update={"index": index}) for index, outcome in enumerate(outcomes)]
    answers = [outcome.answer for outcome in outcomes]
    failures = [_failure(outcome) for outcome in outcomes]
    structured, warnings = _structured(plan.options, answers)
    warnings += [warning for outcome in outcomes for warning in _warnings(outcome)]
    status = _status(answers, failures)
    usage = _usage(answers)
    return ResultEnvelope(
        status=status,
        answers=["" if answer is None else answer.text for answer in answers],
        confidence=0.9 if status == "ok" else 0.5,
        usage=usage,
        metrics={
            "duration_s": round(duration_s, 3),
            "n_calls": len(outcomes),
            "finish_reasons": [answer and answer.finish_reason for answer in answers],
            **_cache_metrics(plan, usage),
        },
        diagnostics={
            "raw_responses": [{} if answer is None else _raw(answer) for answer in answers],
            "calls": [_course(outcome) for outcome in outcomes],
            "warnings": warnings,
        },
        structured=structured,
        reasoning=_if_any([answer and answer.reasoning for answer in answers]),
        tool_calls=_if_any([_tool_calls(answer) for answer in answers]),
        errors=_if_any(failures),
    )


def extract_each(plan: Plan, outcomes: Sequence[Outcome], *, duration_s: float) -> list[ResultEnvelope]:
    """One envelope a source, in source order, from the outcomes of a plan that asks about each by itself."""
    by_call = {call.index: outcome for call, outcome in zip(plan.calls, outcomes, strict=True)}
    parts = [plan.part(source) for source in range(len(plan.sources))]
    return [
        extract_envelope(part, [by_call[call.index] for call in part.calls], duration_s=duration_s) for part in parts
    ]


def typed(envelope: ResultEnvelope, options: Options) -> ResultEnvelope:
    """The same envelope with `structured` as instances of the caller's own model, where there is one."""
    model = options.response_model()
    if model is None or envelope.structured is None:
        return envelope
    instances = [None if value is None else _instance(model, value) for value in envelope.structured]
    return envelope.model_copy(update={"structured": instances})


def _failure(outcome: Outcome) -> CallFailure | None:
    """Why a prompt has no answer. A tool call or a structured answer is one, with or without text."""
    answer = outcome.answer
    if answer is None:
        return outcome.failure and outcome.failure.model_copy(update={"index": outcome.index})
    if answer.finish_reason == "blocked":
        return CallFailure(
            index=outcome.index,
            kind="blocked",
            message=f"The provider blocked this prompt or its answer ({answer.note or answer.raw_finish_reason}).",
            hint="Word the prompt differently; asking the same again is likely to end the same way.",
        )
    if not answer.text.strip() and not answer.tool_calls:
        return CallFailure(
            index=outcome.index,
            kind="empty",
            message=f"The provider answered with nothing (finish reason: {answer.raw_finish_reason or 'not given'}).",
            hint="If thinking took all of max_tokens, raise it."
            if answer.finish_reason == "max_tokens"
            else "Ask again, or word the prompt differently.",
        )
    return None


def _status(answers: Sequence[Answer | None], failures: Sequence[CallFailure | None]) -> Status:
    whole = [
        failure is None and answer is not None and answer.finish_reason != "max_tokens"
        for answer, failure in zip(answers, failures, strict=True)
    ]
    if all(whole):
        return "ok"
    return "error" if failures and all(failures) else "partial"


def _warnings(outcome: Outcome) -> list[str]:
    told = []
    if outcome.answer is not None and outcome.answer.finish_reason == "max_tokens":
        told.append(f"The answer to prompts[{outcome.index}] was cut at the token limit; raise max_tokens.")
    if outcome.unknown_attempts and outcome.answer is not None:
        told.append(
            f"prompts[{outcome.index}] was asked again after {outcome.unknown_attempts} attempt(s) whose outcome is "
            "unknown: the provider may have billed those too."
        )
    return told


def _structured(options: Options, answers: Sequence[Answer | None]) -> tuple[list[Any] | None, list[str]]:
    """The answers as data of the asked-for shape; None, and a warning that says why, for each that has another."""
    schema = options.response_json_schema()
    if schema is None:
        return None, []
    model = options.response_model()
    values: list[Any] = []
    warnings = []
    for index, answer in enumerate(answers):
        value, problem = (
            (None, None) if answer is None or not answer.text.strip() else _parse(answer.text, schema, model)
        )
        values.append(value)
        if problem:
            warnings.append(f"The answer to prompts[{index}] does not fit response_schema: {problem}")
    return values, warnings


_FENCED: Final = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


def _parse(text: str, schema: dict[str, Any], model: type[BaseModel] | None) -> tuple[Any, str | None]:
    try:
        # Where a provider cannot be held to the schema, models like to put their JSON into a Markdown fence.
        fenced = _FENCED.fullmatch(text)
        value = without_invented_nulls(_read_json(fenced.group(1) if fenced else text), schema)
    except ValueError as error:
        return None, f"it is no JSON ({error})."
    except RecursionError:
        return None, "it is nested without end."
    if model is None:
        found = problems(value, schema)
        return (None, "; ".join(found)) if found else (value, None)
    try:
        return _instance(model, value), None
    except ValidationError as error:
        said = [f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors(include_url=False)]
        return None, "; ".join(said)


def _read_json(text: str) -> Any:
    value = json.loads(text)
    # An infinity or half a character can be read, and then be written nowhere.
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


def _instance(model: type[BaseModel], value: Any) -> BaseModel:
    if isinstance(value, model):
        return value
    # As JSON, so that dates, enums and the like are read as the model reads them from JSON.
    return model.model_validate_json(json.dumps(value))


def _usage(answers: Sequence[Answer | None]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for answer in answers:
        total.update({} if answer is None else answer.usage)
    return dict(total)


def _cache_metrics(plan: Plan, usage: dict[str, int]) -> dict[str, Any]:
    """A hit is a hit when the provider counted cached tokens, not when we hoped for them."""
    hit = usage.get("cached_tokens", 0) > 0
    handle = plan.options.cache is not None
    mode = (
        "persistent"
        if handle
        else "implicit"
        if implicit_caching(plan.target.provider, plan.options, len(plan.calls))
        else "none"
    )
    return {"cache_used": handle and hit, "cache_mode": mode, "cache_hit": hit}


def _raw(answer: Answer) -> dict[str, Any]:
    return answer.model_dump(mode="json", exclude_none=True, exclude_defaults=True) | {
        "text": answer.text,
        "usage": answer.usage,
    }


def _course(outcome: Outcome) -> dict[str, Any]:
    return outcome.model_dump(mode="json", exclude={"answer", "failure", "index"})


def _tool_calls(answer: Answer | None) -> list[dict[str, str]]:
    return [] if answer is None else [call.model_dump() for call in answer.tool_calls]


def _if_any(values: list[Any]) -> list[Any] | None:
    return values if any(values) else None
