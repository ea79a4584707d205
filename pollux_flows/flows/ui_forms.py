"""UI forms: the parameters of flows as the Prefect UI shows them in a form.

Prefect generates the form from the signature of a flow. The signature made here differs from that of the function: it
has titles, rare parameters come last, an optional text or number is one input instead of two tabs, and a source and
the options show the fields that people set most, with the others folded into one card.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, cast, get_args, get_origin

from prefect.utilities.callables import parameter_docstrings
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import MISSING

from pollux_flows.blocks.budget import PolluxBudget
from pollux_flows.blocks.deferred_job import PolluxDeferredJob
from pollux_flows.errors import ConfigurationError, SourceError
from pollux_flows.frames import Column
from pollux_flows.options import Options
from pollux_flows.source import Source, SourceType, VideoSettings

_TITLES: Final = {
    "prompts_from": "Prompts from",
    "answer_column": "Column for the answers",
    "id_column": "Id column",
    "if_exists": "When the output exists",
    "limit": "Rows at most",
    "require_approval": "Wait for approval",
    "rows_per_chunk": "Rows per task run",
    "max_age": "Max age (seconds)",
    "max_cost_usd": "Budget (USD)",
    "budget": "Shared budget",
    "on_partial": "When some prompts fail",
    "on_lost": "When the batch seems lost",
    "reuse": "Reuse answers",
    "ttl_seconds": "Lifetime (seconds)",
    "tool_timeout_s": "Tool timeout (seconds)",
}
_LEAST: Final = {"max_age": 0, "max_cost_usd": 0, "max_rounds": 1, "ttl_seconds": 1}
"""The minimum of a number, which the form checks before a run is started."""
REQUIRED: Final[Any] = MISSING
"""The default of a required parameter that follows an optional one."""
_FIRST: Final = (
    "table",
    "prompt",
    "prompts",
    "prompts_from",
    "provider",
    "conversation",
    "sources",
    "options",
    "job",
    "jobs",
)
_HIDDEN: Final = {"calls_per_task"}
_SWITCH: Final = {"on": True, "off": False}
_FIELD_TYPES: Final[dict[str, dict[str, Any]]] = {
    "text": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "yes or no": {"type": "boolean"},
    "list of texts": {"type": "array", "items": {"type": "string"}},
    "list of numbers": {"type": "array", "items": {"type": "number"}},
}


def form_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature that Prefect generates the form of a flow from."""
    descriptions = parameter_docstrings(inspect.getdoc(function))
    parameters = inspect.signature(function, eval_str=True).parameters
    order = [*(name for name in _FIRST if name in parameters), *(name for name in parameters if name not in _FIRST)]
    return inspect.Signature([_describe(parameters[name], descriptions.get(name)) for name in order])


def _describe(parameter: inspect.Parameter, description: str | None) -> inspect.Parameter:
    name, annotation, default = parameter.name, parameter.annotation, parameter.default
    if default is REQUIRED:
        default = inspect.Parameter.empty
    if default is None and (one := _without_none(annotation)) is not None:
        annotation, default = one, MISSING
    if name in _HIDDEN:
        annotation, default = Annotated[annotation, cast(Any, SkipJsonSchema)()], MISSING
    title = _TITLES.get(name, name.replace("_", " ").capitalize())
    field = Field(
        default=... if default is inspect.Parameter.empty else default,
        description=description,
        json_schema_extra={"title": title, **({"minimum": _LEAST[name]} if name in _LEAST else {})},
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field, annotation=annotation)


def _without_none(annotation: Any) -> Any:
    """Return X of `X | None` if a single input can show it; None otherwise."""
    if get_origin(annotation) not in {Union, UnionType}:
        return None
    types = [each for each in get_args(annotation) if each is not NoneType]
    simple, generic = {str, int, float, PolluxBudget}, {Literal, Sequence}
    is_simple = len(types) == 1 and (types[0] in simple or get_origin(types[0]) in generic)
    return types[0] if is_simple else None


def _read_source(value: Any) -> Any:
    """Read a source in the shape that the form, or a caller of the API, sends."""
    if isinstance(value, str):
        return Source.from_pasted(value)
    if not isinstance(value, Mapping) or not {"paste", "details"} & value.keys():
        return value
    details = {name: each for name, each in (value.get("details") or {}).items() if each is not None}
    if not (pasted := str(value.get("paste") or "").strip()):
        raise SourceError("A source is empty.", hint="Paste a path, an address, an arXiv id or text, or remove it.")
    if kind := details.pop("source_type", None):
        source = {"source_type": kind, "text" if kind in {"text", "json"} else "uri": pasted}
    else:
        source = Source.from_pasted(str(value["paste"])).model_dump(exclude_defaults=True, exclude={"mime_type"})
    if video := {name: details.pop(name) for name in ("start_offset", "end_offset", "fps") if name in details}:
        source["gemini_video"] = video
    return {**source, **details}


def _read_options(value: Any) -> Any:
    """Read options in the shape that the form sends."""
    if not isinstance(value, Mapping):
        return value
    flat = {**value, **(value.get("more") or {})}
    flat.pop("more", None)
    if isinstance(caching := flat.get("implicit_caching"), str):
        flat["implicit_caching"] = _SWITCH.get(caching, caching)
    if isinstance(fields := flat.get("response_schema"), Sequence) and not isinstance(fields, str):
        flat["response_schema"] = _schema_of_fields(fields)
    return flat


