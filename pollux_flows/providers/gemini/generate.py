"""Calls to Gemini: build the request, send it and read the answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from pollux_flows.errors import ConfigurationError
from pollux_flows.options import Options
from pollux_flows.providers.base import (
    Call,
    ItemReader,
    UpstreamError,
    as_count,
    as_object,
    as_text,
    call_id,
    counts,
    merge_raw_options,
    read_body,
    reader,
    text_in,
)
from pollux_flows.providers.gemini import client as gemini
from pollux_flows.providers.gemini.client import Connection
from pollux_flows.providers.gemini.inputs import contents, make_provider_state
from pollux_flows.result import Answer, Billing, FinishReason, ToolCall
from pollux_flows.schemas import dialects

if TYPE_CHECKING:
    from google.genai import types

connect: Final = gemini.connect

_BLOCKED: Final = {
    "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR",
    "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION",
}  # fmt: skip
# Gemini 2 takes a thinking budget in tokens, Gemini 3 a level; these are Google's own equivalents.
_BUDGETS: Final = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576}
_MODES: Final = {"auto": "AUTO", "required": "ANY", "none": "NONE"}


async def generate(client: Connection, call: Call) -> Answer:
    response = await client.aio.models.generate_content(**request(call))
    received = response.sdk_http_response
    answer = await read_body(read_answer, (received and received.body) or "null")
    # The tier that answered, which may differ from the requested one, is only in a header.
    if tier := ((received and received.headers) or {}).get("x-gemini-service-tier"):
        billing = answer.billing.model_copy(update={"service_tier": tier.lower()})
        answer = answer.model_copy(update={"billing": billing})
    return answer


def request(call: Call) -> dict[str, Any]:
    """Build the arguments of `generate_content`."""
    from google.genai import types

    options = call.options
    fields: dict[str, Any] = {
        "system_instruction": options.system_instruction or None,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_output_tokens": options.max_tokens,
        "thinking_config": _thinking(call.model, options),
        "tools": _all_tools(call),
        "tool_config": _tool_config(options.tool_choice),
        "cached_content": options.cache_handle and options.cache_handle.name,
        **_answer_schema(options.response_json_schema()),
    }
    settings = {name: value for name, value in fields.items() if value is not None}
    settings = merge_raw_options(settings, _in_snake_case((options.provider_options or {}).get("gemini", {})))
    try:
        config = types.GenerateContentConfig(
            **settings,
            # One call is one request: no automatic continuation, no automatic function calls.
            automatic_continuation=False,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            # The raw JSON, as the SDK's own parser drops unknown fields, and errors under HTTP 200.
            should_return_http_response=True,
        )
    except (ValidationError, TypeError) as error:
        raise ConfigurationError(
            f"provider_options['gemini'] does not fit Gemini's GenerateContentConfig: {_first_problem(error)}",
            hint="Write its fields, such as top_k or safety_settings.",
        ) from None
    return {"model": call.model, "contents": contents(call), "config": config}


def _in_snake_case(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the raw options under the names of the SDK's fields, as they may have the API's spelling."""
    from google.genai import types

    names = {field.alias: name for name, field in types.GenerateContentConfig.model_fields.items()}
    return {names.get(name, name): value for name, value in raw.items()}


def _all_tools(call: Call) -> list[types.Tool] | None:
    """Return the caller's tools, and the one that opens addresses if a source asks for it."""
    from google.genai import types

    opens = any(material.source.gemini_url_context for material in call.all_materials)
    # Functions last, as the SDK sends them, so that rows of a batch, which bypass the SDK, are equal.
    return [
        *([types.Tool(url_context=types.UrlContext())] if opens else []),
        *(tools(call.options.tools) or []),
    ] or None


def tools(declared: list[dict[str, Any]] | None) -> list[types.Tool] | None:
    """Convert our tools to Gemini's: one Tool with all the functions."""
    from google.genai import types

    if not declared:
        return None
    functions = [
        types.FunctionDeclaration(
            name=tool["name"],
            description=tool.get("description"),
            parameters_json_schema=dialects.gemini_tool_parameters(tool["parameters"])
            if tool.get("parameters")
            else None,
        )
        for tool in declared
    ]
    return [types.Tool(function_declarations=functions)]


