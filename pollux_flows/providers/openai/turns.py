"""A conversation as input items of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pollux_flows.providers.base import Call, Said
from pollux_flows.providers.openai.sources import part
from pollux_flows.turn import Turn

_REASONING: Final = ("type", "id", "summary", "encrypted_content")


def items(call: Call) -> list[dict[str, Any]]:
    """All turns, this one last; or, where OpenAI keeps the others under an id, only what came after its last answer."""
    turns = call.turns
    if call.response_id is not None:
        answered = max(index for index, said in enumerate(turns) if said.turn.role == "assistant")
        turns = turns[answered + 1 :]
    return [item for said in turns for item in _items(said)]


def as_it_came(output: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What has to go back as it is, should it be sent again: sealed reasoning, and the phases of messages."""
    kept = [
        item for item in output if item.get("type") in {"message", "function_call"} or item.get("encrypted_content")
    ]
    sealed = any(item.get("encrypted_content") or item.get("phase") for item in kept)
    return {"output": kept} if sealed else None


def _items(said: Said) -> Iterator[dict[str, Any]]:
    turn = said.turn
    match turn.role:
        case "user":
            prompt = [] if said.prompt is None else [{"type": "input_text", "text": said.prompt}]
            yield {"role": "user", "content": [*map(part, said.materials), *prompt]}
        case "assistant":
            yield from map(_replayed, turn.came("output")) if turn.came("output") else _rebuilt(turn)
        case "tool":
            yield {"type": "function_call_output", "call_id": turn.tool_call_id, "output": turn.content}


def _replayed(item: dict[str, Any]) -> dict[str, Any]:
    """Without the ids of what OpenAI stored, and may have forgotten. Reasoning goes sealed, and takes its own id."""
    if item.get("type") == "reasoning":
        return {"summary": [], **{name: item[name] for name in _REASONING if name in item}}
    return {name: value for name, value in item.items() if name not in {"id", "status"}}


def _rebuilt(turn: Turn) -> Iterator[dict[str, Any]]:
    if turn.content.strip():
        yield {"role": "assistant", "content": [{"type": "output_text", "text": turn.content}]}
    for call in turn.tool_calls:
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}
