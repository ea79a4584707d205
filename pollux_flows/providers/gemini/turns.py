"""A conversation as Gemini's contents."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from pollux_flows.errors import ConfigurationError
from pollux_flows.providers.base import Call, Said
from pollux_flows.providers.gemini.sources import parts
from pollux_flows.turn import Turn, arguments_of

if TYPE_CHECKING:
    from google.genai import types

# Google's own stand-in for the signature of a call that the model did not make itself; from Gemini 3 on, one is wanted.
_UNSIGNED: Final = b"skip_thought_signature_validator"
_SIGNS: Final = re.compile(r"(models/)?gemini-(?![12])")
_REBUILT: Final = {"text"}


def contents(call: Call) -> list[types.Content]:
    """All turns, this one last. The results of a turn's calls are one content, with the prompt that follows them."""
    from google.genai import types

    made: list[types.Content] = []
    for said in call.turns:
        role = "model" if said.turn.role == "assistant" else "user"
        turn = _parts(said, call.model, next((each for each in reversed(made) if each.role == "model"), None))
        if made and made[-1].role == role:
            made[-1].parts = [*(made[-1].parts or []), *turn]
        else:
            made.append(types.Content(role=role, parts=turn))
    if made[0].role == "model" and any(part.function_call for part in made[0].parts or []):
        raise ConfigurationError(
            "Gemini takes no conversation that begins with a tool call.", hint="Begin history with a user's turn."
        )
    return made


def as_it_came(parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What has to go back as it is: every part on its own, with its signature, and calls with the ids they had."""
    plain = len(parts) <= 1 and all(_REBUILT.issuperset(part) for part in parts)
    return None if plain else {"parts": parts}


def _parts(said: Said, model: str, calling: types.Content | None) -> list[types.Part]:
    from google.genai import types

    turn = said.turn
    match turn.role:
        case "user":
            prompt = [] if said.prompt is None else [types.Part(text=said.prompt)]
            return [*parts(said.materials), *prompt]
        case "assistant":
            return [_replayed(part) for part in turn.came("parts")] or _rebuilt(turn, model)
        case "tool":
            return [types.Part(function_response=_response(turn, calling))]


def _replayed(part: dict[str, Any]) -> types.Part:
    from google.genai import types

    # A field that this SDK does not know yet it would not send either.
    known = {field.alias or name for name, field in types.Part.model_fields.items()}
    try:
        return types.Part.model_validate_json(json.dumps({name: part[name] for name in part if name in known}))
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]["msg"]
    raise ConfigurationError(
        f"A part of an earlier answer cannot be sent back to Gemini: {problem}.",
        hint="Update google-genai, or pass what was said as Options(history=…) without provider_state.",
    )


def _rebuilt(turn: Turn, model: str) -> list[types.Part]:
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
    """A JSON object as it is; anything else as the `result` of one."""
    from google.genai import types

    try:
        given = json.loads(turn.content)
    except ValueError:
        given = turn.content
    # An id goes back to whom it came from: some models give none, and ours is for us.
    ids = {part.function_call.id for part in (calling and calling.parts) or [] if part.function_call}
    return types.FunctionResponse(
        id=turn.tool_call_id if turn.tool_call_id in ids else None,
        name=turn.name,
        response=given if isinstance(given, dict) else {"result": given},
    )
