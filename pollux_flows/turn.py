"""Turn: what one side of a conversation said, as it stands in a history."""

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
# As ours, or nested as OpenAI's chat completions have it.
_CALL_FIELDS: Final = {"id", "name", "arguments", "type", "function", "index"}
_ROLES: Final = (
    "Write {'role': 'user', 'content': …}; roles are user, assistant and tool. What the model is told before the "
    "prompt goes into system_instruction."
)
_BETWEEN: Final = "\n\n"


class Attached(Document):
    """A source that a turn was about and that is no text; of a file, also what was in it."""

    source: Source
    sha256: str | None = None


class Turn(Document):
    """One turn. Its text is what a person reads; `sources` tells which of it was asked and which was shown."""

    role: Role
    content: Text = ""
    tool_calls: list[ToolCall] = Field(default_factory=list, description="What the assistant wants called.")
    tool_call_id: Text | None = Field(default=None, description="Of a tool's result: the call that it answers.")
    name: Text | None = Field(default=None, description="Of a tool's result: the tool.")
    sources: list[Annotated[StrictInt, Field(ge=0)] | Attached] = Field(
        default_factory=list,
        description="What a user's turn was about, in order: of a text, so many characters of `content`.",
    )
    cache: Text | None = Field(default=None, description="The cached content that it was about.")
    provider_state: JsonObject | None = Field(
        default=None, description="Of an assistant's turn: what the provider wants back as it came."
    )

    @classmethod
    def of_user(cls, prompt: str | None, about: Sequence[str | Attached], cache: str | None = None) -> Turn:
        """What was asked, after what it was asked about."""
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
    def says_nothing(self) -> bool:
        return not (self.content.strip() or self.tool_calls or self.sources or self.cache or self.provider_state)

    def came(self, name: str) -> list[dict[str, Any]]:
        """What the provider wants back of that, or nothing: another provider's state says nothing to this one."""
        kept = (self.provider_state or {}).get(name) or []
        if not isinstance(kept, list) or not all(isinstance(piece, dict) for piece in kept):
            raise ConfigurationError(
                f"The provider_state of an assistant's turn is not what came ({name}).",
                hint="Pass the turn as it came, or leave provider_state out of it.",
            )
        return kept

    def pieces(self) -> tuple[list[str | Attached], str | None]:
        """The reverse of `of_user`: what it was about, and what was asked."""
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
        """As plain JSON, the way it stands in a history."""
        return {"role": self.role, "content": self.content} | self.model_dump(mode="json", exclude_defaults=True)


def read_turns(items: Iterable[Any], name: str = "history") -> list[Turn]:
    """The turns of a history, or an error that says which is none, and why."""
    return [_read(item, f"{name}[{index}]") for index, item in enumerate(items)]


def in_order(turns: Sequence[Turn], name: str = "history", first: int = 0) -> tuple[list[Turn], list[ToolCall]]:
    """The turns, each turn's tool results in the order of its calls; and the calls that wait for their results.

    A result must answer a call of the turn before it, each call once, and all of them before anything else is said.
    """
    ordered: list[Turn] = []
    calls: list[ToolCall] = []
    results: dict[str, Turn] = {}
    for index, turn in enumerate(turns, first):
        if turn.role == "tool":
            _check_result(turn, calls, results, f"{name}[{index}]")
            results[str(turn.tool_call_id)] = turn
            continue
        _check_complete(calls, results, f"{name}[{index}] says something else")
        ordered += _sorted(calls, results)
        if not turn.says_nothing:
            ordered.append(turn)
        calls, results = turn.tool_calls, {}
    if results:
        _check_complete(calls, results, f"{name} ends")
        return [*ordered, *_sorted(calls, results)], []
    return ordered, calls


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """A call's arguments as the object that they are, for providers that take nothing else."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ConfigurationError(
            f"The arguments of the tool call {call.id!r} ({call.name}) in the conversation are no JSON object.",
            hint="Correct them in history, or leave that call and its result out.",
        )
    return arguments


def _read(item: Any, where: str) -> Turn:
    role = item.get("role") if isinstance(item, dict) else None
    if not isinstance(role, str):
        raise ConfigurationError(f"{where} says not whose turn it was.", hint=_ROLES)
    if role not in get_args(Role):
        raise ConfigurationError(f"{where} has the role {role!r}.", hint=_ROLES)
    given = {name: value for name, value in item.items() if value is not None}
    if unknown := given.keys() - _FIELDS[role]:
        raise ConfigurationError(
            f"{where} is a turn of role {role} with a field {min(unknown)!r}, which nobody would send.",
            hint=f"Its fields are {', '.join(sorted(_FIELDS[role]))}.",
        )
    if not isinstance(given.get("content", ""), str):
        raise ConfigurationError(
            f"{where}.content is of type {type(given['content']).__name__}, not text.",
            hint="Write the result as text: json.dumps(…)."
            if role == "tool"
            else "Write text. Files and addresses go along as sources, with the prompt that asks about them.",
        )
    if "tool_calls" in given:
        given["tool_calls"] = _calls(given["tool_calls"], f"{where}.tool_calls")
    if role == "tool" and not (isinstance(given.get("tool_call_id"), str) and given["tool_call_id"]):
        raise ConfigurationError(
            f"{where} says not which tool call it is the result of.",
            hint="Write its id into tool_call_id, as in envelope.tool_calls.",
        )
    try:
        turn = Turn.model_validate(given)
    except PolluxError as error:
        problem = error.message
        turn = None
    if turn is None:
        raise ConfigurationError(f"{where}: {problem}", hint="Pass the turn as it came, or leave that field out.")
    if role == "user" and turn.says_nothing:
        raise ConfigurationError(f"{where} says nothing.", hint="Write what was said into content, or leave it out.")
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
    said: dict[str, Any] = item if isinstance(item, dict) else {}
    nested = said.get("function")
    function = nested if isinstance(nested, dict) else said
    arguments = function.get("arguments")
    call = {"id": said.get("id"), "name": function.get("name")}
    if not all(isinstance(value, str) and value for value in call.values()) or said.keys() - _CALL_FIELDS:
        raise ConfigurationError(
            f"{where} is no tool call.",
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
            f"{where} is the result of the tool call {name!r}, which nobody made in the turn before.",
            hint=f"Calls that wait for a result: {waiting}."
            if waiting
            else "A result follows the assistant's turn that has the call in its tool_calls.",
        )


def _check_complete(calls: Sequence[ToolCall], results: dict[str, Turn], what: str) -> None:
    if missing := [f"{call.id!r} ({call.name})" for call in calls if call.id not in results]:
        raise ConfigurationError(
            f"{what} before there is a result of the tool call {', '.join(missing)}.",
            hint="Give the results of all calls of a turn together, an error as text too.",
        )


def _sorted(calls: Sequence[ToolCall], results: dict[str, Turn]) -> list[Turn]:
    """The results, each with the name of its tool."""
    return [results[call.id].model_copy(update={"name": call.name}) for call in calls if call.id in results]
