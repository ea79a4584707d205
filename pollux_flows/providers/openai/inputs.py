"""Sources and conversations as input items of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pollux_flows.files.mime import is_text_like
from pollux_flows.providers.base import Call, PriorTurn
from pollux_flows.providers.material import IMAGES, Delivery, Material, check_size, check_web, refusal
from pollux_flows.source import Source
from pollux_flows.turn import Turn

_OFFICE: Final = (
    "application/msword",
    "application/vnd.ms-excel",
    "application/vnd.ms-powerpoint",
    "application/vnd.openxmlformats-officedocument.",
    "application/rtf",
    "text/rtf",
)
_LARGEST: Final = 512 * 1024 * 1024
_LARGEST_TEXT: Final = 10 * 1024 * 1024
_REASONING: Final = ("type", "id", "summary", "encrypted_content")


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Return the delivery of a source: text inside the request, other files as uploads, addresses as links."""
    if source.source_type in {"text", "json"}:
        check_size("OpenAI", source, size_bytes, _LARGEST_TEXT, "That much text fits no model; send a part of it.")
        return "text"
    if source.source_type == "youtube":
        raise refusal("OpenAI", source, mime_type, "Use gemini, which watches YouTube itself.")
    document = mime_type == "application/pdf" or mime_type.startswith(_OFFICE)
    if not document and mime_type not in IMAGES and not is_text_like(mime_type):
        raise refusal("OpenAI", source, mime_type, "It takes documents, text and images; gemini takes audio and video.")
    if source.source_type != "file":
        check_web("OpenAI", source, mime_type)
        return "link"
    if is_text_like(mime_type) and not document:
        check_size("OpenAI", source, size_bytes, _LARGEST_TEXT, "That much text fits no model; send a part of it.")
        return "text"
    check_size("OpenAI", source, size_bytes, _LARGEST, "Split the file.")
    return "upload"


def part(material: Material) -> dict[str, Any]:
    """Return one part of the user's turn."""
    if material.text is not None:
        return {"type": "input_text", "text": material.text}
    image = material.mime_type.startswith("image/")
    kind = "input_image" if image else "input_file"
    if material.data is not None:
        sent = (
            {"image_url": material.data_url} if image else {"filename": material.name, "file_data": material.data_url}
        )
        return {"type": kind, **sent}
    if material.source.source_type == "file":
        return {"type": kind, "file_id": material.uploaded.file_id}
    return {"type": kind, "image_url" if image else "file_url": material.source.uri}


def items(call: Call) -> list[dict[str, Any]]:
    """Write all turns, this one last; with the id of a stored response, only those after its answer."""
    turns = call.turns
    if call.response_id is not None:
        answered = max(index for index, entry in enumerate(turns) if entry.turn.role == "assistant")
        turns = turns[answered + 1 :]
    return [item for entry in turns for item in _items(entry)]


def make_provider_state(output: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the output as state to send back unchanged, if it has encrypted reasoning or message phases."""
    items_ = [
        item for item in output if item.get("type") in {"message", "function_call"} or item.get("encrypted_content")
    ]
    is_needed = any(item.get("encrypted_content") or item.get("phase") for item in items_)
    return {"output": items_} if is_needed else None


def _items(entry: PriorTurn) -> Iterator[dict[str, Any]]:
    turn = entry.turn
    match turn.role:
        case "user":
            prompt = [] if entry.prompt is None else [{"type": "input_text", "text": entry.prompt}]
            yield {"role": "user", "content": [*map(part, entry.materials), *prompt]}
        case "assistant":
            yield from (
                map(_replay_item, turn.read_provider_state("output"))
                if turn.read_provider_state("output")
                else _rebuild_items(turn)
            )
        case "tool":
            yield {"type": "function_call_output", "call_id": turn.tool_call_id, "output": turn.content}


def _replay_item(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item to send back without its id, whose stored form may have expired. Reasoning needs the id."""
    if item.get("type") == "reasoning":
        return {"summary": [], **{name: item[name] for name in _REASONING if name in item}}
    return {name: value for name, value in item.items() if name not in {"id", "status"}}


def _rebuild_items(turn: Turn) -> Iterator[dict[str, Any]]:
    if turn.content.strip():
        yield {"role": "assistant", "content": [{"type": "output_text", "text": turn.content}]}
    for call in turn.tool_calls:
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}
