"""Responses of OpenAI's `POST /responses`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pollux_flows.simulator import tokens
from pollux_flows.simulator.answers import Answer, compose
from pollux_flows.simulator.faults import Fault
from pollux_flows.simulator.openai.reading import (
    CACHE_S,
    CACHED_FROM_TOKENS,
    input_items,
    prompt_blocks,
    read,
    writes_are_billed,
)
from pollux_flows.simulator.openai.seal import seal
from pollux_flows.simulator.openai.stored_responses import StoredResponse
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refusal, Reply

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def overflow() -> Refusal:
    return BadRequest(
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        code="context_length_exceeded",
        param="input",
    )


def respond(call: Call) -> Reply:
    number = call.simulator.next_number()
    answer = compose(call.request, call.fault)
    body = _envelope(call, number)
    body["output"] = _output(call, answer, number)
    body["usage"] = _usage(call, answer)
    incomplete = _INCOMPLETE.get(answer.finish)
    if incomplete:
        body["status"] = "incomplete"
        body["incomplete_details"] = {"reason": incomplete}
    if call.body.get("store", True) is not False:
        open_calls = {item["call_id"]: item["name"] for item in body["output"] if item["type"] == "function_call"}
        before = call.simulator.openai_responses.get(call.body.get("previous_response_id") or "")
        sent = [item for item in input_items(call.body) if item.get("type") == "function_call"]
        all_calls = open_calls.keys() | {item["call_id"] for item in sent} | (before.all_calls if before else set())
        stored = StoredResponse(body["usage"]["total_tokens"], open_calls, frozenset(all_calls))
        call.simulator.openai_responses.add(body["id"], stored)
    return Reply(body)


def failed(call: Call, fault: Fault) -> Any:
    body = _envelope(call, call.simulator.next_number())
    body["status"] = "failed"
    body["error"] = {
        "code": fault.error_type or "server_error",
        "message": fault.message or "The model failed to generate a response.",
    }
    return body


def _envelope(call: Call, number: int) -> dict[str, Any]:
    body = call.body
    return {
        "id": f"resp_{number:08d}",
        "object": "response",
        "created_at": int(call.simulator.now()),
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": body["model"],
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None, **(body.get("reasoning") or {})},
        "store": body.get("store", True),
        "temperature": body.get("temperature"),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [{"strict": True, **tool} for tool in body.get("tools") or []],
        "top_p": body.get("top_p"),
        "truncation": body.get("truncation") or "disabled",
        "usage": None,
    }


def _output(call: Call, answer: Answer, number: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if answer.reasoning:
        item: dict[str, Any] = {"type": "reasoning", "id": f"rs_{number:08d}", "summary": []}
        if (call.body.get("reasoning") or {}).get("summary"):
            item["summary"] = [{"type": "summary_text", "text": answer.reasoning}]
        if "reasoning.encrypted_content" in (call.body.get("include") or []):
            item["encrypted_content"] = seal(answer.reasoning)
        items.append(item)
    if answer.finish == "blocked":
        items.append(_message({"type": "refusal", "refusal": answer.text}, number, "completed"))
        return items
    if answer.text or not (answer.calls or answer.finish == "length"):
        status = "incomplete" if answer.finish in _INCOMPLETE else "completed"
        items.append(_message({"type": "output_text", "text": answer.text, "annotations": []}, number, status))
    items.extend(
        {
            "type": "function_call",
            "id": f"fc_{number:08d}_{place}",
            "call_id": f"call_{number:08d}_{place}",
            "name": tool_call.name,
            "arguments": tokens.compact(tool_call.arguments),
            "status": "completed",
        }
        for place, tool_call in enumerate(answer.calls)
    )
    return items


def _message(content: dict[str, Any], number: int, status: str) -> dict[str, Any]:
    return {"type": "message", "id": f"msg_{number:08d}", "role": "assistant", "status": status, "content": [content]}


def _usage(call: Call, answer: Answer) -> dict[str, Any]:
    # Requests with different keys are routed to different machines, each with a cache of its own.
    scope = f"{call.body['model']} {call.body.get('prompt_cache_key') or ''}"
    cache_use = call.use_cache(scope, prompt_blocks(call), least_tokens=CACHED_FROM_TOKENS)
    written = cache_use.written_by_lifetime if writes_are_billed(call.body["model"]) else {}
    output = answer.reasoning_tokens + answer.visible_tokens
    return {
        "input_tokens": call.request.input_tokens,
        "input_tokens_details": {
            "cached_tokens": cache_use.read,
            "cache_write_tokens": sum(written.values()),
            **({"cache_write_tokens_details": _by_lifetime(written)} if written else {}),
        },
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": call.request.input_tokens + output,
    }


def _by_lifetime(written: Mapping[float, int]) -> dict[str, int]:
    return {"ttl_30m_tokens": written.get(CACHE_S["30m"], 0), "ttl_12h_tokens": written.get(CACHE_S["12h"], 0)}


OPERATIONS = (Operation("generate", "POST", "/responses", respond, read),)
