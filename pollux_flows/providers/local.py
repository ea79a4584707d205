"""Local servers that are compatible with OpenAI's chat completions. They accept only text."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from pollux_flows.config import Config
from pollux_flows.providers import chat, http
from pollux_flows.providers.base import Call, PriorTurn, merge_raw_options
from pollux_flows.providers.material import Delivery, refusal
from pollux_flows.result import Answer
from pollux_flows.source import Source

if TYPE_CHECKING:
    import httpx2


def connect(config: Config) -> AbstractAsyncContextManager[httpx2.AsyncClient]:
    return http.own_client(config, config.base_url or "")


async def generate(client: httpx2.AsyncClient, call: Call) -> Answer:
    return await chat.complete(client, request(call))


def request(call: Call) -> dict[str, Any]:
    """Build the request's body."""
    body = chat.body(call, [{"role": entry.turn.role, "content": _text(entry)} for entry in call.turns])
    fields = {name: value for name, value in body.items() if value is not None}
    return merge_raw_options(fields, (call.options.provider_options or {}).get("local", {}))


def _text(entry: PriorTurn) -> str:
    """Return a turn as one text, as many local servers accept only a plain string for sources and prompt."""
    if entry.turn.role != "user":
        return entry.turn.content
    texts = [material.text or "" for material in entry.materials]
    return "\n\n".join([*texts, *([entry.prompt] if entry.prompt is not None else [])])


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Return the delivery of a source. Raises if it is not text."""
    del size_bytes
    if source.source_type not in {"text", "json"}:
        raise refusal("A local server", source, mime_type, "Pass its text with Source.from_text.")
    return "text"
