"""ResultEnvelope: the result of a run, and the records that it is made from."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer
from pydantic_core import PydanticSerializationError

from pollux_flows.config import ProviderName
from pollux_flows.document import Record
from pollux_flows.errors import (
    APIError,
    BudgetError,
    CacheError,
    ConfigurationError,
    ErrorCategory,
    PolluxError,
    RateLimitError,
    SourceError,
)
from pollux_flows.frames import Column, column_to_list

STATE: Final = "_conversation_state"
"""The key of the conversation in an envelope."""

UNREADABLE: Final = "unreadable"
"""The key, in the artifacts of an answer, of the parts of it that could not be parsed."""

Status = Literal["ok", "partial", "error"]
FinishReason = Literal["stop", "max_tokens", "tool_calls", "blocked", "error", "other"]
FailureKind = Literal[
    "api_error", "rate_limit", "source", "budget", "state", "blocked", "empty", "expired", "cancelled", "missing"
]
# The reasons why a call was not sent, and their errors.
_UNSENT: Final[dict[FailureKind, type[PolluxError]]] = {
    "source": SourceError,
    "budget": BudgetError,
    "state": ConfigurationError,
}

# The attributes that CallFailure and APIError share.
_SHARED: Final = ("outcome_unknown", "status_code", "retry_after_s", "error_category")


class CallFailure(Record):
    """The reason why one prompt has no answer."""

    index: int = Field(description="Which prompt.")
    kind: FailureKind = Field(description="What happened.")
    message: str
    hint: str | None = None
    retryable: bool = Field(default=False, description="Whether asking again may help.")
    outcome_unknown: bool = Field(
        default=False, description="Whether the provider may have answered, and billed, all the same."
    )
    status_code: int | None = None
    retry_after_s: float | None = None
    error_category: ErrorCategory | None = None
    about_cache: bool = Field(
        default=False,
        exclude_if=lambda about_cache: not about_cache,
        description="Whether the cache handle could not be used.",
    )

    @classmethod
    def of(cls, index: int, error: PolluxError) -> CallFailure:
        """Return the failure for the error of a call."""
        if not isinstance(error, APIError):  # the call was not sent
            kind = next((kind for kind, type_ in _UNSENT.items() if isinstance(error, type_)), "source")
            return cls(index=index, kind=kind, message=error.message, hint=error.hint)
        return cls(
            index=index,
            kind="rate_limit" if isinstance(error, RateLimitError) else "api_error",
            message=error.message,
            hint=error.hint,
            retryable=bool(error.retryable),
            about_cache=isinstance(error, CacheError),
            **{name: getattr(error, name) for name in _SHARED},
        )

    def error(self, provider: str) -> PolluxError:
        """Return the failure as an error to raise."""
        if unsent := _UNSENT.get(self.kind):
            return unsent(self.message, hint=self.hint)
        kind = RateLimitError if self.kind == "rate_limit" else CacheError if self.about_cache else APIError
        return kind(
            self.message,
            hint=self.hint,
            retryable=self.retryable,
            provider=provider,
            phase="generate",
            call_idx=self.index,
            **{name: getattr(self, name) for name in _SHARED},
        )


class ResultEnvelope(Record):
    """The answers of one run, in prompt order, with their usage, metrics and errors.

    `status` is ok when every prompt has a complete answer, partial when some have none or a truncated one, and
    error when none has. The envelope can be read as an object (`envelope.answers`) and as a mapping like its JSON
    (`envelope["answers"]`, `envelope.get("reasoning")`); a key that does not apply is absent.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    status: Status
    answers: list[str]
    confidence: float = Field(description="0.9 when all is well, 0.5 otherwise.")
    extraction_method: str = "text"
    usage: dict[str, int] = Field(
        default_factory=dict,
        description="Tokens, summed over the calls: input (cached ones and cache writes included), output "
        "(reasoning included), total, reasoning, cached, cache_write. One that was not reported is absent.",
    )
    metrics: dict[str, Any] = Field(default_factory=dict)
    diagnostics: dict[str, Any] = Field(default_factory=dict)
    structured: list[Any] | None = None
    reasoning: list[str | None] | None = None
    tool_calls: list[list[dict[str, str]]] | None = None
    errors: list[CallFailure | None] | None = Field(default=None, description="Per prompt, why it has no answer.")
    conversation_state: dict[str, Any] | None = Field(
        default=None,
        alias=STATE,
        exclude_if=lambda state: state is None,
        description="The conversation with this turn, to go on from: Options(continue_from=envelope), continue_tool.",
    )
    conversation: str | None = Field(
        default=None,
        exclude_if=lambda name: name is None,
        description="The name of the conversation that this is part of, for the flow converse.",
    )

    @field_serializer("structured")
    def _structured_as_json(self, values: list[Any] | None) -> list[Any] | None:
        """Serialize instances of the caller's model by their aliases, as in the answers."""
        return values and [as_json(value) for value in values]

    def __repr__(self) -> str:
        """Return a short form, as asyncio.run calls this on its result; `str` returns all of it."""
        return f"ResultEnvelope(status={self.status!r}, answers={reprlib.repr(self.answers)}, …)"

    @property
    def text(self) -> str:
        """Return the answer, or all answers with a blank line between them."""
        return "\n\n".join(self.answers)

    def to_rows(self, prompts: Sequence[str | None] | Column | None = None) -> list[dict[str, Any]]:
        """Return one dict per prompt, for a table of pandas, polars or Arrow: status, answer, error, tokens, cost.

        The columns are those of an output in CSV, but a structured answer is a dict. Pass the `prompts` to include
        them. In polars, use `polars.DataFrame(rows, infer_schema_length=None)`, which infers types from all rows.
        """
        from pollux_flows.answer_rows import envelope_rows, flat

        asked = [prompts] if isinstance(prompts, str) else column_to_list(prompts, "prompts")
        if asked is not None and len(asked) != len(self.answers):
            raise ConfigurationError(
                f"The envelope has {len(self.answers)} answers, and prompts has {len(asked)} items.",
                hint="Pass the prompts of this run.",
            )
        unknown = {"source", "source_name"} if asked is not None else {"source", "source_name", "prompt"}
        rows = map(flat, envelope_rows(self, asked))
        return [{name: value for name, value in row.items() if name not in unknown} for row in rows]

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        return getattr(self, _KEYS[key])

    def __contains__(self, key: object) -> bool:
        return key in _KEYS and getattr(self, _KEYS[str(key)]) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if the key does not apply."""
        return getattr(self, _KEYS[key]) if key in self else default

    def keys(self) -> Iterator[str]:
        """Return the keys that apply."""
        return (key for key in _KEYS if key in self)


# The fields by their keys in JSON.
_KEYS: Final = {field.alias or name: name for name, field in ResultEnvelope.model_fields.items()}


def as_json(value: Any) -> Any:
    """Return an instance of a caller's model as JSON data, and any other value unchanged."""
    if not isinstance(value, BaseModel):
        return value
    try:
        return value.model_dump(mode="json", by_alias=True)
    except PydanticSerializationError:
        return str(value)  # a validator of the caller's model returned a value that JSON cannot represent


