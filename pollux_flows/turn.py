"""Turn: one message of a conversation's history."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, StrictInt

from pollux_flows.document import Document
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.plain import JsonObject, Text
from pollux_flows.result import ToolCall
from pollux_flows.source import Source

Role = Literal["user", "assistant", "tool"]

_FIELDS: Final[dict[str, set[str]]] = {
    "user": {"role", "content", "sources", "cache"},
    "assistant": {"role", "content", "tool_calls", "provider_state"},
    "tool": {"role", "content", "tool_call_id", "name"},
}
# The fields of our own form, and of the nested one of OpenAI's chat completions.
_CALL_FIELDS: Final = {"id", "name", "arguments", "type", "function", "index"}
_ROLES: Final = (
    "Write {'role': 'user', 'content': …}; roles are user, assistant and tool. Instructions to the model go into "
    "system_instruction."
)
_BETWEEN: Final = "\n\n"


class Attached(Document):
    """A source of a turn that is not text; for a file, with the hash of its content."""

    source: Source
    sha256: str | None = None


class Turn(Document):
    """One message of a conversation. `sources` says which parts of `content` are sources; the rest is the prompt."""

    role: Role
    content: Text = ""
    tool_calls: list[ToolCall] = Field(default_factory=list, description="The tool calls that the assistant requests.")
    tool_call_id: Text | None = Field(default=None, description="Of a tool's result: the call that it answers.")
    name: Text | None = Field(default=None, description="Of a tool's result: the tool.")
    sources: list[Annotated[StrictInt, Field(ge=0)] | Attached] = Field(
        default_factory=list,
        description="The sources of a user's turn, in order; a text is given as its number of characters in `content`.",
    )
    cache: Text | None = Field(default=None, description="The cached content that the turn is about.")
    provider_state: JsonObject | None = Field(
        default=None, description="Of an assistant's turn: data that must be sent back to the provider unchanged."
    )

    @classmethod
    def of_user(cls, prompt: str | None, about: Sequence[str | Attached], cache: str | None = None) -> Turn:
        """Make a user's turn: the sources, followed by the prompt."""
        texts = [piece for piece in about if isinstance(piece, str)]
        return cls(
            role="user",
            content=_BETWEEN.join([*texts, *([] if prompt is None else [prompt])]),
            sources=[len(piece) if isinstance(piece, str) else piece for piece in about],
            cache=cache,
        )

    @property
    def attached(self) -> list[Attached]:
        return [each for each in self.sources if isinstance(each, Attached)]

    @property
    def is_empty(self) -> bool:
        return not (self.content.strip() or self.tool_calls or self.sources or self.cache or self.provider_state)

    def read_provider_state(self, name: str) -> list[dict[str, Any]]:
        """Return this provider's items in `provider_state`; an empty list if there are none."""
        items = (self.provider_state or {}).get(name) or []
        if not isinstance(items, list) or not all(isinstance(piece, dict) for piece in items):
            raise ConfigurationError(
                f"The provider_state of an assistant's turn is not what the provider sent ({name}).",
                hint="Pass the turn unchanged, or leave provider_state out of it.",
            )
        return items

    def pieces(self) -> tuple[list[str | Attached], str | None]:
        """Return the sources and the prompt of a user's turn: the reverse of `of_user`."""
        about: list[str | Attached] = []
        rest = self.content
        for each in self.sources:
            if isinstance(each, Attached):
                about.append(each)
            else:
                about.append(rest[:each])
                rest = rest[each:].removeprefix(_BETWEEN)
        return about, rest or None

    def as_item(self) -> dict[str, Any]:
        """Return the turn as plain JSON, in the form that a history takes."""
        return {"role": self.role, "content": self.content} | self.model_dump(mode="json", exclude_defaults=True)


def read_turns(items: Iterable[Any], name: str = "history") -> list[Turn]:
    """Parse the turns of a history. Raises a ConfigurationError that names the first invalid one."""
    return [_read(item, f"{name}[{index}]") for index, item in enumerate(items)]


