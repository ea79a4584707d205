"""Structured answers: parse the text of an answer as data of the requested shape."""

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
"""The time limit for parsing one answer, unless timeout_s is shorter. An ordinary one takes less than a millisecond."""
# Pydantic tries every combination of the branches of nested unions, without being interruptible. A quarter of a
# million steps take about a second.
_MOST_STEPS: Final = 250_000
# A set or a dict of numbers with equal hashes compares each with all others, and such numbers are easy to compute. So
# many comparisons take Pydantic half a second, without being interruptible. Hashes of text are randomised.
_MOST_COMPARISONS: Final = 10_000_000
_SECRET_HASHES: Final = {"str", "literal", "enum"}


@dataclass(frozen=True)
class Reading:
    """The data parsed from an answer's text, or the problem with it."""

    value: Any = None
    instance: Any = None
    """The value as an instance of the caller's model, if there is one."""
    problem: str | None = None

    @property
    def typed(self) -> Any:
        """The instance of the caller's model, otherwise the plain value."""
        return self.value if self.instance is None else self.instance


def read_answers(
    options: Options, answers: Sequence[Answer | None], *, limit_s: float = LONGEST_S
) -> list[Reading] | None:
    """Parse each answer as data of the requested shape; None if no shape was requested.

    A caller's validators run once per answer, and for no longer than `limit_s`.
    """
    schema = options.response_json_schema()
    if schema is None:
        return None
    limit_s = min(limit_s, LONGEST_S)
    read = partial(_read, Conformance(schema, limit_s=limit_s), options.response_model())
    texts = [None if answer is None or not answer.text.strip() else answer.text for answer in answers]
    return each_in_time(read, texts, limit_s=limit_s, late=_late_reading(limit_s))


def read_instances(model: type[BaseModel], values: Sequence[Any], *, limit_s: float = LONGEST_S) -> list[Reading]:
    """Convert values that were parsed before into instances of the caller's model."""
    make = partial(_catch_errors, partial(_instance, Conformance(model.model_json_schema()), model))
    return each_in_time(make, values, limit_s=limit_s, late=_late_reading(limit_s))


def shape_warning(index: int, problem: str) -> str:
    return f"The answer to prompts[{index}] does not fit response_schema: {problem}"


TOOLS_S: Final = 1.0
"""The time limit for checking the arguments of all tool calls of one answer."""


def tool_arguments(tools: Sequence[dict[str, Any]], name: str, arguments: str, *, deadline: float) -> str:
    """Return a tool call's arguments, without the nulls that strict mode requires for omitted arguments.

    Once `deadline` (of the monotonic clock) has passed, they are returned unchanged, as an answer may have a thousand
    calls.
    """
    schema = next((tool.get("parameters") for tool in tools if tool["name"] == name), None)
    left_s = deadline - time.monotonic()
    if not schema or left_s <= 0:
        return arguments
    try:
        value = Conformance(schema, limit_s=left_s).without_invented_nulls(plain(json.loads(arguments)))
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError, TimeoutError):
        return arguments  # unchanged, for the caller who runs the tool


def _late_reading(limit_s: float) -> Reading:
    return Reading(
        problem=f"it took longer than {limit_s:g} seconds to check. Look for a loop or a slow pattern in the schema's "
        "validators. `answers` has its text."
    )


def _read(conformance: Conformance, model: type[BaseModel] | None, text: str | None) -> Reading:
    return Reading() if text is None else _catch_errors(partial(_parse, conformance, model), text)


def _catch_errors(read: Callable[[Any], Reading], value: Any) -> Reading:
    try:
        return read(value)
    except (KeyboardInterrupt, SystemExit, CancelledError, TimeUp):
        raise
    except BaseException as error:  # noqa: BLE001 (a caller's validator may raise anything, pydantic's core may panic)
        # The answer is paid for, so no error here may lose its text.
        return Reading(problem=f"it could not be parsed ({type(error).__name__}: {error}).")


def _parse(conformance: Conformance, model: type[BaseModel] | None, text: str) -> Reading:
    try:
        value = plain(json.loads(_strip_fence(text)))
    except ValueError as error:
        return Reading(problem=f"it is not JSON ({error}).")
    except RecursionError:
        return Reading(problem="it is nested too deeply.")
    value = conformance.without_invented_nulls(value)
    if model is not None:
        return _instance(conformance, model, value)
    found = conformance.problems(value)
    return Reading(problem="; ".join(found)) if found else Reading(value)


def _strip_fence(text: str) -> str:
    """Return the JSON without the Markdown fence that models may put around it where no schema is enforced.

    Without `re`, as its engine cannot be interrupted, and takes cubic time over many blank lines.
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
        # As JSON, so that dates, enums and so on are validated as from JSON.
        return Reading(value, model.model_validate_json(json.dumps(value)))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors(include_url=False)
        ]
        return Reading(problem="; ".join(problems))


@lru_cache(maxsize=64)
def _hashes_numbers(model: type[BaseModel]) -> bool:
    """Return whether the model has sets, or dicts with keys other than text."""
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
    """Count the comparisons of the items of each list and object if all their hashes were equal."""
    ahead, count = [value], 0
    while ahead:
        each = ahead.pop()
        if isinstance(each, dict | list):
            count += len(each) ** 2
            ahead.extend(each.values() if isinstance(each, dict) else each)
    return count
