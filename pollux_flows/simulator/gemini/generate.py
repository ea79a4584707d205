"""Responses of Gemini's `POST /models/{model}:generateContent`."""

from __future__ import annotations

from typing import Any

from pollux_flows.simulator import tokens
from pollux_flows.simulator.answers import Answer, compose
from pollux_flows.simulator.gemini.reading import cache_of, read
from pollux_flows.simulator.gemini.signature import sign
from pollux_flows.simulator.wire import Call, Operation, Reply

_FINISH_REASONS = {
    "stop": "STOP",
    "stop_sequence": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
}


def respond(call: Call) -> Reply:
    answer = compose(call.request, call.fault)
    number = call.simulator.next_number()
    body: dict[str, Any] = {
        "usageMetadata": _usage(call, answer),
        "modelVersion": call.params["model"],
        "responseId": f"rid-{number:08d}",
    }
    if answer.finish == "blocked":
        body["promptFeedback"] = {"blockReason": "SAFETY"}
    else:
        body["candidates"] = [_candidate(call, answer, number)]
    return Reply(body)


def _candidate(call: Call, answer: Answer, number: int) -> dict[str, Any]:
    candidate: dict[str, Any] = {"finishReason": _FINISH_REASONS[answer.finish], "index": 0}
    parts = _parts(call, answer, number)
    candidate["content"] = {"role": "model", "parts": parts} if parts else {"role": "model"}
    if answer.finish == "content_filter":
        # Filtered content is not returned.
        del candidate["content"]
    if call.request.urls:
        candidate["urlContextMetadata"] = {
            "urlMetadata": [
                {"retrievedUrl": url, "urlRetrievalStatus": "URL_RETRIEVAL_STATUS_SUCCESS"} for url in call.request.urls
            ]
        }
    return candidate


def _parts(call: Call, answer: Answer, number: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    thinking = (call.body.get("generationConfig") or {}).get("thinkingConfig") or {}
    if answer.reasoning and thinking.get("includeThoughts"):
        parts.append({"text": answer.reasoning, "thought": True, "thoughtSignature": sign(answer.reasoning)})
    if answer.text:
        parts.append({"text": answer.text})
    for place, tool_call in enumerate(answer.calls):
        part: dict[str, Any] = {
            "functionCall": {"name": tool_call.name, "args": tool_call.arguments, "id": f"fc-{number:08d}-{place}"}
        }
        if place == 0:
            part["thoughtSignature"] = sign(tool_call.name)
        parts.append(part)
    return parts


def _usage(call: Call, answer: Answer) -> dict[str, Any]:
    candidates = 0 if answer.finish == "blocked" else answer.visible_tokens
    # The tokens of tool results are counted separately from the prompt.
    looked_up = len(call.request.urls) * tokens.of_attachment()
    usage = {
        "promptTokenCount": call.request.input_tokens,
        "totalTokenCount": call.request.input_tokens + looked_up + candidates + answer.reasoning_tokens,
    }
    if looked_up:
        usage["toolUsePromptTokenCount"] = looked_up
    if candidates:
        usage["candidatesTokenCount"] = candidates
    if answer.reasoning:
        usage["thoughtsTokenCount"] = answer.reasoning_tokens
    cache = cache_of(call)
    if cache:
        usage["cachedContentTokenCount"] = cache.tokens
    return usage


OPERATIONS = (Operation("generate", "POST", "/{version:apiversion}/models/{model}:generateContent", respond, read),)
