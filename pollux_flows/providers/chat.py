"""OpenAI-compatible chat completions, the protocol of OpenRouter and local servers."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from pollux_flows.providers.base import (
    Call,
    ItemReader,
    UpstreamError,
    as_object,
    as_text,
    call_id,
    counts,
    read_body,
    reader,
    text_in,
)
from pollux_flows.result import Answer, Billing, FinishReason, ToolCall
from pollux_flows.schemas import dialects

if TYPE_CHECKING:
    import httpx2

_FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "max_tokens",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "blocked",
}

_NO_CALL_COSTS: Final = 1e6  # dollars: such a cost (or NaN) counts as not reported


async def complete(client: httpx2.AsyncClient, body: dict[str, Any]) -> Answer:
    response = await client.post("chat/completions", json=body)
    if not response.is_success:
        raise UpstreamError(response.status_code, json_or_text(response), headers=response.headers)
    try:
        return await read_body(read_answer, response.content)
    except UpstreamError as error:
        error.headers = response.headers  # an error under HTTP 200 may also have a Retry-After
        raise


def body(call: Call, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields that every server of this protocol knows; None for unset ones."""
    options = call.options
    system = options.system_instruction
    return {
        "model": call.model,
        "messages": [
            *([{"role": "system", "content": system}] if system else []),
            *turns,
        ],
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_tokens,
        "response_format": _response_format(options.response_json_schema()),
    }


def _response_format(answer_schema: dict[str, Any] | None) -> dict[str, Any] | None:
    if answer_schema is None:
        return None
    # Servers enforce OpenAI's dialect in part. A schema that it cannot express is sent unchanged.
    wire = dialects.for_openai(answer_schema)
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wire.schema, "strict": wire.strict}}


@reader
def read_answer(response: Any) -> Answer:
    """Read the answer in a completion's JSON."""
    choices = response.get("choices") if isinstance(response, dict) else None
    if not isinstance(choices, list) or not choices or response.get("error"):
        raise UpstreamError.found_in(response)
    choice = choices[0]
    if choice.get("error") or choice.get("finish_reason") == "error":
        error = choice.get("error") or {"message": "the upstream provider failed"}
        raise UpstreamError.found_in({"error": error, "usage": response.get("usage")})
    message = choice["message"]
    reason = as_text(choice.get("finish_reason"))
    refusal = as_text(message.get("refusal")) or None
    items = ItemReader()
    artifacts = {
        name: items.read_each(message.get(name), _read_object) for name in ("annotations", "reasoning_details")
    }
    answer = Answer(
        text=_text(items, message.get("content")),
        finish_reason="blocked" if refusal else None if reason is None else _FINISH_REASONS.get(reason, "other"),
        raw_finish_reason=as_text(choice.get("native_finish_reason")) or reason,
        usage=_usage(response.get("usage")),
        billing=_billing(response.get("usage")),
        # OpenRouter and newer servers send `reasoning`, llama.cpp, LM Studio and older ones `reasoning_content`.
        reasoning=as_text(message.get("reasoning")) or as_text(message.get("reasoning_content")) or None,
        tool_calls=items.read_each(message.get("tool_calls") or None, _tool_call),
        response_id=as_text(response.get("id")),
        model=as_text(response.get("model")),
        note=refusal,
        artifacts={name: found for name, found in artifacts.items() if found},
    )
    return items.finish(answer, response)


def _tool_call(index: int, call: dict[str, Any]) -> ToolCall:
    arguments = call["function"].get("arguments") or "{}"
    return ToolCall(
        id=call_id(call.get("id"), index),
        name=call["function"]["name"],
        # Some servers send the object itself instead of its text.
        arguments=arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
    )


def _text(items: ItemReader, content: Any) -> str:
    return content if isinstance(content, str) else "".join(items.read_each(content, _read_piece))


def _read_piece(_: int, piece: dict[str, Any]) -> str:
    return text_in(piece, "text") if piece.get("type") == "text" and piece.get("text") else ""


def _read_object(_: int, item: Any) -> dict[str, Any]:
    return {**item}  # raises a TypeError for any other value


def _usage(usage: Any) -> dict[str, int]:
    """Read the token counts. Prompt tokens include cached ones, and completion tokens reasoning, as in our usage."""
    usage = as_object(usage)
    read = as_object(usage.get("prompt_tokens_details"))
    written = as_object(usage.get("completion_tokens_details"))
    return counts(
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        total_tokens=usage.get("total_tokens"),
        reasoning_tokens=written.get("reasoning_tokens", usage.get("reasoning_tokens")),
        cached_tokens=read.get("cached_tokens"),
        cache_write_tokens=read.get("cache_write_tokens"),
    )


def _billing(usage: Any) -> Billing:
    """Read OpenRouter's reported cost, with the upstream's cost if the call used the caller's own key there."""
    usage = as_object(usage)
    charged = [usage.get("cost")]
    if usage.get("is_byok"):
        charged.append(as_object(usage.get("cost_details")).get("upstream_inference_cost"))
    known = all(type(usd) in {int, float} and 0 <= usd < _NO_CALL_COSTS for usd in charged)
    return Billing(cost_usd=round(math.fsum(charged), 12) if known else None)


def json_or_text(response: httpx2.Response) -> Any:
    """Return the body of an error response, as JSON if it is valid JSON, otherwise as text."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return response.text
