"""Calls to Anthropic's Messages API: connect, build the request, send it and read the answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from pollux_flows import claude
from pollux_flows.base_url import OWN_ADDRESSES
from pollux_flows.config import Config
from pollux_flows.errors import ConfigurationError
from pollux_flows.options import Options
from pollux_flows.providers import http
from pollux_flows.providers.anthropic.inputs import make_provider_state, messages
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
from pollux_flows.result import Answer, Billing, FinishReason, ToolCall
from pollux_flows.schemas import dialects

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

_FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "max_tokens",
    "model_context_window_exceeded": "max_tokens",
    "refusal": "blocked",
}
STATUSES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The equivalent HTTP statuses of errors under HTTP 200, and in the rows of a batch."""
_MOST_BREAKPOINTS: Final = 4
# Other blocks cannot have a breakpoint.
_MARKABLE: Final = {"text", "image", "document", "tool_use", "tool_result"}
_ANSWER_TOOL: Final = "give_structured_answer"
_ROOM_FOR_THE_ANSWER: Final = 4096


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[AsyncAnthropic]:
    from anthropic import AsyncAnthropic  # costs 0.6 s, needed only when a call is made

    async with http.sdk_client(config, OWN_ADDRESSES["anthropic"]) as transport:
        # Retries are ours, as the SDK's would wait for a Retry-After of any length while our slot is occupied.
        client = AsyncAnthropic(
            api_key=http.key(config),
            base_url=http.address(config, OWN_ADDRESSES["anthropic"]),
            max_retries=0,
            timeout=transport.timeout,
            http_client=transport,
        )
        client.auth_token = None  # the key is the only credential, whatever the environment holds
        if not config.may_use_environment:  # the SDK has read the environment nevertheless
            client._custom_headers = {}  # noqa: SLF001 (ANTHROPIC_CUSTOM_HEADERS: no argument switches it off)
        yield client


async def generate(client: AsyncAnthropic, call: Call) -> Answer:
    import httpx2

    # `post` sends the body and returns the JSON unchanged, so that batch rows can be read by the same code.
    response = await client.post("/v1/messages", body=request(call), cast_to=httpx2.Response)
    return await read_body(read_answer, response.content)


def request(call: Call) -> dict[str, Any]:
    """Build the request's body."""
    options = call.options
    raw = (options.provider_options or {}).get("anthropic", {})
    tools, tool_choice = _tools(call, raw)
    thinking = _thinking(call.model, options)
    body: dict[str, Any] = {
        "model": call.model,
        "max_tokens": _max_tokens(call.model, options),
        "messages": messages(call, thinks=(thinking or {}).get("type") == "enabled"),
        "system": options.system_instruction or None,
        "thinking": thinking,
        "output_config": _output_config(call.model, options),
        "tools": tools,
        "tool_choice": tool_choice,
    }
    if call.implicit_caching and "cache_control" not in raw:
        _mark_prefix(body, call, raw)
    return merge_raw_options({name: value for name, value in body.items() if value is not None}, raw)


@reader
def read_answer(message: Any) -> Answer:
    """Read the answer in a message's JSON."""
    if isinstance(message, dict) and message.get("type") == "error":
        error = as_object(message.get("error"))
        raise UpstreamError(STATUSES.get(str(error.get("type")), 500), message)
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        raise UpstreamError.found_in(message)
    items = ItemReader()
    read = items.read_each(message["content"], _read_block)
    blocks = [block for block, _ in read]
    reason = as_text(message.get("stop_reason"))
    texts = [text for block, text in read if block.get("type") == "text" and isinstance(text, str)]
    thoughts = [text for block, text in read if block.get("type") == "thinking" and isinstance(text, str) and text]
    calls = [call for _, call in read if isinstance(call, ToolCall)]
    finish_reason = None if reason is None else _FINISH_REASONS.get(reason, "other")
    answered_in_a_call = bool(calls) and calls[0].name == _ANSWER_TOOL
    if answered_in_a_call:
        texts, calls, finish_reason = [calls[0].arguments], [], "stop" if reason == "tool_use" else finish_reason
    details = as_object(message.get("stop_details"))
    known = {"text", "thinking", "redacted_thinking", "tool_use"}
    unknown = [block for block in blocks if block.get("type") not in known]
    answer = Answer(
        text="\n\n".join(texts),
        finish_reason=finish_reason,
        raw_finish_reason=reason,
        usage=_usage(message.get("usage")),
        billing=_billing(message.get("usage"), blocks),
        reasoning="\n\n".join(thoughts) or None,
        tool_calls=calls,
        response_id=as_text(message.get("id")),
        model=as_text(message.get("model")),
        note=as_text(details.get("explanation")) or as_text(details.get("category")),
        artifacts={"content_blocks": unknown} if unknown else {},
        provider_state=None if answered_in_a_call else make_provider_state(blocks),
    )
    return items.finish(answer, message)


