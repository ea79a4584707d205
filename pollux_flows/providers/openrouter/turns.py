"""A conversation as OpenRouter's messages."""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.providers.base import Call, Said
from pollux_flows.providers.openrouter.sources import part
from pollux_flows.result import Answer
from pollux_flows.turn import Turn

# What goes back as it came: thoughts with their signatures, and what a PDF was parsed into.
_KEPT: Final[tuple[str, ...]] = ("reasoning_details", "annotations")


def messages(call: Call) -> list[dict[str, Any]]:
    """All turns, this one last; each tool's result is a message."""
    return [_message(said) for said in call.turns]


def as_it_came(answer: Answer) -> dict[str, Any] | None:
    kept: dict[str, Any] = {name: answer.artifacts[name] for name in _KEPT if name in answer.artifacts}
    if "reasoning_details" not in kept and answer.reasoning:
        kept["reasoning"] = answer.reasoning
    return kept or None


def _message(said: Said) -> dict[str, Any]:
    turn = said.turn
    match turn.role:
        case "user":
            prompt = [] if said.prompt is None else [{"type": "text", "text": said.prompt}]
            return {"role": "user", "content": [*map(part, said.materials), *prompt]}
        case "assistant":
            return _spoken(turn)
        case "tool":
            return {"role": "tool", "tool_call_id": turn.tool_call_id, "content": turn.content}


def _spoken(turn: Turn) -> dict[str, Any]:
    came = turn.provider_state or {}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in turn.tool_calls
    ]
    return {
        "role": "assistant",
        "content": turn.content or None,
        **({"tool_calls": calls} if calls else {}),
        **{name: came[name] for name in (*_KEPT, "reasoning") if name in came},
    }
