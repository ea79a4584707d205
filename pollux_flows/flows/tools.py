"""Tools: typed Python functions, named by import string, that a model may call.

Pydantic derives the declaration from the signature, and validates the arguments against it. Validation errors are
returned to the model, which can correct its arguments. A tool that raises fails the run, as an outage should; to
report a problem to the model, return it as text.
"""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from typing import Any, Final, cast

from prefect import get_run_logger, task
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from pollux_flows.access import check_tool
from pollux_flows.address import redact_text
from pollux_flows.daemon_thread import start_daemon
from pollux_flows.errors import ConfigurationError, ToolError
from pollux_flows.import_string import IMPORT_STRING, import_named
from pollux_flows.plain import replace_surrogates
from pollux_flows.tasks import UNSTORED

# About a quarter of a large context.
_LONGEST_RESULT: Final = 1_000_000
_RETRY: Final = (
    "Correct the tool where the flow runs, and retry this run: it calls the tool again. Answers are reused as long as "
    "the names, parameters and docstrings of its tools stay the same."
)


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    import_string: str
    function: Callable[..., Any]
    arguments: TypeAdapter[Any]
    """Reads a JSON object as the positional and the named arguments of the function."""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def declaration(self) -> dict[str, Any]:
        """The declaration of the tool that is sent to the model."""
        described = {"description": doc} if (doc := inspect.getdoc(self.function)) else {}
        return {"name": self.name, **described, "parameters": self.arguments.json_schema()}

    def find_problem(self, arguments: str) -> str | None:
        """Return a message for the model on why the arguments are invalid; None if they are valid."""
        try:
            self.arguments.validate_json(arguments)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, each['loc'])) or 'arguments'}: {each['msg']}"
                for each in error.errors(include_url=False, include_input=False)
            ]
            return f"Not called, as its arguments are invalid. {'; '.join(problems)}."
        return None


def load_tools(import_strings: Sequence[str]) -> list[Tool]:
    """Import the tools. Raises for a tool that cannot be imported or that this run may not use."""
    tools = [load_tool(each) for each in import_strings]
    names = [tool.name for tool in tools]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ConfigurationError(
            f"Two tools are named {min(doubled)!r}.", hint="A model tells tools apart by name: rename one of them."
        )
    return tools


def load_tool(import_string: str) -> Tool:
    """Import one tool, if this run may use it."""
    if not isinstance(import_string, str) or not IMPORT_STRING.fullmatch(import_string):
        raise ConfigurationError(
            f"{import_string!r} does not name a tool.", hint="Write package.module:function, as text."
        )
    check_tool(import_string)
    tool = _import_tool(import_string)
    # A module also contains the functions that it imports, which allowing the module does not allow.
    check_tool(import_string, defined_in=tool.function.__module__)
    return tool


@lru_cache(maxsize=256)
def _import_tool(import_string: str) -> Tool:
    found = import_named(import_string, "The tool")
    return Tool(import_string, found, _read_signature(import_string, found))


def _read_signature(import_string: str, function: Any) -> TypeAdapter[Any]:
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise ConfigurationError(
            f"The tool {import_string!r} is not a Python function.", hint="Name a function, or wrap it in one."
        )
    parameters = inspect.signature(function).parameters
    untyped = [name for name, each in parameters.items() if each.annotation is inspect.Parameter.empty]
    if untyped:
        raise ConfigurationError(
            f"The parameter {untyped[0]} of the tool {import_string!r} has no type annotation.",
            hint=f"Annotate it, such as {untyped[0]}: str. The type is part of what the model sees.",
        )

    @wraps(function)
    def read(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    try:
        # Pydantic validates the arguments of a function and then calls it. This function only returns them.
        arguments = TypeAdapter[Any](cast(Any, read))
        schema = arguments.json_schema()
    except Exception as error:  # noqa: BLE001 (a type may write its schema itself)
        raise ConfigurationError(
            f"The arguments of the tool {import_string!r} have no JSON Schema: {error}",
            hint="Use types that JSON has: text, numbers, booleans, lists, dicts and Pydantic models of them.",
        ) from None
    if schema.get("type") != "object":
        raise ConfigurationError(
            f"The tool {import_string!r} has positional-only or variadic parameters, and a model passes all by name.",
            hint="Write it without * and / in its parameters.",
        )
    return arguments


@task(name="tool", task_run_name="tool {import_string}", **UNSTORED)
async def call_tool(import_string: str, arguments: str, timeout_s: float) -> str:
    """Call a tool with valid arguments, and return its result as text."""
    tool = load_tool(import_string)
    try:
        result = await _call(tool, arguments, timeout_s)
        text = result if isinstance(result, str) else to_json(result).decode()
    except _LateError:
        raise ToolError(f"The tool {tool.name!r} took longer than {timeout_s:g} seconds.", hint=_RETRY) from None
    except PydanticSerializationError as error:
        raise ToolError(
            f"The result of the tool {tool.name!r} is not JSON: {error}.", hint="Return text, or JSON types."
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a tool may raise anything)
        where = redact_text("".join(traceback.format_exception(error)))
        get_run_logger().error("The tool %s failed.\n%s", tool.name, where)
        problem = f"{type(error).__name__}: {redact_text(str(error))}"
        raise ToolError(f"The tool {tool.name!r} failed: {problem}.", hint=_RETRY) from None
    if len(text) > _LONGEST_RESULT:
        raise ToolError(
            f"The result of the tool {tool.name!r} has {len(text):,} characters; the limit is {_LONGEST_RESULT:,}.",
            hint="Return only what the model needs.",
        )
    return str(replace_surrogates(text))


class _LateError(Exception):
    """A tool has not returned in time."""


async def _call(tool: Tool, arguments: str, timeout_s: float) -> Any:
    args, kwargs = tool.arguments.validate_json(arguments)
    call = partial(tool.function, *args, **kwargs)
    is_async = inspect.iscoroutinefunction(tool.function)
    calling = call() if is_async else asyncio.wrap_future(start_daemon(call, "pollux-tool"))
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await calling
    except TimeoutError:  # may also be the tool's own
        if limit.expired():
            raise _LateError from None
        raise
