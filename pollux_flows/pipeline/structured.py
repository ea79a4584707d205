"""Structured: an answer's text as data of the shape that was asked for."""

from __future__ import annotations

import json
import time
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from pollux_flows.options import Options, walk_core_schema
from pollux_flows.pipeline.time_limit import TimeUp, each_in_time
from pollux_flows.plain import plain
from pollux_flows.result import Answer
from pollux_flows.schemas.conformance import Conformance

_FENCE: Final = "```"
_FENCE_STARTS: Final = {_FENCE, f"{_FENCE}json"}
LONGEST_S: Final = 30.0
"""How long one answer may be read, unless timeout_s is shorter. An ordinary one takes less than a millisecond."""
# Pydantic tries every combination of the branches of nested unions, in one go that nothing interrupts. A quarter of a
# million steps take it about a second.
_MOST_STEPS: Final = 250_000
# A set or a dict of numbers compares each with all others when their hashes are equal, and such numbers are easy to
# compute. So many comparisons take Pydantic half a second, in one go as well. Hashes of text are secret.
_MOST_COMPARISONS: Final = 10_000_000
_SECRET_HASHES: Final = {"str", "literal", "enum"}


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
    """Each answer as data of the asked-for shape; None where no shape was asked for.

    A caller's validators run once an answer, and none of them for longer than `limit_s`.
    """
    schema = options.response_json_schema()
    if schema is None:
        return None
    limit_s = min(limit_s, LONGEST_S)
    read = partial(_read, Conformance(schema, limit_s=limit_s), options.response_model())
    texts = [None if answer is None or not answer.text.strip() else answer.text for answer in answers]
    return each_in_time(read, texts, limit_s=limit_s, late=_late(limit_s))


def read_instances(model: type[BaseModel], values: Sequence[Any], *, limit_s: float = LONGEST_S) -> list[Reading]:
    """Each value, read before, as an instance of the caller's model."""
    make = partial(_guarded, partial(_instance, Conformance(model.model_json_schema()), model))
    return each_in_time(make, values, limit_s=limit_s, late=_late(limit_s))


def shape_warning(index: int, problem: str) -> str:
    return f"The answer to prompts[{index}] does not fit response_schema: {problem}"


TOOLS_S: Final = 1.0
"""How long the arguments of all tool calls of one answer may be looked at."""


def tool_arguments(tools: Sequence[dict[str, Any]], name: str, arguments: str, *, deadline: float) -> str:
    """A tool call's arguments, without the nulls that strict mode asks for in place of what is left out.

    As the model wrote them once `deadline` (of the monotonic clock) has passed: an answer may have a thousand calls.
    """
    schema = next((tool.get("parameters") for tool in tools if tool["name"] == name), None)
    left_s = deadline - time.monotonic()
    if not schema or left_s <= 0:
        return arguments
    try:
        value = Conformance(schema, limit_s=left_s).without_invented_nulls(plain(json.loads(arguments)))
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError, TimeoutError):
        return arguments  # the caller who runs the tool sees what the model wrote


def _late(limit_s: float) -> Reading:
    return Reading(
        problem=f"it took longer than {limit_s:g} seconds to check. Look for a loop or a slow pattern in the schema's "
        "validators. `answers` has its text."
    )


def _read(conformance: Conformance, model: type[BaseModel] | None, text: str | None) -> Reading:
    return Reading() if text is None else _guarded(partial(_parse, conformance, model), text)


def _guarded(read: Callable[[Any], Reading], value: Any) -> Reading:
    try:
        return read(value)
    except (KeyboardInterrupt, SystemExit, CancelledError, TimeUp):
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
        return _instance(conformance, model, value)
    found = conformance.problems(value)
    return Reading(problem="; ".join(found)) if found else Reading(value)


def _strip_fence(text: str) -> str:
    """Return the JSON without the Markdown fence that models put around it where no schema binds them.

    Not with `re`: its engine cannot be stopped, and over many blank lines it takes the cube of their number.
    """
    first, _, rest = text.strip().partition("\n")
    is_fenced = first.rstrip() in _FENCE_STARTS and rest.endswith(_FENCE)
    return rest.removesuffix(_FENCE) if is_fenced else text


def _instance(conformance: Conformance, model: type[BaseModel], value: Any) -> Reading:
    if value is None or isinstance(value, model):
        return Reading(value, value)
    if conformance.count_steps(value) > _MOST_STEPS:
        return Reading(
            problem=f"it is nested too deeply in a union whose branches {model.__name__} would try one by one. Tell "
            "the branches apart by a field: Field(discriminator=…)."
        )
    if _hashes_numbers(model) and _count_comparisons(value) > _MOST_COMPARISONS:
        return Reading(
            problem=f"it has too many items for the sets, or dicts by number, of {model.__name__}. Use lists, or text."
        )
    try:
        # As JSON, so that dates, enums and the like are read as the model reads them from JSON.
        return Reading(value, model.model_validate_json(json.dumps(value)))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors(include_url=False)
        ]
        return Reading(problem="; ".join(problems))


@lru_cache(maxsize=64)
def _hashes_numbers(model: type[BaseModel]) -> bool:
    """Return whether the model has sets, or dicts whose keys are other than text."""
    for schema, _ in walk_core_schema(model.__pydantic_core_schema__):
        if schema["type"] in {"set", "frozenset"}:
            hashed = schema.get("items_schema", {})
        elif schema["type"] == "dict" and "keys_schema" in schema:
            hashed = schema["keys_schema"]
        else:
            continue
        if hashed.get("type") not in _SECRET_HASHES:
            return True
    return False


def _count_comparisons(value: Any) -> int:
    """Count the comparisons that tell the items of each list and object apart, should all hashes be equal."""
    ahead, count = [value], 0
    while ahead:
        each = ahead.pop()
        if isinstance(each, dict | list):
            count += len(each) ** 2
            ahead.extend(each.values() if isinstance(each, dict) else each)
    return count
