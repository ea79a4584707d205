"""Conversation: the prior turns, read from the options, and stored in the envelope for the next turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import Field

from pollux_flows.config import ProviderName, Target
from pollux_flows.document import Document
from pollux_flows.errors import ConfigurationError, SourceError
from pollux_flows.files.content import Content
from pollux_flows.options import Options
from pollux_flows.providers.base import PriorTurn
from pollux_flows.providers.material import Material
from pollux_flows.result import STATE, Outcome, ResultEnvelope
from pollux_flows.source import Source
from pollux_flows.turn import Attached, Turn, in_order, read_turns

VERSION: Final = 1
"""The format of the state in an envelope. It is raised when an older version of this package would misread it."""

# Providers that store a conversation under the id of its last answer, so that only new turns have to be sent.
_STORES_CONVERSATIONS: Final[set[ProviderName]] = {"openai"}
_STATE_HINT: Final = (
    "An envelope can be continued if it answers one prompt that was asked with history (history=[] begins a "
    "conversation) or continue_from, or that was answered with tool calls."
)


class Conversation(Document):
    """The prior turns. `response_id` refers to the turns that the provider has stored, up to the last answer."""

    turns: list[Turn] = Field(default_factory=list)
    response_id: str | None = None

    @property
    def is_empty(self) -> bool:
        return not self.turns

    @property
    def attached(self) -> list[Attached]:
        return [each for turn in self.turns for each in turn.attached]


def read_conversation(options: Options, target: Target, prompts: Sequence[str | None]) -> Conversation | None:
    """Return the conversation that `options` continues. Raises if these prompts cannot continue it."""
    if options.history is not None:
        name, items, response_id = "history", options.history, None
    elif options.continue_from is not None:
        state = _state(options.continue_from, "continue_from")
        _check_provider(state, target)
        name, items, response_id = f"{STATE}.history", state["history"], state.get("response_id")
    else:
        return None
    if len(prompts) != 1:
        raise ConfigurationError(
            f"A conversation continues with one prompt, not {len(prompts)}.",
            hint="Ask one prompt after the other, each with continue_from the envelope before.",
        )
    turns, waiting = in_order(read_turns(items, name), name)
    if waiting:
        names = ", ".join(f"{call.id!r} ({call.name})" for call in waiting)
        raise ConfigurationError(
            f"The conversation waits for the result of the tool call {names}.",
            hint="Pass it first: continue_tool(envelope, [{'tool_call_id': …, 'content': …}], config=…).",
        )
    if options.cache is None and (about := next((turn.cache for turn in turns if turn.cache), None)):
        raise ConfigurationError(
            f"The conversation is about the cached content {about}, which the options do not name.",
            hint="Pass its handle again: Options(cache=…).",
        )
    history = Conversation(turns=turns)
    answered = any(turn.role == "assistant" for turn in turns)
    if response_id is None or not answered or target.provider not in _STORES_CONVERSATIONS or history.attached:
        # Attached files may be gone from the provider, so all turns are sent again.
        return history
    return Conversation(turns=turns, response_id=response_id)


def attach_history(turns: Sequence[Turn], materials: Iterable[Material]) -> Iterator[PriorTurn]:
    """Return the turns as they are sent, each with its share of `materials`, which are in order."""
    attached = iter(materials)
    for turn in turns:
        about, prompt = turn.pieces()
        shown = (_text(piece) if isinstance(piece, str) else next(attached) for piece in about)
        yield PriorTurn(turn, tuple(shown), prompt)


def check_unchanged(attached: Sequence[Attached], contents: Sequence[Content | None]) -> None:
    """Refuse to continue a conversation about a file that has changed, as prior turns are about the old content."""
    for each, content in zip(attached, contents, strict=True):
        if each.sha256 is not None and content is not None and content.sha256 != each.sha256:
            raise SourceError(
                f"The file {each.source.identifier!r}, which this conversation is about, has changed since.",
                hint="Restore the file, or begin a conversation about its new content.",
            )


def make_state(
    turns: Sequence[Turn],
    asked: tuple[str | None, Sequence[Source], Sequence[Content | None]],
    options: Options,
    target: Target,
    outcome: Outcome,
) -> dict[str, Any] | None:
    """Return the state to continue the conversation from after this turn; None if there is no conversation."""
    answer = outcome.answer
    converses = options.history is not None or options.continue_from is not None
    if answer is None or outcome.problem is not None or not (converses or answer.tool_calls):
        return None
    prompt, sources, contents = asked
    about = [_about(source, content) for source, content in zip(sources, contents, strict=True)]
    question = Turn.of_user(prompt, about, None if options.cache_handle is None else options.cache_handle.name)
    reply = Turn(
        role="assistant", content=answer.text, tool_calls=answer.tool_calls, provider_state=answer.provider_state
    )
    history = [*turns, *([] if prompt is None and not sources else [question]), reply]
    latest = {"response_id": answer.response_id, "provider_state": answer.provider_state}
    return {
        "version": VERSION,
        "provider": target.provider,
        "history": [turn.as_item() for turn in history],
        **{name: value for name, value in latest.items() if value is not None},
    }


def with_results(continue_from: ResultEnvelope | Mapping[str, Any], tool_results: Sequence[Any]) -> dict[str, Any]:
    """Return the state of an envelope with the results of its tool calls added."""
    if not isinstance(continue_from, ResultEnvelope | Mapping):
        raise ConfigurationError(
            f"continue_from is of type {type(continue_from).__name__}.", hint="Pass the envelope with the tool calls."
        )
    state = _state(continue_from, "continue_from")
    turns = read_turns(state["history"], f"{STATE}.history")
    if not in_order(turns, f"{STATE}.history")[1]:
        raise ConfigurationError(
            "continue_from needs no tool results: its last turn calls no tools.",
            hint="Continue with a prompt: run(prompt, options=Options(continue_from=envelope)).",
        )
    if isinstance(tool_results, str | bytes | Mapping) or not isinstance(tool_results, Sequence):
        raise ConfigurationError(
            f"tool_results is of type {type(tool_results).__name__}.",
            hint="Pass a list: [{'tool_call_id': …, 'content': …}].",
        )
    results = [{"role": "tool", **item} if isinstance(item, Mapping) else item for item in tool_results]
    answers = read_turns(results, "tool_results")
    if other := next((turn.role for turn in answers if turn.role != "tool"), None):
        raise ConfigurationError(
            f"tool_results has a turn of role {other}.",
            hint="Pass only the results; a prompt follows in the next turn.",
        )
    _, waiting = in_order([turns[-1], *answers], "tool_results", first=-1)
    if waiting:
        raise ConfigurationError("tool_results is empty.", hint="Pass the result of each call in envelope.tool_calls.")
    return {STATE: {**state, "history": [*state["history"], *(turn.as_item() for turn in answers)]}}


def _state(envelope: ResultEnvelope | Mapping[str, Any], name: str) -> dict[str, Any]:
    state = envelope.get(STATE)
    if state is None:
        raise ConfigurationError(f"{name} has no conversation ({STATE}).", hint=_STATE_HINT)
    version = state.get("version", VERSION) if isinstance(state, dict) else None
    if not isinstance(state, dict) or type(version) is not int or not isinstance(state.get("history"), list):
        raise ConfigurationError(f"The {STATE} of {name} is invalid.", hint="Pass the envelope unchanged.")
    if version > VERSION:
        raise ConfigurationError(
            f"The conversation in {name} was written by a newer version of pollux_flows (its version is {version}).",
            hint="Update pollux_flows here.",
        )
    if not isinstance(state.get("response_id"), str | None):
        raise ConfigurationError(f"The response_id of {name} is not a text.", hint="Pass the envelope unchanged.")
    return state


def _check_provider(state: Mapping[str, Any], target: Target) -> None:
    provider = state.get("provider")
    if provider is not None and provider != target.provider:
        raise ConfigurationError(
            f"The conversation was with {provider}, and cannot be continued with {target.provider}.",
            hint=f"Continue with {provider}, or pass its turns, which are plain text, as Options(history=…).",
        )


def _about(source: Source, content: Content | None) -> str | Attached:
    if source.source_type in {"text", "json"}:
        return str(source.text)
    return Attached(source=source, sha256=content and content.sha256)


def _text(piece: str) -> Material:
    return Material(Source.from_text(piece), "text/plain", text=piece)
