"""Structured: an answer's text as data of the shape that was asked for."""

from __future__ import annotations

import json
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from pollux_flows.options import Options
from pollux_flows.plain import plain
from pollux_flows.result import Answer
from pollux_flows.schemas.conformance import Conformance

_FENCE: Final = "```"
_FENCE_STARTS: Final = {_FENCE, f"{_FENCE}json"}
LONGEST_S: Final = 30.0
"""How long the patterns of one answer may be searched for, unless timeout_s is shorter."""


@dataclass(frozen=True)
class Reading:
    """An answer's text as data, or the problem that it has."""

    value: Any = None
    instance: Any = None
    """The value as the caller's own model, where there is one."""
    problem: str | None = None

    @property
    def typed(self) -> Any:
        """The instance of the caller's model, else the plain value."""
        return self.value if self.instance is None else self.instance


def read_answers(
    options: Options, answers: Sequence[Answer | None], *, limit_s: float = LONGEST_S
) -> list[Reading] | None:
    """Return each answer as data of the asked-for shape; None where no shape was asked for.

    A caller's validators run once an answer. They run in this process, without a time limit.
    """
    schema = options.response_json_schema()
    if schema is None:
        return None
    parse = partial(_parse, Conformance(schema, limit_s=min(limit_s, LONGEST_S)), options.response_model())
    return [
        Reading() if answer is None or not answer.text.strip() else _guarded(parse, answer.text) for answer in answers
    ]


def read_instances(model: type[BaseModel], values: Sequence[Any]) -> list[Reading]:
    """Return each value, read before, as an instance of the caller's model."""
    return [_guarded(partial(_instance, model), value) for value in values]


def shape_warning(index: int, problem: str) -> str:
    return f"The answer to prompts[{index}] does not fit response_schema: {problem}"


_TOOL_S: Final = 1.0  # for the patterns of one tool call


def tool_arguments(tools: Sequence[dict[str, Any]], name: str, arguments: str) -> str:
    """Return a tool call's arguments without the nulls that strict mode asks for in place of what is left out."""
    schema = next((tool.get("parameters") for tool in tools if tool["name"] == name), None)
    if not schema:
        return arguments
    try:
        value = Conformance(schema, limit_s=_TOOL_S).without_invented_nulls(plain(json.loads(arguments)))
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError, TimeoutError):
        return arguments  # the caller who runs the tool sees what the model wrote


def _guarded(read: Callable[[Any], Reading], value: Any) -> Reading:
    try:
        return read(value)
    except (KeyboardInterrupt, SystemExit, CancelledError):
        raise
    except BaseException as error:  # noqa: BLE001 (a caller's validator may raise anything, pydantic's core may panic)
        # The answer is paid for: whatever goes wrong while it is looked at, its text stays.
        return Reading(problem=f"it could not be looked at ({type(error).__name__}: {error}).")


def _parse(conformance: Conformance, model: type[BaseModel] | None, text: str) -> Reading:
    try:
        value = plain(json.loads(_strip_fence(text)))
    except ValueError as error:
        return Reading(problem=f"it is no JSON ({error}).")
    except RecursionError:
        return Reading(problem="it is nested without end.")
    value = conformance.without_invented_nulls(value)
    if model is not None:
        return _instance(model, value)
    found = conformance.problems(value)
    return Reading(problem="; ".join(found)) if found else Reading(value)


def _strip_fence(text: str) -> str:
    """Return the JSON without the Markdown fence that models put around it where no schema binds them.

    Not with `re`: its engine cannot be stopped, and over many blank lines it takes the cube of their number.
    """
    first, _, rest = text.strip().partition("\n")
    is_fenced = first.rstrip() in _FENCE_STARTS and rest.endswith(_FENCE)
    return rest.removesuffix(_FENCE) if is_fenced else text


def _instance(model: type[BaseModel], value: Any) -> Reading:
    if value is None or isinstance(value, model):
        return Reading(value, value)
    try:
        # As JSON, so that dates, enums and the like are read as the model reads them from JSON.
        return Reading(value, model.model_validate_json(json.dumps(value)))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors(include_url=False)
        ]
        return Reading(problem="; ".join(problems))
