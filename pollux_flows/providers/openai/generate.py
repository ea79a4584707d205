"""Calls to OpenAI's Responses API: connect, build the request, send it and read the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pollux_flows.base_url import OWN_ADDRESSES
from pollux_flows.capabilities import bills_cache_writes
from pollux_flows.config import Config
from pollux_flows.errors import ConfigurationError
from pollux_flows.options import Options
from pollux_flows.providers import http
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
from pollux_flows.providers.openai.inputs import items, make_provider_state
from pollux_flows.result import Answer, Billing, FinishReason, ToolCall
from pollux_flows.schemas import dialects

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_CUT: Final[dict[str, FinishReason]] = {"max_output_tokens": "max_tokens", "content_filter": "blocked"}
_FORGOTTEN: Final = "previous_response_not_found"
# A failed response carries a code instead of an HTTP status; these are the equivalent statuses.
_FAILED: Final = {"rate_limit_exceeded": 429, "server_error": 500, "vector_store_timeout": 504}


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[AsyncOpenAI]:
    from openai import AsyncOpenAI  # costs 0.3 s, needed only when a call is made

    async with http.sdk_client(config, OWN_ADDRESSES["openai"]) as transport:
        # Retries are ours, as the SDK's would send, and pay for, requests that are not counted.
        client = AsyncOpenAI(
            api_key=http.key(config),
            base_url=http.address(config, OWN_ADDRESSES["openai"]),
            max_retries=0,
            timeout=transport.timeout,
            http_client=transport,
        )
        client.admin_api_key = None  # our calls need no administrator's key
        if not config.may_use_environment:  # the SDK has read the environment nevertheless
            client.organization = client.project = None
            client._custom_headers = {}  # noqa: SLF001 (OPENAI_CUSTOM_HEADERS: no argument switches it off)
        yield client


async def generate(client: AsyncOpenAI, call: Call) -> Answer:
    from openai import APIStatusError

    try:
        return await _respond(client, call)
    except APIStatusError as error:
        if call.response_id is None or not _is_unknown_response(call.response_id, error):
            raise
    # The refusal was not billed. The stored response has expired, or is in another account: send the full history.
    return await _respond(client, replace(call, response_id=None))


async def _respond(client: AsyncOpenAI, call: Call) -> Answer:
    import httpx2

    # `post` sends the body and returns the JSON unchanged, so that batch rows can be read by the same code.
    response = await client.post("/responses", body=request(call), cast_to=httpx2.Response)
    return await read_body(read_answer, response.content)


def _is_unknown_response(response_id: str, error: APIStatusError) -> bool:
    """Return whether the error refuses the response id. Some servers of this protocol send it without a code."""
    return error.code == _FORGOTTEN or (error.status_code in {400, 404} and response_id in error.message)


def request(call: Call) -> dict[str, Any]:
    """Build the request's body."""
    options = call.options
    raw = (options.provider_options or {}).get("openai", {})
    body: dict[str, Any] = {
        "model": call.model,
        "input": items(call),
        "previous_response_id": call.response_id,
        "instructions": options.system_instruction or None,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_output_tokens": options.max_tokens,
        "include": None if "include" in raw else _include(options),
        "reasoning": options.reasoning_effort and {"effort": options.reasoning_effort, "summary": "auto"},
        "text": _text_format(options.response_json_schema()),
        "tools": [_tool(tool) for tool in options.tools or []] or None,
        "tool_choice": _tool_choice(options.tool_choice),
        "prompt_cache_key": None if "prompt_cache_key" in raw else call.prefix_key,
        "prompt_cache_options": None if "prompt_cache_options" in raw else _cache_options(call),
    }
    return merge_raw_options({name: value for name, value in body.items() if value is not None}, raw)


def _cache_options(call: Call) -> dict[str, str] | None:
    """Return the cache lifetime if the caller can choose it: half an hour by default, or half a day."""
    is_long = call.options.cache_ttl == "1h" and bills_cache_writes(call.model)
    return {"mode": "implicit", "ttl": "12h"} if is_long else None


def _include(options: Options) -> list[str] | None:
    """Request encrypted reasoning if a reasoning model has tools, as it is sent back with the result of a call."""
    thinks = options.reasoning_effort not in {None, "none"}
    return ["reasoning.encrypted_content"] if options.tools and thinks else None


