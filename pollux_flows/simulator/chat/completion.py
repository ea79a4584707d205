"""The parts of a chat completion that OpenRouter and local servers have in common."""

from __future__ import annotations

from typing import Any

from pollux_flows.simulator import tokens
from pollux_flows.simulator.answers import Answer

_FINISH = {
    "stop": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "blocked": "content_filter",
    "content_filter": "content_filter",
}


def completion(answer: Answer, *, name: str, created: float, model: str, input_tokens: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.finish == "blocked":
        message["content"] = ""
    if answer.calls:
        message["content"] = None
        message["tool_calls"] = [
            {
                "id": f"call_{name}_{place}",
                "type": "function",
                "function": {"name": call.name, "arguments": tokens.compact(call.arguments)},
            }
            for place, call in enumerate(answer.calls)
        ]
    output = answer.reasoning_tokens + answer.visible_tokens
    return {
        "id": name,
        "object": "chat.completion",
        "created": int(created),
        "model": model,
        "choices": [{"index": 0, "finish_reason": _FINISH[answer.finish], "logprobs": None, "message": message}],
        "usage": {"prompt_tokens": input_tokens, "completion_tokens": output, "total_tokens": input_tokens + output},
    }