class ToolCall(Record):
    """A function call that the model requests."""

    id: str
    name: str
    arguments: str = Field(description="A JSON object, as text.")


class Billing(Record):
    """Properties of an answer, besides token counts, that its price depends on, as far as the provider reports them."""

    cost_usd: float | None = Field(default=None, description="The cost that the provider reports.")
    service_tier: str | None = Field(default=None, description="The service tier, in the provider's own word.")
    speed: str | None = Field(default=None, description="The speed, in the provider's own word.")
    region: str | None = Field(default=None, description="The region in which the model ran, if one was required.")
    audio_tokens: int = Field(default=0, description="The audio tokens of the input.")
    cached_audio_tokens: int = Field(default=0, description="The audio tokens of the cached input.")
    long_cache_write_tokens: int = Field(default=0, description="The tokens of cache writes with a longer lifetime.")
    server_tools: int = Field(
        default=0, description="Uses of the provider's own tools (a search, code), as far as they show."
    )


class Answer(Record):
    """The answer of one call, in a form common to all providers."""

    text: str
    finish_reason: FinishReason | None = Field(description="Why it ended; None where the provider did not say.")
    raw_finish_reason: str | None = Field(default=None, description="The same in the provider's own words.")
    usage: dict[str, int] = Field(default_factory=dict, description="As in ResultEnvelope.usage.")
    billing: Billing = Billing()
    reasoning: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    response_id: str | None = None
    model: str | None = Field(default=None, description="The model that answered, if the provider reports it.")
    note: str | None = Field(default=None, description="The provider's explanation of a blocked or cut answer.")
    artifacts: dict[str, Any] = Field(default_factory=dict, description="Details that no other field has.")
    provider_state: dict[str, Any] | None = Field(
        default=None, description="Data to send back to the provider unchanged when the conversation continues."
    )

    def by_itself(self) -> Answer:
        """Return the answer without `provider_state`, which is large and only needed to continue a conversation."""
        return self if self.provider_state is None else BaseModel.model_copy(self, update={"provider_state": None})