@reader
def read_answer(response: Any) -> Answer:
    """Read the answer in a response's JSON."""
    if not isinstance(response, dict) or not isinstance(response.get("output"), list):
        raise UpstreamError.found_in(response)
    if response.get("status") in {"failed", "cancelled", "queued", "in_progress"} or response.get("error"):
        error = response.get("error") or {"message": f"the response is {response.get('status')}"}
        body = {"error": error, "usage": response.get("usage")}
        raise UpstreamError(_FAILED.get(str(error.get("code")), 400), body)
    items = ItemReader()
    output = items.read_each(response["output"], partial(_read_item, items))
    pieces = [piece for item in output if item.get("type") == "message" for piece in item["content"]]
    texts = [_read_text(piece) for piece in pieces if piece.get("type") != "refusal"]
    refusals = [_read_text(piece) for piece in pieces if piece.get("type") == "refusal"]
    thoughts = [
        piece["text"]
        for item in output
        if item.get("type") == "reasoning"
        for piece in item["summary"]
        if piece.get("text")
    ]
    calls = [_tool_call(item) for item in output if item.get("type") == "function_call"]
    received = map(as_object, response["output"])
    is_named_here = any(item.get("type") == "function_call" and not item.get("call_id") for item in received)
    status = as_text(response.get("status"))
    cut = as_text(as_object(response.get("incomplete_details")).get("reason"))
    answer = Answer(
        text="".join(texts),
        finish_reason="blocked" if refusals else _finish_reason(status, cut, calls),
        raw_finish_reason=cut or status,
        usage=_usage(response.get("usage")),
        billing=_billing(response, output),
        reasoning="\n\n".join(thoughts) or None,
        tool_calls=calls,
        # The id is useless if the response was not stored, or if it has a call whose id OpenAI did not assign.
        response_id=None if response.get("store") is False or is_named_here else as_text(response.get("id")),
        model=as_text(response.get("model")),
        note=" ".join(refusals) or None,
        provider_state=make_provider_state(output),
    )
    return items.finish(answer, response)


def _read_item(items: ItemReader, index: int, item: dict[str, Any]) -> dict[str, Any]:
    """Return an output item with its readable pieces. Raises if the item itself cannot be read."""
    match item.get("type"):
        case "message":
            return {**item, "content": items.read_each(item.get("content"), _read_piece)}
        case "reasoning":
            return {**item, "summary": items.read_each(item.get("summary"), _read_summary)}
        case "function_call":
            item = {**item, "call_id": call_id(item.get("call_id"), index)}
            _tool_call(item)  # raises for a call without a name
    return item


def _read_piece(_: int, piece: dict[str, Any]) -> dict[str, Any]:
    _read_text(piece)
    return piece


def _read_text(piece: dict[str, Any]) -> str:
    name = "text" if piece.get("text") else "refusal"
    return text_in(piece, name) if piece.get(name) else ""


def _read_summary(_: int, piece: dict[str, Any]) -> dict[str, Any]:
    return piece if piece.get("text") is None else {**piece, "text": text_in(piece, "text")}


def _tool_call(item: dict[str, Any]) -> ToolCall:
    return ToolCall(id=item["call_id"], name=item["name"], arguments=item.get("arguments") or "{}")


def _finish_reason(status: str | None, cut: str | None, calls: list[ToolCall]) -> FinishReason | None:
    if status == "incomplete":
        return _CUT.get(str(cut), "other")
    if status != "completed":
        return None if status is None else "other"
    return "tool_calls" if calls else "stop"


def _usage(usage: Any) -> dict[str, int]:
    """Read the token counts. As in our usage, input includes cached tokens and cache writes, and output reasoning."""
    usage = as_object(usage)
    read = as_object(usage.get("input_tokens_details"))
    written = as_object(usage.get("output_tokens_details"))
    return counts(
        input_tokens=usage.get("input_tokens"),
        output_tokens=usage.get("output_tokens"),
        total_tokens=usage.get("total_tokens"),
        reasoning_tokens=written.get("reasoning_tokens"),
        cached_tokens=read.get("cached_tokens"),
        cache_write_tokens=read.get("cache_write_tokens"),
    )


def _billing(response: dict[str, Any], output: list[dict[str, Any]]) -> Billing:
    read = as_object(as_object(response.get("usage")).get("input_tokens_details"))
    used = [str(item.get("type")) for item in output]
    return Billing(
        service_tier=as_text(response.get("service_tier")),
        long_cache_write_tokens=as_count(as_object(read.get("cache_write_tokens_details")).get("ttl_12h_tokens")),
        # web_search_call, file_search_call, code_interpreter_call, …: all calls except those that the caller runs.
        server_tools=sum(kind.endswith("_call") and kind != "function_call" for kind in used),
    )


def _text_format(answer_schema: dict[str, Any] | None) -> dict[str, Any] | None:
    if answer_schema is None:
        return None
    wire = dialects.for_openai(answer_schema)
    if wire.schema.get("type") != "object":
        raise ConfigurationError(
            "OpenAI supports only a response_schema whose root is an object.",
            hint="Put the value into a field of an object.",
        )
    return {"format": {"type": "json_schema", "name": "answer", "schema": wire.schema, "strict": wire.strict}}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    wire = dialects.tool_schema(tool)
    described = {"description": tool["description"]} if tool.get("description") else {}
    return {
        "type": "function",
        "name": tool["name"],
        **described,
        "parameters": wire.schema,
        "strict": wire.strict,
    }


def _tool_choice(choice: str | dict[str, str] | None) -> str | dict[str, str] | None:
    return {"type": "function", "name": choice["name"]} if isinstance(choice, dict) else choice
