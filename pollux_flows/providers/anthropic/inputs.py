"""Sources and conversations as Anthropic's messages."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final

from pollux_flows.errors import ConfigurationError
from pollux_flows.files.mime import is_text_like
from pollux_flows.providers.base import Call, PriorTurn
from pollux_flows.providers.material import IMAGES, Delivery, Material, check_size, check_web, refusal
from pollux_flows.source import Source
from pollux_flows.turn import Turn, arguments_of

_LARGEST: Final = 500 * 1024 * 1024
_LARGEST_TEXT: Final = 10 * 1024 * 1024
_REBUILT: Final = {"text", "tool_use"}
_THOUGHTS: Final = {"thinking", "redacted_thinking"}


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Return the delivery of a source: files as uploads, texts inside the request, web addresses as links.

    Text files other than text/plain are also sent inside the request.
    """
    if source.source_type in {"text", "json"}:
        if not str(source.text).strip():
            raise ConfigurationError("Anthropic accepts no empty text.", hint=f"Leave {source.identifier!r} out.")
        check_size("Anthropic", source, size_bytes, _LARGEST_TEXT, "That much text fits no model; send a part of it.")
        return "text"
    if source.source_type == "youtube":
        raise refusal("Anthropic", source, mime_type, "Use gemini, which watches YouTube itself.")
    seen = mime_type == "application/pdf" or mime_type in IMAGES
    if source.source_type != "file":
        if not seen:
            raise refusal("Anthropic", source, mime_type, "It fetches PDFs and images only; download the rest first.")
        check_web("Anthropic", source, mime_type, ("https",))
        return "link"
    if not seen and not is_text_like(mime_type):
        raise refusal("Anthropic", source, mime_type, "It takes PDFs, text and images; gemini takes audio and video.")
    if is_text_like(mime_type) and mime_type != "text/plain":
        check_size("Anthropic", source, size_bytes, _LARGEST_TEXT, "That much text fits no model; send a part of it.")
        return "text"
    check_size("Anthropic", source, size_bytes, _LARGEST, "Split the file.")
    return "upload"


def part(material: Material) -> dict[str, Any]:
    """Return one block of the user's turn."""
    if material.text is not None:
        return {"type": "text", "text": material.text}
    kind = "image" if material.mime_type.startswith("image/") else "document"
    if material.data is not None:
        encoded = b64encode(material.data).decode()
        return {"type": kind, "source": {"type": "base64", "media_type": material.mime_type, "data": encoded}}
    if material.source.source_type == "file":
        return {"type": kind, "source": {"type": "file", "file_id": material.uploaded.file_id}}
    return {"type": kind, "source": {"type": "url", "url": material.source.uri}}


def messages(call: Call, *, thinks: bool) -> list[dict[str, Any]]:
    """Write all turns, this one last. Consecutive turns of one side, such as tool results, are one message."""
    made: list[dict[str, Any]] = []
    for entry in call.turns:
        role = "assistant" if entry.turn.role == "assistant" else "user"
        content = _content(entry)
        if made and made[-1]["role"] == role:
            made[-1]["content"] += content
        else:
            made.append({"role": role, "content": content})
    if made[0]["role"] != "user":
        raise ConfigurationError(
            "Anthropic accepts no conversation that begins with an assistant's turn.",
            hint="Begin history with a user's turn, or move that turn into system_instruction.",
        )
    if thinks and _calls_without_thought(made):
        raise ConfigurationError(
            "The pending tool calls were made without thinking; Anthropic cannot start thinking before their results.",
            hint="Leave reasoning out until the model has answered with text.",
        )
    return made


def _calls_without_thought(made: list[dict[str, Any]]) -> bool:
    """Return whether the last tool results belong to calls made without thinking. In a loop, its first turn counts."""
    begins = [message["content"][0].get("type") if message["content"] else None for message in made]
    first = len(made) - 1
    while begins[first] == "tool_result":
        first -= 2
    return first < len(made) - 1 and begins[first + 1] not in _THOUGHTS


def make_provider_state(blocks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the blocks as state to send back unchanged and in order; None if there are only texts and tool calls."""
    return None if _REBUILT.issuperset(block.get("type") for block in blocks) else {"content": blocks}


def _content(entry: PriorTurn) -> list[dict[str, Any]]:
    turn = entry.turn
    match turn.role:
        case "user":
            prompt = [] if entry.prompt is None else [_text(entry.prompt)]
            return [*map(part, entry.materials), *prompt]
        case "assistant":
            return _assistant_content(turn)
        case "tool":
            content = {"content": turn.content} if turn.content.strip() else {}
            return [{"type": "tool_result", "tool_use_id": turn.tool_call_id, **content}]


def _assistant_content(turn: Turn) -> list[dict[str, Any]]:
    if blocks := turn.read_provider_state("content"):
        # The API may send a blank text, but refuses one.
        return [block for block in blocks if block.get("type") != "text" or str(block.get("text")).strip()]
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_of(call)} for call in turn.tool_calls
    ]
    return [*([_text(turn.content)] if turn.content.strip() else []), *calls]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
