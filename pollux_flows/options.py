"""Options: how a model is to answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Self, cast

from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    StrictBool,
    StrictFloat,
    StrictInt,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

from pollux_flows.access import are_schemas_postponed, check_schema
from pollux_flows.config import PROVIDERS
from pollux_flows.document import Document
from pollux_flows.errors import ConfigurationError
from pollux_flows.handles import CacheHandle
from pollux_flows.import_string import IMPORT_STRING, INSTALL_HINT, import_named
from pollux_flows.plain import JsonObject, Text, plain
from pollux_flows.result import STATE, ResultEnvelope
from pollux_flows.turn import read_turns

_TOOL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_TOOL_FIELDS: Final = {"name": str, "description": str, "parameters": dict, "strict": bool}
# The keys of a Pydantic core schema with values that are not schemas.
_NO_CORE_SCHEMA: Final = {"config", "metadata", "serialization", "default", "expected", "cls", "function"}
_TOKENS: Final = 2**31 - 1  # the most that providers accept


class _SchemaInForms:
    """The JSON Schema of `response_schema`, for forms: an import string, or a JSON Schema object."""

    def __get_pydantic_json_schema__(self, _core: Any, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]}


def _schema_as_json(value: type[BaseModel] | dict[str, Any] | str | None) -> dict[str, Any] | str | None:
    """Return the import string of a class or, if other processes cannot import it, its JSON Schema."""
    if not isinstance(value, type):
        return value
    name = f"{value.__module__}:{value.__qualname__}"
    try:
        importable = value.__module__ != "__main__" and _find_model(name) is value
    except ConfigurationError:
        importable = False
    return name if importable else value.model_json_schema()


class Options(Document):
    """How the model is to answer. Unset fields use the provider's default."""

    system_instruction: Text | None = Field(default=None, description="Instructions for the model, before the prompt.")
    response_schema: Annotated[Any, PlainSerializer(_schema_as_json), _SchemaInForms()] = Field(
        default=None,
        description="The answer's shape: a Pydantic model, its import string (my_pkg.models:Invoice), a JSON Schema.",
    )
    """The shape of the answer. A model's own validators run on text that a provider wrote. They are stopped after
    `timeout_s`, except in C code that does not return, such as Python's `re` with a pattern that backtracks."""
    tools: list[JsonObject] | None = Field(
        default=None, description="Functions the model may ask for: name, description, parameters, strict."
    )
    tool_choice: Literal["auto", "required", "none"] | dict[str, str] | None = Field(
        default=None, description="auto, required, none, or {'name': …} for one of the tools."
    )
    temperature: StrictFloat | None = Field(default=None, ge=0, le=2, description="From 0 (steady) to 2 (wild).")
    top_p: StrictFloat | None = Field(default=None, gt=0, le=1, description="The share of likely words to choose from.")
    reasoning_effort: Text | None = Field(default=None, description="How hard to think: low, medium, high, …")
    reasoning_budget_tokens: StrictInt | None = Field(
        default=None, ge=0, le=_TOKENS, description="How many tokens thinking may take."
    )
    # Kept out of logs: they are long, and may contain addresses whose query is secret.
    history: list[JsonObject] | None = Field(
        default=None,
        repr=False,
        description="The conversation so far, such as {'role': 'user', 'content': …}; an empty list begins one.",
    )
    continue_from: JsonObject | None = Field(
        default=None,
        repr=False,
        description="An earlier envelope, or its JSON, to go on from. Only its conversation is used.",
    )
    max_tokens: StrictInt | None = Field(default=None, gt=0, le=_TOKENS, description="The longest answer, in tokens.")
    # Text first, so that an invalid handle is refused with the error of CacheHandle.
    cache: Text | CacheHandle | None = Field(
        default=None, description="A cache to answer from: its handle or, in flows, run and run_many, its name."
    )
    implicit_caching: StrictBool | Literal["warm"] | None = Field(
        default=None,
        description="Prompt caching: on or off (Anthropic), or 'warm': the first call about the same sources goes "
        "alone and writes them to the provider's cache, the others follow and read. Empty: on for a single call.",
    )
    provider_options: dict[str, JsonObject] | None = Field(
        default=None,
        description="Fields for one provider's request, by provider, as that provider spells them.",
    )
    cache_ttl: Literal["5m", "1h"] | None = Field(
        default=None,
        description="How long the provider keeps what prompt caching writes: 5m or, for more money, 1h.",
    )

    @field_validator("response_schema")
    @classmethod
    def _usable_schema(cls, value: Any) -> Any:
        if isinstance(value, str) and IMPORT_STRING.fullmatch(value):
            if not are_schemas_postponed():
                _schema_of(_find_model(value))
        elif isinstance(value, type) and issubclass(value, BaseModel):
            _schema_of(value)
        elif isinstance(value, dict):
            return plain(value)
        elif value is not None:
            raise ConfigurationError(
                f"response_schema cannot be {value!r}."
                if isinstance(value, str)
                else f"response_schema cannot be of type {type(value).__name__}.",
                hint="Pass a Pydantic model class, a JSON Schema dict, or an import string like "
                "'my_pkg.models:Invoice'.",
            )
        return value

    @field_validator("reasoning_effort")
    @classmethod
    def _effort_in_lower_case(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ConfigurationError("reasoning_effort is blank.", hint="Write low, medium or high, or leave it out.")
        return value.strip().lower() if value else value

    @field_validator("tools")
    @classmethod
    def _usable_tools(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        names = [_check_tool(index, tool) for index, tool in enumerate(value or [])]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ConfigurationError(f"Two tools are named {doubled.pop()!r}.", hint="Give each tool a unique name.")
        return value

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _usable_choice(cls, value: Any) -> Any:
        one = isinstance(value, dict) and value.keys() == {"name"} and isinstance(value["name"], str)
        if value is None or one or (isinstance(value, str) and value in {"auto", "required", "none"}):
            return value
        raise ConfigurationError(
            "tool_choice is neither auto, required, none nor a tool's name.",
            hint="Write 'auto', 'required', 'none' or {'name': 'the_tool'}.",
        )

    @field_validator("history")
    @classmethod
    def _usable_turns(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        read_turns(value or [])
        return value

    @field_validator("continue_from", mode="before")
    @classmethod
    def _extract_conversation(cls, value: Any) -> Any:
        if isinstance(value, ResultEnvelope):
            value = value.model_dump(mode="json", include={"conversation_state"})
        # Options are stored with each run, and nothing else of the envelope is needed.
        return {STATE: value[STATE]} if isinstance(value, dict) and STATE in value else value

    @field_validator("cache")
    @classmethod
    def _usable_cache(cls, value: CacheHandle | str | None) -> CacheHandle | str | None:
        if value == "auto":
            raise ConfigurationError(
                "Options(cache='auto') names no cache.",
                hint="Pass cache='auto' to the flow, to run or to run_many instead of to its options.",
            )
        if isinstance(value, str) and not value.strip():
            raise ConfigurationError("cache is blank.", hint="Write the name of a PolluxCache, or leave cache out.")
        return value

    @field_validator("provider_options")
    @classmethod
    def _known_providers(cls, value: dict[str, dict[str, Any]] | None) -> dict[str, dict[str, Any]] | None:
        if unknown := set(value or {}) - set(PROVIDERS):
            raise ConfigurationError(
                f"provider_options has no provider {min(unknown)!r}.",
                hint=f"Its keys are {', '.join(PROVIDERS)}.",
            )
        return value

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.reasoning_effort is not None and self.reasoning_budget_tokens is not None:
            raise ConfigurationError(
                "reasoning_effort and reasoning_budget_tokens exclude each other.", hint="Keep one of them."
            )
        if self.history is not None and self.continue_from is not None:
            raise ConfigurationError("history and continue_from exclude each other.", hint="Keep one of them.")
        names = {tool["name"] for tool in self.tools or []}
        if self.tool_choice is not None and not names:
            raise ConfigurationError(
                "tool_choice is set, but there are no tools.",
                hint="Pass tools, or leave tool_choice out."
                if self.cache is None
                else "Leave tool_choice out: the cached tools decide.",
            )
        if isinstance(self.tool_choice, dict) and self.tool_choice["name"] not in names:
            raise ConfigurationError(
                f"tool_choice names {self.tool_choice['name']!r}, which is not among the tools.",
                hint=f"The tools are {', '.join(sorted(names))}.",
            )
        return self

    @property
    def cache_handle(self) -> CacheHandle | None:
        """The handle of the cache; None for the name of a cache, which is looked up before a request is made."""
        return self.cache if isinstance(self.cache, CacheHandle) else None

    def response_model(self) -> type[BaseModel] | None:
        """Return the Pydantic model of the structured answer, if there is one."""
        if isinstance(self.response_schema, str):
            return _find_model(self.response_schema)
        return self.response_schema if isinstance(self.response_schema, type) else None

    def response_json_schema(self) -> dict[str, Any] | None:
        """Return the shape of the answer as JSON Schema."""
        if model := self.response_model():
            return cast(dict[str, Any], json.loads(_schema_of(model)))
        schema: dict[str, Any] | None = self.response_schema
        return schema


@lru_cache(maxsize=64)  # called once for each row of a batch
def _schema_of(model: type[BaseModel]) -> str:
    """Return the JSON Schema of a model, as text. Refuses a model with patterns on which an answer could hang."""
    try:
        schema = json.dumps(plain(model.model_json_schema()))
        engine = model.model_config.get("regex_engine", "rust-regex")
        pattern = _find_backtracking_pattern(model.__pydantic_core_schema__, engine)
    except Exception as error:  # noqa: BLE001 (a model may write its schema itself)
        raise ConfigurationError(
            f"{model.__name__} has no JSON Schema to send as response_schema: {error}",
            hint="Use types that JSON has: text, numbers, booleans, lists, dicts and models of them.",
        ) from None
    if pattern is not None:
        raise ConfigurationError(
            f"{model.__name__} checks the pattern {pattern!r} with Python's re, which can backtrack endlessly on an "
            "answer and cannot be interrupted.",
            hint="Write the pattern as text, without re.compile and regex_engine='python-re'. If it needs look-around, "
            f"pass {model.__name__}.model_json_schema(), whose patterns are checked under timeout_s.",
        )
    return schema


def _find_backtracking_pattern(core_schema: Any, engine: str) -> str | None:
    """Return a pattern that Pydantic runs with Python's `re`, which holds the GIL, so that no deadline can end it.

    Patterns given as text are run by Rust's engine by default, which takes linear time.
    """
    for schema, default_engine in walk_core_schema(core_schema, engine):
        pattern = schema.get("pattern") if schema["type"] == "str" else None
        if isinstance(pattern, re.Pattern):
            return str(pattern.pattern)
        if pattern is not None and schema.get("regex_engine", default_engine) == "python-re":
            return str(pattern)
    return None


def walk_core_schema(core_schema: Any, engine: str = "rust-regex") -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each schema in a Pydantic core schema, with the regex engine that applies to it by default."""
    parts: Iterable[Any]
    if not isinstance(core_schema, dict):
        parts = core_schema if isinstance(core_schema, list | tuple) else ()
    elif not isinstance(core_schema.get("type"), str):  # a dict by name, such as fields
        parts = core_schema.values()
    else:
        if "config" in core_schema:  # the config of an inner model replaces that of the outer one
            engine = core_schema["config"].get("regex_engine", "rust-regex")
        yield core_schema, engine
        parts = [part for name, part in core_schema.items() if name not in _NO_CORE_SCHEMA]
    for part in parts:
        yield from walk_core_schema(part, engine)


def _find_model(name: str) -> type[BaseModel]:
    check_schema(name)
    found = import_named(name, "response_schema")
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise ConfigurationError(f"response_schema {name!r} is not a Pydantic model.", hint=INSTALL_HINT)
    return found


def _check_tool(index: int, tool: dict[str, Any]) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise ConfigurationError(
            f"tools[{index}] has no usable name: {name!r}.",
            hint="Write {'name': …, 'description': …, 'parameters': {JSON Schema}}; names have letters, digits, _, -.",
        )
    if unknown := tool.keys() - _TOOL_FIELDS:
        raise ConfigurationError(
            f"tools[{index}] ({name}) has an unknown field {min(unknown)!r}.",
            hint=f"A tool's fields are {', '.join(sorted(_TOOL_FIELDS))}.",
        )
    for field, value in tool.items():
        if not isinstance(value, _TOOL_FIELDS[field]):
            raise ConfigurationError(
                f"The {field} of tool {name!r} is of type {type(value).__name__}.",
                hint=f"Write a {_TOOL_FIELDS[field].__name__}, or leave it out.",
            )
    return name