class Outcome(Record):
    """The result of one planned call: an answer, or the reason why there is none."""

    index: int
    identity: str
    answer: Answer | None = None
    failure: CallFailure | None = None
    attempts: int = Field(description="The number of requests that were made for the call.")
    unknown_attempts: int = Field(
        default=0, description="The number of requests that may have been billed, although no reply arrived."
    )
    waited_s: float = Field(default=0.0, description="Seconds spent waiting between attempts.")
    duration_s: float = Field(default=0.0, description="Seconds from first request to outcome.")
    cost_usd: float | None = Field(default=None, description="The cost of the answer; None if it is unknown.")
    cost_unknown: str | None = Field(default=None, description="Why the cost is unknown.")
    paid_before_usd: float = Field(default=0.0, description="What this run paid for earlier answers to the same call.")
    counted_in: str | None = Field(default=None, description="The ledger of the run's budget that counts its cost.")
    reused: Literal["run", "always"] | None = Field(
        default=None, description="Not asked for now: this run had the answer already, or another one had."
    )
    save_error: str | None = Field(default=None, description="Why the answer could not be saved.")
    spilled: str | None = Field(default=None, description="The file that has it instead, for the next run to import.")

    def at(self, index: int) -> Outcome:
        """Return the outcome with another prompt's index."""
        return self if self.index == index else BaseModel.model_copy(self, update={"index": index})

    @property
    def paid_usd(self) -> float:
        """Return the known cost of this answer and of earlier ones to the same call."""
        return (self.cost_usd or 0.0) + self.paid_before_usd

    @property
    def problem(self) -> CallFailure | None:
        """Return the reason why the prompt has no answer, or None. A tool call without text counts as an answer."""
        answer = self.answer
        if answer is None:
            return self.failure
        if answer.finish_reason == "blocked":
            return CallFailure(
                index=self.index,
                kind="blocked",
                message=f"The provider blocked this prompt or its answer ({answer.note or answer.raw_finish_reason}).",
                hint="Word the prompt differently: the same prompt is likely to be blocked again.",
            )
        if not answer.text.strip() and not answer.tool_calls:
            return CallFailure(
                index=self.index,
                kind="empty",
                message="The provider returned an empty answer "
                f"(finish reason: {answer.raw_finish_reason or 'not reported'}).",
                hint="If thinking took all of max_tokens, raise it."
                if answer.finish_reason == "max_tokens"
                else "Ask again, or word the prompt differently.",
            )
        return None


class SweptFile(Record):
    """A file at a provider that a sweep deleted or failed to delete."""

    provider: ProviderName
    file_id: str
    why: str | None = Field(default=None, description="Why it is still there.")


class SweepReport(Record):
    """The result of a sweep: the files and caches that it removed, and those that it could not remove."""

    removed: list[SweptFile] = Field(default_factory=list)
    left: list[SweptFile] = Field(default_factory=list, description="Due, but still there: tried again next time.")
    unusable: list[str] = Field(default_factory=list, description="Providers that could not be asked, and why.")
    unreadable: list[str] = Field(default_factory=list, description="Records of files that cannot be read.")
    caches: list[str] = Field(default_factory=list, description="Caches that had expired, failed or were not used.")
