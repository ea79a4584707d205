"""Sources and conversations as Gemini's contents."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from pollux_flows.errors import ConfigurationError
from pollux_flows.providers.base import Call, PriorTurn
from pollux_flows.providers.material import Delivery, Material, check_size, check_web, refusal
from pollux_flows.source import Source
from pollux_flows.turn import Turn, arguments_of

if TYPE_CHECKING:
    from google.genai import types

# Types that Gemini refuses with "Unsupported MIME type". It accepts more types each year.
_UNREADABLE: Final = (
    "application/octet-stream",
    "application/zip",
    "application/msword",
    "application/vnd.ms-",
    "application/vnd.openxmlformats-",
)
_LARGEST: Final = 2 * 1024 * 1024 * 1024
# Google's placeholder for the signature of a call that the model did not make; required from Gemini 3 on.
_UNSIGNED: Final = b"skip_thought_signature_validator"
_SIGNS: Final = re.compile(r"(models/)?gemini-(?![12])")
_REBUILT: Final = {"text"}


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Return the delivery of a source: text inline, files of nearly any type as uploads, addresses as links."""
    if source.source_type in {"text", "json"}:
        return "text"
    if source.source_type != "file":
        check_web("Gemini", source, mime_type, ("http", "https", "gs"))
        return "link"
    if mime_type.startswith(_UNREADABLE):
        raise refusal("Gemini", source, mime_type, "Save it as PDF or text, or pass its real type as mime_type=….")
    check_size("Gemini", source, size_bytes, _LARGEST, "Split the file.")
    return "upload"


def parts(materials: Sequence[Material]) -> list[types.Part]:
    """Return the parts of the user's turn."""
    return [_part(material) for material in materials]


def _part(material: Material) -> types.Part:
    from google.genai import types

    source, video = material.source, material.source.gemini_video
    if material.text is not None:
        return types.Part(text=material.text)
    if source.gemini_url_context:  # it opens the address itself, with a tool
        return types.Part(text=source.uri)
    if material.data is not None:
        return types.Part(inline_data=types.Blob(data=material.data, mime_type=material.mime_type))
    uri = material.uploaded.uri if source.source_type == "file" else source.uri
    settings = video and types.VideoMetadata(
        start_offset=video.start_offset, end_offset=video.end_offset, fps=video.fps
    )
    return types.Part(
        file_data=types.FileData(file_uri=uri, mime_type=material.mime_type), video_metadata=settings or None
    )


def contents(call: Call) -> list[types.Content]:
    """Write all turns, this one last. Consecutive turns of one side, such as tool results, are one content."""
    from google.genai import types

    made: list[types.Content] = []
    for entry in call.turns:
        role = "model" if entry.turn.role == "assistant" else "user"
        turn = _parts(entry, call.model, next((each for each in reversed(made) if each.role == "model"), None))
        if made and made[-1].role == role:
            made[-1].parts = [*(made[-1].parts or []), *turn]
        else:
            made.append(types.Content(role=role, parts=turn))
    if made[0].role == "model" and any(part.function_call for part in made[0].parts or []):
        raise ConfigurationError(
            "Gemini accepts no conversation that begins with a tool call.", hint="Begin history with a user's turn."
        )
    return made


def make_provider_state(parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the parts as state to send back unchanged, with their signatures and ids; None for one plain text."""
    plain = len(parts) <= 1 and all(_REBUILT.issuperset(part) for part in parts)
    return None if plain else {"parts": parts}


def _parts(entry: PriorTurn, model: str, calling: types.Content | None) -> list[types.Part]:
    from google.genai import types

    turn = entry.turn
    match turn.role:
        case "user":
            prompt = [] if entry.prompt is None else [types.Part(text=entry.prompt)]
            return [*parts(entry.materials), *prompt]
        case "assistant":
            return [_replay_part(part) for part in turn.read_provider_state("parts")] or _rebuild_parts(turn, model)
        case "tool":
            return [types.Part(function_response=_response(turn, calling))]


def _replay_part(part: dict[str, Any]) -> types.Part:
    from google.genai import types

    # The SDK would not send a field that it does not know.
    known = {field.alias or name for name, field in types.Part.model_fields.items()}
    try:
        return types.Part.model_validate_json(json.dumps({name: part[name] for name in part if name in known}))
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]["msg"]
    raise ConfigurationError(
        f"A part of an earlier answer cannot be sent back to Gemini: {problem}.",
        hint="Update google-genai, or pass the turns as Options(history=…) without provider_state.",
    )


def _rebuild_parts(turn: Turn, model: str) -> list[types.Part]:
    from google.genai import types

    text = [types.Part(text=turn.content)] if turn.content.strip() else []
    calls = [
        types.Part(function_call=types.FunctionCall(id=call.id, name=call.name, args=arguments_of(call)))
        for call in turn.tool_calls
    ]
    if calls and _SIGNS.match(model):
        calls[0].thought_signature = _UNSIGNED
    return [*text, *calls]


def _response(turn: Turn, calling: types.Content | None) -> types.FunctionResponse:
    """Return a tool's result as a function response: a JSON object unchanged, anything else as its `result`."""
    from google.genai import types

    try:
        content = json.loads(turn.content)
    except ValueError:
        content = turn.content
    # Only an id that the model sent is sent back: some models send none, and ours are internal.
    ids = {part.function_call.id for part in (calling and calling.parts) or [] if part.function_call}
    return types.FunctionResponse(
        id=turn.tool_call_id if turn.tool_call_id in ids else None,
        name=turn.name,
        response=content if isinstance(content, dict) else {"result": content},
    )
