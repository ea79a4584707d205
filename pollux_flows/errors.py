"""The errors of this package, as one tree.

    PolluxError
    ├── ConfigurationError      a Config, Options or feature that cannot work; nothing was sent
    ├── SourceError             a source that is missing, unreadable or malformed
    ├── PlanningError           a request that could not be turned into calls
    ├── BudgetError             a call that was not made, because it might exceed the budget
    ├── ToolError               a tool of a conversation that failed
    ├── InternalError           a bug in this package
    ├── DeferredNotReadyError   the provider is still working on the job
    └── APIError                a provider refused a call, failed at it, or could not be reached
        ├── RateLimitError      too many requests, for now
        └── CacheError          a cache could not be created or used
            └── ExpiredCacheError   a cache handle that has expired; nothing was sent

Each error says what was wrong and, in `hint`, what to do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from pollux_flows.handles import DeferredSnapshot
    from pollux_flows.result import ResultEnvelope

T = TypeVar("T")

ErrorCategory = Literal["rate_limit", "auth", "capacity", "context_overflow", "network"]


class PolluxError(Exception):
    """The base class of all errors of this package.

    An error raised by `run_many` carries the results of the other prompts in `envelope`.
    """

    envelope: ResultEnvelope | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # Only the message goes into `args`: the rest lives in `__dict__`, so that the default pickling,
        # which calls the class with `args` and then restores `__dict__`, restores every subclass completely.
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class ConfigurationError(PolluxError):
    """A Config, Options or combination that cannot work. Raised before anything is sent."""


class SourceError(PolluxError):
    """A source that is missing, unreadable or malformed."""


class PlanningError(PolluxError):
    """A request that could not be turned into calls."""


class BudgetError(PolluxError):
    """A call that was not made, because it might exceed the budget."""


class ToolError(PolluxError):
    """A tool of a conversation that failed."""


class InternalError(PolluxError):
    """A bug in this package: please report it."""


class DeferredNotReadyError(PolluxError):
    """The provider is still working on the job; `snapshot` shows its progress."""

    def __init__(self, message: str, *, hint: str | None = None, snapshot: DeferredSnapshot | None = None) -> None:
        super().__init__(message, hint=hint)
        self.snapshot = snapshot


class APIError(PolluxError):
    """A provider refused a call, failed at it, or could not be reached.

    `retryable` says whether the same request may succeed later. `outcome_unknown` is true when the request was sent and
    no readable response arrived: the provider may have answered, and billed, it.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retryable: bool | None = None,
        status_code: int | None = None,
        retry_after_s: float | None = None,
        provider: str | None = None,
        phase: str | None = None,
        call_idx: int | None = None,
        error_category: ErrorCategory | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        self.status_code = status_code
        self.retry_after_s = retry_after_s
        self.provider = provider
        self.phase = phase
        self.call_idx = call_idx
        self.error_category = error_category
        self.outcome_unknown = outcome_unknown


class RateLimitError(APIError):
    """The provider refused a call because of too many requests."""


class CacheError(APIError):
    """A cache could not be created or used."""


class ExpiredCacheError(CacheError, ConfigurationError):
    """A cache handle that has expired. Nothing was sent, so it is a ConfigurationError as well."""


def raise_if_error(found: T | BaseException) -> T:
    """Return one result of `asyncio.gather(…, return_exceptions=True)`, or raise it if it is an exception."""
    if isinstance(found, BaseException):
        raise found
    return found
