"""Responses of Anthropic's `POST /v1/messages`."""

from __future__ import annotations

from typing import Any

from pollux_flows.simulator.answers import Answer, compose
from pollux_flows.simulator.anthropic.models import parse_model
from pollux_flows.simulator.anthropic.reading import prompt_blocks, read
from pollux_flows.simulator.anthropic.signature import sign
from pollux_flows.simulator.wire import Call, Operation, Reply

_STOP_REASONS = {
    "stop": "end_turn",
    "stop_sequence": "stop_sequence",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "blocked": "refusal",
    "content_filter": "refusal",
}
_HOUR_S = 3600.0


def respond(call: Call) -> Reply:
    answer = compose(call.request, call.fault)
    number = call.simulator.next_number()
    body = {
        "id": f"msg_{number:08d}",
        "type": "message",
        "role": "assistant",
        "model": call.body["model"],
        "content": _content(call, answer, number),
        "stop_reason": _STOP_REASONS[answer.finish],
        "stop_sequence": answer.stop_sequence,
        "stop_details": None,
        "usage": _usage(call, answer),
    }
    if body["stop_reason"] == "refusal":
        body["stop_details"] = {"type": "refusal", "category": None, "explanation": answer.text or None}
    return Reply(body)


def _content(call: Call, answer: Answer, number: int) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.reasoning:
        shown = answer.reasoning if _shows_thinking(call) else ""
        blocks.append({"type": "thinking", "thinking": shown, "signature": sign(answer.reasoning)})
    if answer.finish == "blocked":
        return blocks
    if answer.text:
        blocks.append({"type": "text", "text": answer.text})
    blocks.extend(
        {"type": "tool_use", "id": f"toolu_{number:08d}_{place}", "name": tool_call.name, "input": tool_call.arguments}
        for place, tool_call in enumerate(answer.calls)
    )
    return blocks


def _shows_thinking(call: Call) -> bool:
    display = (call.body.get("thinking") or {}).get("display")
    if display is not None:
        return bool(display == "summarized")
    return parse_model(call.body["model"]).shows_thinking


def _usage(call: Call, answer: Answer) -> dict[str, Any]:
    blocks = prompt_blocks(call)
    name = call.body["model"]
    cache_use = call.use_cache(name, blocks, least_tokens=parse_model(name).cached_from_tokens)
    hour = cache_use.written_by_lifetime.get(_HOUR_S, 0)
    return {
        "input_tokens": sum(block.tokens for block in blocks) - cache_use.read - cache_use.written,
        "cache_creation_input_tokens": cache_use.written,
        "cache_read_input_tokens": cache_use.read,
        "cache_creation": {"ephemeral_5m_input_tokens": cache_use.written - hour, "ephemeral_1h_input_tokens": hour},
        "output_tokens": answer.reasoning_tokens + answer.visible_tokens,
        "output_tokens_details": {"thinking_tokens": answer.reasoning_tokens},
        "service_tier": "standard",
    }


OPERATIONS = (Operation("generate", "POST", "/v1/messages", respond, read),)
