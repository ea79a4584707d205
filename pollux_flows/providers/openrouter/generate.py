"""Calls to OpenRouter's chat completions: connect, build the request, send it and read the answer."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

from pollux_flows.base_url import OWN_ADDRESSES
from pollux_flows.config import Config
from pollux_flows.providers import chat, http
from pollux_flows.providers.base import Call, PriorTurn, merge_raw_options
from pollux_flows.providers.material import IMAGES, Delivery, Material, check_size, check_web, refusal
from pollux_flows.result import Answer
from pollux_flows.schemas import dialects
from pollux_flows.source import Source
from pollux_flows.turn import Turn

if TYPE_CHECKING:
    import httpx2

# The fields to send back unchanged: reasoning with its signatures, and the text of parsed PDFs.
_STATE: Final[tuple[str, ...]] = ("reasoning_details", "annotations")
# Our limit, not OpenRouter's, as every call in flight holds the file in memory, a third larger in base64.
_LARGEST: Final = 20 * 1024 * 1024


def connect(config: Config) -> AbstractAsyncContextManager[httpx2.AsyncClient]:
    return http.own_client(config, OWN_ADDRESSES["openrouter"])


async def generate(client: httpx2.AsyncClient, call: Call) -> Answer:
    answer = await chat.complete(client, request(call))
    state = _make_provider_state(answer)
    return answer if state is None else answer.model_copy(update={"provider_state": state})


def request(call: Call) -> dict[str, Any]:
    """Build the request's body."""
    options = call.options
    body = chat.body(call, [_message(entry) for entry in call.turns])
    raw = (options.provider_options or {}).get("openrouter", {})
    if "plugins" not in raw and any(material.mime_type == "application/pdf" for material in call.all_materials):
        # Without a named engine, OpenRouter may choose one that is billed by the page.
        body["plugins"] = [{"id": "file-parser", "pdf": {"engine": "cloudflare-ai"}}]
    if options.reasoning_effort is not None:
        body["reasoning"] = {"effort": options.reasoning_effort}
    if options.tools:
        body["tools"] = [_tool(tool) for tool in options.tools]
        body["tool_choice"] = _tool_choice(options.tool_choice)
    elif call.tools_called and "tools" not in raw:
        # A request with tool calls and results must declare the tools, even if none is to be called now.
        body["tools"] = [_tool({"name": name}) for name in call.tools_called]
        body["tool_choice"] = "none"
    # On other routes the provider behind OpenRouter caches automatically, or not at all.
    if call.implicit_caching and "cache_control" not in raw and call.model.removeprefix("~").startswith("anthropic/"):
        _mark_prefix(body["messages"], call)
    return merge_raw_options({name: value for name, value in body.items() if value is not None}, raw)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    wire = dialects.tool_schema(tool)
    described = {"description": tool["description"]} if tool.get("description") else {}
    function = {"name": tool["name"], **described, "parameters": wire.schema, "strict": wire.strict}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, str] | None) -> str | dict[str, Any] | None:
    return {"type": "function", "function": {"name": choice["name"]}} if isinstance(choice, dict) else choice


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Return the delivery of a source: text as text, image and PDF files as bytes, and those on the web as links."""
    if source.source_type in {"text", "json"}:
        return "text"
    if mime_type != "application/pdf" and mime_type not in IMAGES:
        raise refusal("OpenRouter", source, mime_type, "It takes PDFs and images; pass text with Source.from_text.")
    if source.source_type != "file":
        check_web("OpenRouter", source, mime_type)
        return "link"
    check_size(
        "OpenRouter", source, size_bytes, _LARGEST, "Use a provider that stores files: gemini, openai, anthropic."
    )
    return "inline"


def _part(material: Material) -> dict[str, Any]:
    """Return one item of the user's turn."""
    if material.text is not None:
        return {"type": "text", "text": material.text}
    url = material.data_url if material.source.source_type == "file" else str(material.source.uri)
    if material.mime_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": material.name, "file_data": url}}


def _make_provider_state(answer: Answer) -> dict[str, Any] | None:
    """Return the state to send back unchanged, or None if there is none."""
    state: dict[str, Any] = {name: answer.artifacts[name] for name in _STATE if name in answer.artifacts}
    if "reasoning_details" not in state and answer.reasoning:
        state["reasoning"] = answer.reasoning
    return state or None


def _message(entry: PriorTurn) -> dict[str, Any]:
    turn = entry.turn
    match turn.role:
        case "user":
            prompt = [] if entry.prompt is None else [{"type": "text", "text": entry.prompt}]
            return {"role": "user", "content": [*map(_part, entry.materials), *prompt]}
        case "assistant":
            return _assistant_message(turn)
        case "tool":
            return {"role": "tool", "tool_call_id": turn.tool_call_id, "content": turn.content}


def _assistant_message(turn: Turn) -> dict[str, Any]:
    state = turn.provider_state or {}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in turn.tool_calls
    ]
    return {
        "role": "assistant",
        "content": turn.content or None,
        **({"tool_calls": calls} if calls else {}),
        **{name: state[name] for name in (*_STATE, "reasoning") if name in state},
    }


def _mark_prefix(messages: list[dict[str, Any]], call: Call) -> None:
    """Set the cache breakpoint before the prompt, or after the system instruction if there is nothing else."""
    control = {"type": "ephemeral", "ttl": "1h"} if call.options.cache_ttl == "1h" else {"type": "ephemeral"}
    asks = call.is_one_of_many and call.prompt is not None
    for message in reversed(messages):
        parts = message.get("content")
        if isinstance(parts, str) and parts and message["role"] == "system":
            parts = [{"type": "text", "text": parts}]
        elif message["role"] != "user" or not isinstance(parts, list):
            continue
        last = len(parts) - 1 - asks
        asks = False
        if last >= 0:
            message["content"] = [*parts[:last], {**parts[last], "cache_control": control}, *parts[last + 1 :]]
            return
