"""Calls to OpenRouter: builds the request, sends it and reads the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pollux_flows.providers import chat
from pollux_flows.providers.base import Call, merged
from pollux_flows.providers.openrouter.breakpoints import mark_prefix, takes_breakpoints
from pollux_flows.providers.openrouter.turns import make_provider_state, messages
from pollux_flows.result import Answer
from pollux_flows.schemas import dialects

if TYPE_CHECKING:
    import httpx2


async def generate(client: httpx2.AsyncClient, call: Call) -> Answer:
    answer = await chat.complete(client, request(call))
    came = make_provider_state(answer)
    return answer if came is None else answer.model_copy(update={"provider_state": came})


def request(call: Call) -> dict[str, Any]:
    """Build the request's body."""
    options = call.options
    body = chat.body(call, messages(call))
    raw = (options.provider_options or {}).get("openrouter", {})
    if "plugins" not in raw and any(material.mime_type == "application/pdf" for material in call.everything):
        # Without a named engine, OpenRouter may choose one that is billed by the page.
        body["plugins"] = [{"id": "file-parser", "pdf": {"engine": "cloudflare-ai"}}]
    if (answer_schema := options.response_json_schema()) is not None:
        body["response_format"] = chat.response_format(dialects.for_chat(answer_schema))
    if options.reasoning_effort is not None:
        body["reasoning"] = {"effort": options.reasoning_effort}
    if options.tools:
        body["tools"] = [_tool(tool) for tool in options.tools]
        body["tool_choice"] = _tool_choice(options.tool_choice)
    elif call.tools_called and "tools" not in raw:
        # A request with tool calls and results must declare the tools, even if none is to be called now.
        body["tools"] = [_tool({"name": name}) for name in call.tools_called]
        body["tool_choice"] = "none"
    if call.implicit_caching and "cache_control" not in raw and takes_breakpoints(call.model):
        mark_prefix(body["messages"], call)
    return merged({name: value for name, value in body.items() if value is not None}, raw)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    wire = dialects.tool_schema(tool, dialects.for_chat)
    described = {"description": tool["description"]} if tool.get("description") else {}
    function = {"name": tool["name"], **described, "parameters": wire.schema, "strict": wire.strict}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, str] | None) -> str | dict[str, Any] | None:
    return {"type": "function", "function": {"name": choice["name"]}} if isinstance(choice, dict) else choice