def _read_block(index: int, block: dict[str, Any]) -> tuple[dict[str, Any], str | ToolCall | None]:
    """Return a content block with its text or tool call. Raises if it cannot be read."""
    match block.get("type"):
        case "text":
            return block, text_in(block, "text")
        case "thinking":
            return block, text_in(block, "thinking")
        case "tool_use":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            call = ToolCall(id=call_id(block.get("id"), index), name=block["name"], arguments=arguments)
            return {**block, "id": call.id}, call
        case _:
            return block, None


def _mark_prefix(body: dict[str, Any], call: Call, raw: dict[str, Any]) -> None:
    """Set the cache breakpoint in a request's body, unless the caller's own fields use all breakpoints.

    Anthropic caches the prefix before it, in the order tools, system, messages. A single call has it at its end, so
    that the next turn of the conversation reads all of it. Calls with a shared prefix have it before the prompt, so
    that the prefix that one of them writes is read by the others.
    """
    if _count_breakpoints(raw) >= _MOST_BREAKPOINTS:
        return
    control = {"type": "ephemeral", "ttl": "1h"} if call.options.cache_ttl == "1h" else {"type": "ephemeral"}
    if not (call.is_one_of_many and _mark_before_prompt(body, call, control)):
        body["cache_control"] = control


def _mark_before_prompt(body: dict[str, Any], call: Call, control: dict[str, str]) -> bool:
    """Mark the last block before the prompt, or the system instruction or the last tool. False if there is none."""
    blocks = [(message, index) for message in body["messages"] for index in range(len(message["content"]))]
    if call.prompt is not None:
        blocks.pop()
    while blocks:
        message, index = blocks.pop()
        block = message["content"][index]
        if block.get("type") in _MARKABLE:
            # Prior turns share their blocks with other requests.
            marked = {**block, "cache_control": control}
            message["content"] = [*message["content"][:index], marked, *message["content"][index + 1 :]]
            return True
    if body["system"]:
        body["system"] = [{"type": "text", "text": body["system"], "cache_control": control}]
        return True
    if body["tools"]:
        *others, last = body["tools"]
        body["tools"] = [*others, {**last, "cache_control": control}]
        return True
    return False


def _count_breakpoints(value: Any) -> int:
    if isinstance(value, dict):
        return ("cache_control" in value) + sum(map(_count_breakpoints, value.values()))
    return sum(map(_count_breakpoints, value)) if isinstance(value, list) else 0


def _usage(usage: Any) -> dict[str, int]:
    """Read the token counts. Anthropic's input excludes cached tokens and cache writes, our usage includes both."""
    usage = as_object(usage)
    found = counts(
        plain=usage.get("input_tokens"),
        output_tokens=usage.get("output_tokens"),
        reasoning_tokens=as_object(usage.get("output_tokens_details")).get("thinking_tokens"),
        cached_tokens=usage.get("cache_read_input_tokens"),
        cache_write_tokens=usage.get("cache_creation_input_tokens"),
    )
    if (plain := found.pop("plain", None)) is not None:
        found["input_tokens"] = plain + found.get("cached_tokens", 0) + found.get("cache_write_tokens", 0)
        if "output_tokens" in found:
            found["total_tokens"] = found["input_tokens"] + found["output_tokens"]
    return found


