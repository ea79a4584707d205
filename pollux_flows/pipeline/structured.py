"""Structured: an answer's text as data of the shape that was asked for."""

from __future__ import annotations

import json
import re
from asyncio import CancelledError
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from pollux_flows.options import Options
from pollux_flows.plain import plain
from pollux_flows.providers.validation import problems, without_invented_nulls
from pollux_flows.result import Answer

_FENCED: Final = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


def structured_answers(options: Options, answers: Sequence[Answer | None]) -> tuple[list[Any] | None, list[str]]:
    """The answers as JSON values of the asked-for shape; None, and a warning that says why, for each of another."""
    schema = options.response_json_schema()
    if schema is None:
        return None, []
    model = options.response_model()
    values: list[Any] = []
    warnings = []
    for index, answer in enumerate(answers):
        value, problem = None, None
        if answer is not None and answer.text.strip():
            value, problem = _read(answer.text, schema, model)
        values.append(value)
        if problem:
            warnings.append(f"The answer to prompts[{index}] does not fit response_schema: {problem}")
    return values, warnings


def instance(model: type[BaseModel], value: Any) -> Any:
    """The value as the caller's own type."""
    # As JSON, so that dates, enums and the like are read as the model reads them from JSON.
    return value if isinstance(value, model) else model.model_validate_json(json.dumps(value))


def tool_arguments(tools: Sequence[dict[str, Any]], name: str, arguments: str) -> str:
    """A tool call's arguments, without the nulls that strict mode asks for in place of what is left out."""
    schema = next((tool.get("parameters") for tool in tools if tool["name"] == name), None)
    if not schema:
        return arguments
    try:
        return json.dumps(without_invented_nulls(plain(json.loads(arguments)), schema), ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments  # whoever runs the tool sees what the model wrote


def _read(text: str, schema: dict[str, Any], model: type[BaseModel] | None) -> tuple[Any, str | None]:
    try:
        return _checked(text, schema, model)
    except (KeyboardInterrupt, SystemExit, CancelledError):
        raise
    except BaseException as error:  # noqa: BLE001 (a caller's validator may raise anything, pydantic's core may panic)
        # The answer is paid for: whatever goes wrong while it is looked at, its text stays.
        return None, f"it could not be looked at ({type(error).__name__}: {error})."


def _checked(text: str, schema: dict[str, Any], model: type[BaseModel] | None) -> tuple[Any, str | None]:
    # Where a provider cannot be held to the schema, models like to put their JSON into a Markdown fence.
    fenced = _FENCED.fullmatch(text)
    try:
        value = plain(json.loads(fenced.group(1) if fenced else text))
    except ValueError as error:
        return None, f"it is no JSON ({error})."
    except RecursionError:
        return None, "it is nested without end."
    value = without_invented_nulls(value, schema)
    if model is None:
        found = problems(value, schema)
        return (None, "; ".join(found)) if found else (value, None)
    try:
        instance(model, value)
    except ValidationError as error:
        said = [f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors(include_url=False)]
        return None, "; ".join(said)
    return value, None