def in_order(turns: Sequence[Turn], name: str = "history", first: int = 0) -> tuple[list[Turn], list[ToolCall]]:
    """Return the turns, with tool results in the order of their calls, and the calls without a result.

    A result must answer a call of the turn before it, each call once, and all of them before the next turn.
    """
    ordered: list[Turn] = []
    calls: list[ToolCall] = []
    results: dict[str, Turn] = {}
    for index, turn in enumerate(turns, first):
        if turn.role == "tool":
            _check_result(turn, calls, results, f"{name}[{index}]")
            results[str(turn.tool_call_id)] = turn
            continue
        _check_complete(calls, results, f"{name}[{index}] continues")
        ordered += _order_results(calls, results)
        if not turn.is_empty:
            ordered.append(turn)
        calls, results = turn.tool_calls, {}
    if results:
        _check_complete(calls, results, f"{name} ends")
        return [*ordered, *_order_results(calls, results)], []
    return ordered, calls


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """Parse a call's arguments into a dict, for providers that accept only an object."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ConfigurationError(
            f"The arguments of the tool call {call.id!r} ({call.name}) in the conversation are not a JSON object.",
            hint="Correct them in history, or leave that call and its result out.",
        )
    return arguments


def _read(item: Any, where: str) -> Turn:
    role = item.get("role") if isinstance(item, dict) else None
    if not isinstance(role, str):
        raise ConfigurationError(f"{where} has no role.", hint=_ROLES)
    if role not in get_args(Role):
        raise ConfigurationError(f"{where} has the role {role!r}.", hint=_ROLES)
    fields = {name: value for name, value in item.items() if value is not None}
    if unknown := fields.keys() - _FIELDS[role]:
        raise ConfigurationError(
            f"{where} is a turn of role {role} with an unknown field {min(unknown)!r}.",
            hint=f"Its fields are {', '.join(sorted(_FIELDS[role]))}.",
        )
    if not isinstance(fields.get("content", ""), str):
        raise ConfigurationError(
            f"{where}.content is of type {type(fields['content']).__name__}, not text.",
            hint="Write the result as text: json.dumps(…)."
            if role == "tool"
            else "Write text. Pass files and addresses as sources of the prompt that is about them.",
        )
    if "tool_calls" in fields:
        fields["tool_calls"] = _calls(fields["tool_calls"], f"{where}.tool_calls")
    if role == "tool" and not (isinstance(fields.get("tool_call_id"), str) and fields["tool_call_id"]):
        raise ConfigurationError(
            f"{where} has no tool_call_id.",
            hint="Write the id of the call into tool_call_id, as in envelope.tool_calls.",
        )
    try:
        turn = Turn.model_validate(fields)
    except PolluxError as error:
        problem = error.message
        turn = None
    if turn is None:
        raise ConfigurationError(f"{where}: {problem}", hint="Pass the turn unchanged, or leave that field out.")
    if role == "user" and turn.is_empty:
        raise ConfigurationError(f"{where} is empty.", hint="Write its text into content, or leave the turn out.")
    return turn


def _calls(items: Any, where: str) -> list[ToolCall]:
    if not isinstance(items, list):
        raise ConfigurationError(f"{where} is of type {type(items).__name__}.", hint="Write a list of calls.")
    calls = [_call(item, f"{where}[{index}]") for index, item in enumerate(items)]
    names = [call.id for call in calls]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ConfigurationError(f"{where} has the id {min(doubled)!r} twice.", hint="Give each call its own id.")
    return calls


def _call(item: Any, where: str) -> ToolCall:
    fields: dict[str, Any] = item if isinstance(item, dict) else {}
    nested = fields.get("function")
    function = nested if isinstance(nested, dict) else fields
    arguments = function.get("arguments")
    call = {"id": fields.get("id"), "name": function.get("name")}
    if not all(isinstance(value, str) and value for value in call.values()) or fields.keys() - _CALL_FIELDS:
        raise ConfigurationError(
            f"{where} is not a tool call.",
            hint="Write {'id': …, 'name': …, 'arguments': …}, or, as OpenAI does, "
            "{'id': …, 'type': 'function', 'function': {'name': …, 'arguments': …}}.",
        )
    if not isinstance(arguments, str | dict | None):
        raise ConfigurationError(
            f"{where} has arguments of type {type(arguments).__name__}.", hint="Write a JSON object, or its text."
        )
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return ToolCall.model_validate({**call, "arguments": text or "{}"})


def _check_result(turn: Turn, calls: Sequence[ToolCall], results: dict[str, Turn], where: str) -> None:
    name = str(turn.tool_call_id)
    if name in results:
        raise ConfigurationError(
            f"{where} is a second result of the tool call {name!r}.", hint="Leave one of them out."
        )
    if name not in {call.id for call in calls}:
        waiting = ", ".join(repr(call.id) for call in calls)
        raise ConfigurationError(
            f"{where} is the result of the tool call {name!r}, which the turn before does not contain.",
            hint=f"Calls that wait for a result: {waiting}."
            if waiting
            else "A result follows the assistant's turn that has the call in its tool_calls.",
        )


def _check_complete(calls: Sequence[ToolCall], results: dict[str, Turn], what: str) -> None:
    if missing := [f"{call.id!r} ({call.name})" for call in calls if call.id not in results]:
        raise ConfigurationError(
            f"{what} before there is a result of the tool call {', '.join(missing)}.",
            hint="Add the results of all calls of a turn together; write an error as text too.",
        )


def _order_results(calls: Sequence[ToolCall], results: dict[str, Turn]) -> list[Turn]:
    """Return the results in the order of their calls, each with the name of its tool."""
    return [results[call.id].model_copy(update={"name": call.name}) for call in calls if call.id in results]