def _billing(usage: Any, blocks: list[dict[str, Any]]) -> Billing:
    usage = as_object(usage)
    return Billing(
        service_tier=as_text(usage.get("service_tier")),
        speed=as_text(usage.get("speed")),
        region=as_text(usage.get("inference_geo")),
        long_cache_write_tokens=as_count(as_object(usage.get("cache_creation")).get("ephemeral_1h_input_tokens")),
        server_tools=sum(block.get("type") == "server_tool_use" for block in blocks),
    )


def _max_tokens(model: str, options: Options) -> int:
    """Return the required limit: the caller's, or 16,384, or the model's, with room for the answer beside thinking."""
    if options.max_tokens is not None:
        return options.max_tokens
    usual = 8192 if model.startswith("claude-3-5") else 4096 if model.startswith("claude-3-") else 16384
    wanted = max(usual, (claude.thinking_budget(model, options) or 0) + _ROOM_FOR_THE_ANSWER)
    return min(wanted, claude.max_output(model) or wanted)


def _thinking(model: str, options: Options) -> dict[str, Any] | None:
    budget = claude.thinking_budget(model, options)
    if budget == 0:
        return {"type": "disabled"}
    # Without `display`, newer models bill for thinking but do not return it.
    shown = {} if options.reasoning_effort is None else {"display": "summarized"}
    if budget is not None:
        return {"type": "enabled", "budget_tokens": budget, **shown}
    return {"type": "adaptive", **shown} if shown else None


def _answer_tool(options: Options) -> dict[str, Any] | None:
    """Return a tool whose forced call carries an answer that `output_config` cannot express (maps, recursion)."""
    answer_schema = options.response_json_schema()
    if answer_schema is None or dialects.for_anthropic(answer_schema).strict:
        return None
    answer_schema = dialects.resolve_root(answer_schema)
    thinks = options.reasoning_effort or options.reasoning_budget_tokens
    if options.tools or thinks or answer_schema.get("type") != "object":
        raise ConfigurationError(
            "Anthropic does not support this response_schema (because of a free-form map, recursion or similar).",
            hint="Use named fields only; or make its root an object, and leave tools and reasoning out.",
        )
    return {"name": _ANSWER_TOOL, "description": "Give the answer.", "input_schema": answer_schema}


def _tools(call: Call, raw: dict[str, Any]) -> tuple[list[dict[str, Any]] | None, dict[str, str] | None]:
    options = call.options
    if answer_tool := _answer_tool(options):
        return [answer_tool, *_prior_tools(call)], _tool_choice({"name": _ANSWER_TOOL})
    if options.tools:
        return [_tool(tool) for tool in options.tools], _tool_choice(options.tool_choice)
    # A request with tool calls and results must declare the tools, even if none is to be called now.
    before = [] if "tools" in raw else _prior_tools(call)
    return before or None, {"type": "none"} if before else None


def _prior_tools(call: Call) -> list[dict[str, Any]]:
    return [_tool({"name": name}) for name in call.tools_called]


def _output_config(model: str, options: Options) -> dict[str, Any] | None:
    config: dict[str, Any] = {}
    if options.reasoning_effort is not None and claude.takes_effort(model):
        config["effort"] = options.reasoning_effort
    if (answer_schema := options.response_json_schema()) is not None:
        wire = dialects.for_anthropic(answer_schema)
        if wire.strict:  # otherwise `_answer_tool` is used
            config["format"] = {"type": "json_schema", "schema": wire.schema}
    return config or None


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    described = {"description": tool["description"]} if tool.get("description") else {}
    return {
        "name": tool["name"],
        **described,
        "input_schema": tool.get("parameters") or {"type": "object", "properties": {}},
    }


def _tool_choice(choice: str | dict[str, str] | None) -> dict[str, str] | None:
    if isinstance(choice, dict):
        return {"type": "tool", "name": choice["name"]}
    return None if choice is None else {"type": {"required": "any"}.get(choice, choice)}