def _schema_of_fields(fields: Sequence[Any]) -> dict[str, Any]:
    """Return the JSON Schema of an object with these fields, each with a name, a type and a description."""
    properties: dict[str, Any] = {}
    for number, each in enumerate(fields, start=1):
        field = each if isinstance(each, Mapping) else {}
        name, kind = str(field.get("name") or "").strip(), field.get("type") or "text"
        if not name or name in properties or kind not in _FIELD_TYPES:
            raise ConfigurationError(
                f"Field {number} of the structured answer is not usable: name {name!r}, type {kind!r}.",
                hint=f"Give each field a unique name, and one of the types {', '.join(_FIELD_TYPES)}.",
            )
        described = {"description": field["description"]} if field.get("description") else {}
        properties[name] = {**_FIELD_TYPES[kind], **described}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _input(model: type[BaseModel], name: str, title: str | None = None, **shown: Any) -> Any:
    """Return the field `name` of a model as one input, without a default, so that no tab for None is shown."""
    description = model.model_fields[name].description
    title = title or name.replace("_", " ").capitalize()
    return Field(default=MISSING, title=title, description=description, json_schema_extra=shown)


def _choice(model: type[BaseModel], name: str, choices: Iterable[str], title: str | None = None) -> Any:
    """Return the field `name` of a model as a dropdown."""
    return _input(model, name, title, enum=[*choices])


def _tab(title: str) -> Any:
    return Field(title=title)


_None = Annotated[None, _tab("hide")]


# The form shows the docstrings of the cards below.
class _Details(BaseModel):
    """Unset fields follow from the source."""

    model_config = ConfigDict(title="show")

    source_type: str = _choice(Source, "source_type", get_args(SourceType), "Kind")
    mime_type: str = _input(Source, "mime_type", "MIME type")
    identifier: str = _input(Source, "identifier", "Name")
    start_offset: str = _input(VideoSettings, "start_offset")
    end_offset: str = _input(VideoSettings, "end_offset")
    fps: float = _input(VideoSettings, "fps", "Frames a second", exclusiveMinimum=0, maximum=24)
    gemini_url_context: bool = _input(Source, "gemini_url_context", "Gemini opens the address itself")


class _SourceCard(BaseModel):
    """A file, an address or a text that the prompts are about."""

    model_config = ConfigDict(title="Source")

    paste: str = Field(
        default=cast(Any, MISSING),
        title="Source",
        description="A path, an address, a YouTube link, an arXiv id, or the text itself.",
    )
    details: _None | _Details = Field(default=None, title="Details")


class _AnswerField(BaseModel):
    """A field of a structured answer."""

    name: str = Field(title="Name")
    type: str = Field(default="text", title="Type", json_schema_extra={"enum": [*_FIELD_TYPES]})
    description: str = Field(default=cast(Any, MISSING), title="Description")


class _RareOptions(BaseModel):
    """Unset fields use the provider's default."""

    model_config = ConfigDict(title="show")

    top_p: float = _input(Options, "top_p", exclusiveMinimum=0, maximum=1)
    reasoning_budget_tokens: int = _input(Options, "reasoning_budget_tokens", minimum=0)
    implicit_caching: str = _choice(Options, "implicit_caching", [*_SWITCH, "warm"], "Prompt caching")
    cache_ttl: str = _choice(Options, "cache_ttl", ["5m", "1h"], "Lifetime of prompt caching")
    tools: list[dict[str, Any]] = _input(Options, "tools")
    tool_choice: str = _choice(Options, "tool_choice", ["auto", "required", "none"])
    provider_options: dict[str, Any] = _input(Options, "provider_options", "Fields of the provider's own")


class _OptionsCard(BaseModel):
    """Unset fields use the provider's default."""

    model_config = ConfigDict(title="set")

    system_instruction: str = _input(Options, "system_instruction")
    response_schema: (
        Annotated[None, _tab("text")]
        | Annotated[list[_AnswerField], _tab("fields")]
        | Annotated[str, _tab("import string")]
        | Annotated[dict[str, Any], _tab("JSON Schema")]
    ) = Field(default=None, title="Structured answer", description="Fields, a Pydantic model by name, or JSON Schema.")
    # None is among the values as a program that sends its Options as JSON sends None for unset fields, and the server
    # validates by this schema. The V1 UI leaves None out of the dropdown; the V2 UI shows a text field.
    reasoning_effort: str = _input(
        Options, "reasoning_effort", enum=["none", "minimal", "low", "medium", "high", "xhigh", "max", None]
    )
    max_tokens: int = _input(Options, "max_tokens", minimum=1)
    temperature: float = _input(Options, "temperature", minimum=0, maximum=2)
    more: _None | _RareOptions = Field(default=None, title="More")


def _read_job(value: Any) -> Any:
    """Return the name of a job, which the form may send as a block."""
    return value.job.get("name") if isinstance(value, PolluxDeferredJob) else value


if TYPE_CHECKING:
    PromptsField = Sequence[str] | Column
else:  # a dataframe column becomes a list before Prefect sees it
    PromptsField = Sequence[str]

# The cards only define the form; the functions above read what it sends.
SourceField = Annotated[Source, BeforeValidator(_read_source, json_schema_input_type=_SourceCard)]
"""A source: the document, a text that its kind is guessed from, or the shape that the form sends."""
OptionsField = Annotated[
    Options | None,
    BeforeValidator(
        _read_options, json_schema_input_type=_OptionsCard | Annotated[None, _tab("defaults of the provider")]
    ),
]
"""Options, or the shape that the form sends."""
JobField = Annotated[
    str, BeforeValidator(_read_job, json_schema_input_type=PolluxDeferredJob | Annotated[str, _tab("name")])
]
"""The name of a PolluxDeferredJob, or the block itself."""
