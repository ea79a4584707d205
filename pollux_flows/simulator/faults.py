"""Faults: the ways in which the next answers can go wrong, or merely differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Every kind of fault, with its effect as a client sees it.
KINDS: Mapping[str, str] = {
    "status": "an error status with the provider's own error body",
    "context_overflow": "400 in the provider's wording for a prompt that is too long",
    "drop": "the socket closes before any byte of an answer; the request has no effect",
    "drop_after": "the provider did the work, then the socket closes without a reply",
    "hang": "no answer until the client goes away",
    "slow": "a normal answer, after `delay_s`",
    "malformed": "200 application/json, cut in the middle",
    "cut": "200, and the socket closes half-way through the body",
    "error_200": "200 whose body is an error",
    "empty": "200 without any text",
    "blocked": "a safety refusal in the provider's own format",
    "content_filter": "an answer that a filter stopped half-way",
    "truncated": "an answer that stopped at the token limit",
    "invalid_json": "text that is not the JSON that was asked for",
    "tool_call": "`count` tool calls, where the request declares tools",
    "processing_failed": "an uploaded file that is stored, and then cannot be processed (Gemini)",
    "queue_full": "429 in the provider's wording for more batches than it takes at a time",
    "reasoning": "reasoning, even if not asked for (local servers do that)",
}

#: These change the model's answer; all others change its delivery.
ANSWER_KINDS = frozenset(
    {
        "empty",
        "blocked",
        "content_filter",
        "truncated",
        "invalid_json",
        "tool_call",
        "reasoning",
        "processing_failed",
        "queue_full",
    }
)


@dataclass(frozen=True)
class Fault:
    """One way for a request to go wrong.

    `Fault(status=429, retry_after=2)` is an error answer; `Fault(kind="drop")` needs no status.
    `delay_s` is combined with any kind: first the wait, then the fault.
    """

    status: int | None = None
    retry_after: float | str | None = None
    kind: str = "status"
    delay_s: float = 0.0
    count: int = 1
    message: str | None = None
    error_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of fault {self.kind!r}; one of: {', '.join(KINDS)}")
        if self.kind == "status" and self.status is None:
            raise ValueError("a fault of kind 'status' needs a status, e.g. Fault(status=429)")
        if self.status is not None and self.status // 100 not in (4, 5):
            raise ValueError(f"a fault's status is between 400 and 599, not {self.status}")
        if not isinstance(self.headers, Mapping) or not all(isinstance(value, str) for value in self.headers.values()):
            raise TypeError("headers is a mapping of names to texts")
        if not isinstance(self.retry_after, int | float | str | None):
            raise TypeError("retry_after is a number of seconds or an HTTP date")
        if self.delay_s < 0:
            raise ValueError("delay_s cannot be negative")
        if self.count < 1:
            raise ValueError("count is at least 1")

    @property
    def error_headers(self) -> dict[str, str]:
        """Return the headers that this fault adds to its error response."""
        added = dict(self.headers)
        if self.retry_after is not None:
            seconds = self.retry_after
            added["retry-after"] = seconds if isinstance(seconds, str) else f"{seconds:g}"
        return added


@dataclass(frozen=True)
class FaultRule:
    """A fault, and the requests that it applies to."""

    fault: Fault
    provider: str | None
    operation: str | None
    contains: str | None

    def matches(self, provider: str, operation: str, body: Any) -> bool:
        return (
            self.provider in (None, provider)
            and self.operation in (None, operation)
            and (self.contains is None or any(self.contains in text for text in strings(body)))
        )


def strings(value: Any) -> Iterator[str]:
    """Iterate over all strings inside a JSON document, in which `contains` is searched."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
