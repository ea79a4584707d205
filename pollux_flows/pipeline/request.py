"""Request: the prompts, sources and options of a run, validated and normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import AliasChoices, ConfigDict, Field

from pollux_flows import capabilities
from pollux_flows.config import Target
from pollux_flows.document import Document
from pollux_flows.errors import ConfigurationError, SourceError
from pollux_flows.frames import Column, column_to_list
from pollux_flows.options import Options
from pollux_flows.pipeline.conversation import Conversation, read_conversation
from pollux_flows.plain import Text
from pollux_flows.schemas import validation
from pollux_flows.source import Source

T = TypeVar("T")
_ARGUMENTS: Final = "Write {'type': 'object', 'properties': {'name': {'type': 'string'}}}."


class Request(Document):
    """Prompts and sources that passed all checks that can be made without a call to the provider.

    Every prompt is asked about all sources together or, with `each_source`, about each of them separately, or, with
    `sources_by_prompt`, about its own sources.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    prompts: list[Text | None]
    sources: list[Source]
    each_source: bool = False
    sources_by_prompt: list[list[int]] | None = Field(default=None, exclude_if=lambda lists: lists is None)
    target: Target
    options: Options
    # Stored as `said`, and left out if empty, as older versions did not have this field.
    history: Conversation = Field(
        default=Conversation(),
        validation_alias=AliasChoices("said", "history"),
        serialization_alias="said",
        exclude_if=lambda history: history.is_empty,
    )

    @property
    def every_source(self) -> list[Source]:
        """The sources of the prompts, then those that were attached to prior turns."""
        return [*self.sources, *(each.source for each in self.history.attached)]


def make_request(
    prompts: str | Sequence[str | None] | Column | None,
    *,
    target: Target,
    sources: Sequence[Source] = (),
    options: Options | None = None,
    each_source: bool = False,
    sources_by_prompt: Sequence[Sequence[int]] | None = None,
) -> Request:
    """Validate and normalise a request. An empty list of prompts is valid; `None` is one call without a prompt."""
    options = Options() if options is None else _check_type("options", options, Options)
    if isinstance(options.cache, str):
        raise ConfigurationError(
            f"The cache {options.cache!r} cannot be found by its name here.",
            hint="Names are for flows, run and run_many. Pass a handle, such as PolluxCache.load(…).handle.",
        )
    prompts = _prompts(prompts)
    history = read_conversation(options, target, prompts)
    request = Request(
        prompts=prompts,
        sources=check_sources(sources),
        each_source=each_source,
        sources_by_prompt=None if sources_by_prompt is None else [list(each) for each in sources_by_prompt],
        target=target,
        options=options,
        history=history or Conversation(),
    )
    if history is not None and (each_source or sources_by_prompt is not None):
        raise ConfigurationError(
            "A conversation cannot be about each source separately.", hint="Continue each of its envelopes separately."
        )
    is_answered = not request.history.turns or request.history.turns[-1].role == "assistant"
    if None in request.prompts and not request.sources and is_answered:
        raise ConfigurationError("There is nothing to send: no prompt and no source.", hint="Write a prompt.")
    _check_schema(request.options)
    asked_about = [range(len(request.sources))] if sources_by_prompt is None else {*map(tuple, sources_by_prompt)}
    for about in asked_about:
        its = [request.sources[index] for index in about]
        capabilities.check(request.target, request.options, its, request.history.turns)
    return request


def _prompts(prompts: Any) -> list[str | None]:
    prompts = column_to_list(prompts, "prompts")
    if prompts is None or isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(prompts, Mapping | bytes) or not isinstance(prompts, Sequence):
        raise ConfigurationError(
            f"prompts cannot be a {type(prompts).__name__}.",
            hint="Pass a string, a list of strings or a column of a table.",
        )
    for index, prompt in enumerate(prompts):
        where = "The prompt" if len(prompts) == 1 else f"prompts[{index}]"
        if prompt is not None and not isinstance(prompt, str):
            raise ConfigurationError(f"{where} is a {type(prompt).__name__}.", hint="Pass a string.")
        if prompt is not None and not prompt.strip():
            raise ConfigurationError(f"{where} is blank.", hint="Write what the model should do, or leave it out.")
    return list(prompts)


def check_sources(sources: Any) -> list[Source]:
    """Return the sources as a list. Raises a SourceError that names an item that is not a Source."""
    if isinstance(sources, Source | str) or not isinstance(sources, Sequence):
        raise SourceError(f"sources is a {type(sources).__name__}.", hint="Pass a list of Source objects.")
    for index, source in enumerate(sources):
        if not isinstance(source, Source):
            raise SourceError(
                f"sources[{index}] is a {type(source).__name__}.",
                hint="Wrap it: Source.from_text(…) for text, Source.from_file(…) for a file.",
            )
    return list(sources)


def _check_type(name: str, value: Any, wanted: type[T]) -> T:
    if not isinstance(value, wanted):
        raise ConfigurationError(f"{name} is a {type(value).__name__}.", hint=f"Pass {wanted.__name__}(…).")
    return value


def _check_schema(options: Options) -> None:
    options.response_json_schema()  # imports the model of an import string, which validation may have postponed
    # A class generates a valid schema; only a schema that a person wrote needs a check.
    if isinstance(options.response_schema, dict) and (problem := validation.check(options.response_schema)):
        raise ConfigurationError(f"response_schema is not a usable JSON Schema: {problem}", hint="Correct it there.")
    for index, tool in enumerate(options.tools or []):
        parameters, where = tool.get("parameters", {}), f"tools[{index}].parameters ({tool['name']})"
        if problem := validation.check(parameters):
            raise ConfigurationError(f"{where} is not a usable JSON Schema: {problem}", hint=_ARGUMENTS)
        if validation.has_no_keyword(parameters):
            raise ConfigurationError(
                f"{where} is not a JSON Schema: none of {', '.join(sorted(parameters))} is a keyword of JSON Schema.",
                hint=_ARGUMENTS,
            )
        if parameters.get("type", "object") != "object":
            raise ConfigurationError(
                f"{where} is not the schema of an object.", hint=f"A function's arguments have names. {_ARGUMENTS}"
            )