@reader
def read_answer(response: Any) -> Answer:
    """Read the answer in a response's JSON."""
    candidates = response.get("candidates") or []
    feedback = as_object(response.get("promptFeedback"))
    blocked = as_text(feedback.get("blockReason"))
    if response.get("error") or not (candidates or blocked):
        raise UpstreamError.found_in(response)
    candidate = candidates[0] if candidates else {}
    items = ItemReader()
    read = items.read_each((candidate.get("content") or {}).get("parts"), _read_part)
    parts = [part for part, _ in read]
    texts = [(part["text"], part.get("thought")) for part in parts if part.get("text")]
    calls = [call for _, call in read if call is not None]
    reason = blocked or as_text(candidate.get("finishReason"))
    answer = Answer(
        text="".join(text for text, thought in texts if not thought),
        finish_reason="blocked" if blocked else _finish_reason(reason, calls),
        raw_finish_reason=reason,
        usage=_usage(response.get("usageMetadata")),
        billing=_billing(response.get("usageMetadata"), candidate),
        reasoning="\n\n".join(text for text, thought in texts if thought) or None,
        tool_calls=calls,
        response_id=as_text(response.get("responseId")),
        model=as_text(response.get("modelVersion")),
        note=as_text(candidate.get("finishMessage")) or as_text(feedback.get("blockReasonMessage")),
        provider_state=make_provider_state(parts),
    )
    return items.finish(answer, response)


def _read_part(index: int, part: dict[str, Any]) -> tuple[dict[str, Any], ToolCall | None]:
    """Return a part with its tool call, if it is one. Raises if it cannot be read."""
    if part.get("text"):
        text_in(part, "text")
    if not (called := part.get("functionCall")):
        return part, None
    arguments = json.dumps(called.get("args") or {}, ensure_ascii=False)
    return part, ToolCall(id=call_id(called.get("id"), index), name=called["name"], arguments=arguments)


def _finish_reason(raw: str | None, calls: list[ToolCall]) -> FinishReason | None:
    if raw is None or raw == "FINISH_REASON_UNSPECIFIED":
        return None
    if raw == "STOP":
        return "tool_calls" if calls else "stop"
    return "max_tokens" if raw == "MAX_TOKENS" else "blocked" if raw in _BLOCKED else "other"


def _usage(usage: Any) -> dict[str, int]:
    """Read the token counts. Gemini's output excludes thoughts and its prompt tool results; our usage includes them."""
    usage = as_object(usage)
    found = counts(
        prompt=usage.get("promptTokenCount"),
        tool_use=usage.get("toolUsePromptTokenCount"),
        candidates=usage.get("candidatesTokenCount"),
        total_tokens=usage.get("totalTokenCount"),
        reasoning_tokens=usage.get("thoughtsTokenCount"),
        cached_tokens=usage.get("cachedContentTokenCount"),
    )
    prompt, tool_use, output = found.pop("prompt", None), found.pop("tool_use", 0), found.pop("candidates", None)
    if prompt is not None:
        # The results of a tool (a search, an opened page) are input as well.
        found["input_tokens"] = prompt + tool_use
    if prompt is not None or output is not None:
        # A blocked prompt, or a cut thought, has no candidates to count: its output is empty.
        found["output_tokens"] = (output or 0) + found.get("reasoning_tokens", 0)
    return found


def _billing(usage: Any, candidate: dict[str, Any]) -> Billing:
    usage, grounding = as_object(usage), as_object(candidate.get("groundingMetadata"))
    searched = grounding.get("webSearchQueries") or grounding.get("imageSearchQueries")
    opened = as_object(candidate.get("urlContextMetadata")).get("urlMetadata")
    return Billing(
        audio_tokens=_audio_tokens(usage.get("promptTokensDetails")),
        cached_audio_tokens=_audio_tokens(usage.get("cacheTokensDetails")),
        # An opened page is grounding as well, but costs only its tokens.
        server_tools=int(bool(searched or (grounding and not opened))),
    )


def _audio_tokens(details: Any) -> int:
    rows = [as_object(row) for row in details] if isinstance(details, list) else []
    return sum(as_count(row.get("tokenCount")) for row in rows if row.get("modality") == "AUDIO")


def _thinking(model: str, options: Options) -> types.ThinkingConfig | None:
    from google.genai import types

    effort, budget = options.reasoning_effort, options.reasoning_budget_tokens
    if effort is not None and not model.removeprefix("models/").startswith("gemini-2"):
        return types.ThinkingConfig(include_thoughts=True, thinking_level=types.ThinkingLevel(effort.upper()))
    if effort is not None:
        budget = _BUDGETS[effort]
    return None if budget is None else types.ThinkingConfig(include_thoughts=budget > 0, thinking_budget=budget)


def _answer_schema(answer_schema: dict[str, Any] | None) -> dict[str, Any]:
    if answer_schema is None:
        return {}
    return {
        "response_mime_type": "application/json",
        "response_json_schema": dialects.for_gemini(answer_schema).schema,
    }


def _tool_config(choice: str | dict[str, str] | None) -> types.ToolConfig | None:
    from google.genai import types

    if choice is None:
        return None
    named = [choice["name"]] if isinstance(choice, dict) else None
    mode = "ANY" if isinstance(choice, dict) else _MODES[choice]
    return types.ToolConfig(
        function_calling_config=types.FunctionCallingConfig(
            mode=types.FunctionCallingConfigMode(mode), allowed_function_names=named
        )
    )


def _first_problem(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    problem = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
