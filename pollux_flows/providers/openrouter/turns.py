"""Conversations as OpenRouter's messages."""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.providers.base import Call, PriorTurn
from pollux_flows.providers.openrouter.sources import part
from pollux_flows.result import Answer
from pollux_flows.turn import Turn

# The fields to send back unchanged: reasoning with its signatures, and the text of parsed PDFs.
_STATE: Final[tuple[str, ...]] = ("reasoning_details", "annotations")


def messages(call: Call) -> list[dict[str, Any]]:
    """Write all turns, this one last; each tool's result is a message."""
    return [_message(entry) for entry in call.turns]


def make_provider_state(answer: Answer) -> dict[str, Any] | None:
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
            return {"role": "user", "content": [*map(part, entry.materials), *prompt]}
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
