"""A conversation as Anthropic's messages."""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.errors import ConfigurationError
from pollux_flows.providers.anthropic.sources import part
from pollux_flows.providers.base import Call, Said
from pollux_flows.turn import Turn, arguments_of

_REBUILT: Final = {"text", "tool_use"}
_THOUGHTS: Final = {"thinking", "redacted_thinking"}


def messages(call: Call, *, thinks: bool) -> list[dict[str, Any]]:
    """All turns, this one last. Turns of one side that follow each other are one message, and so are tool results."""
    made: list[dict[str, Any]] = []
    for said in call.turns:
        role = "assistant" if said.turn.role == "assistant" else "user"
        content = _content(said)
        if made and made[-1]["role"] == role:
            made[-1]["content"] += content
        else:
            made.append({"role": role, "content": content})
    if made[0]["role"] != "user":
        raise ConfigurationError(
            "Anthropic takes no conversation that the assistant begins.",
            hint="Begin history with a user's turn, or put that greeting into system_instruction.",
        )
    if thinks and _calls_without_thought(made):
        raise ConfigurationError(
            "The tool calls that are being answered were made without thinking; Anthropic cannot begin to think now.",
            hint="Leave reasoning out until the model has answered with text.",
        )
    return made


def _calls_without_thought(made: list[dict[str, Any]]) -> bool:
    """Whether results are sent of calls that no thought led to. Of a loop, it is the first turn that thinks."""
    begins = [message["content"][0].get("type") if message["content"] else None for message in made]
    first = len(made) - 1
    while begins[first] == "tool_result":
        first -= 2
    return first < len(made) - 1 and begins[first + 1] not in _THOUGHTS


def as_it_came(blocks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What has to go back as it is, in its order: thoughts with their signatures, and what stands between them."""
    return None if _REBUILT.issuperset(block.get("type") for block in blocks) else {"content": blocks}


def _content(said: Said) -> list[dict[str, Any]]:
    turn = said.turn
    match turn.role:
        case "user":
            prompt = [] if said.prompt is None else [_text(said.prompt)]
            return [*map(part, said.materials), *prompt]
        case "assistant":
            return _spoken(turn)
        case "tool":
            given = {"content": turn.content} if turn.content.strip() else {}
            return [{"type": "tool_result", "tool_use_id": turn.tool_call_id, **given}]


def _spoken(turn: Turn) -> list[dict[str, Any]]:
    if came := turn.came("content"):
        # A text without letters is one that the API gives, and does not take.
        return [block for block in came if block.get("type") != "text" or str(block.get("text")).strip()]
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_of(call)} for call in turn.tool_calls
    ]
    return [*([_text(turn.content)] if turn.content.strip() else []), *calls]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
