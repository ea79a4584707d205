"""Batches: the interface of a provider's `batch.py`, in terms common to all three providers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol

from pollux_flows.providers.base import Call, UpstreamError, as_count
from pollux_flows.result import Answer

BatchState = Literal["queued", "running", "cancelling", "completed", "failed", "cancelled", "expired"]
"""The state of a batch. "completed" means that the provider is done with it, not that its rows succeeded; "failed" that
the entire batch was refused. An unknown state of a provider counts as "running"."""

RowStatus = Literal["succeeded", "failed", "cancelled", "expired"]

ENDED: frozenset[BatchState] = frozenset({"completed", "failed", "cancelled", "expired"})


@dataclass(frozen=True)
class BatchLimits:
    """The limits of one batch."""

    rows: int
    size_bytes: int


@dataclass(frozen=True)
class Rows:
    """The input of one batch: a file with one row per line."""

    path: Path
    count: int


@dataclass(frozen=True)
class Batch:
    """A batch as its provider describes it."""

    id: str
    state: BatchState
    native: str
    """The state as the provider spells it."""
    tag: str | None = None
    """The name that we chose for it; None where the provider stores no name."""
    total: int | None = None
    """The number of its rows; None while the provider does not report it."""
    succeeded: int = 0
    failed: int = 0
    """Rows that the provider will not answer: failed, cancelled and expired ones."""
    created_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    problem: str | None = None
    """The reason why the entire batch failed."""
    queue_full: bool = False
    """True if it failed only because the queue is full: the same batch may be submitted again later."""
    results: tuple[str, ...] = ()
    """The locations of its results, in the form that `download` takes."""

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Result:
    """The result of one row."""

    key: str | None
    """The row's key, as it was submitted; None if the line has none."""
    status: RowStatus
    response: dict[str, Any] | None = None
    """The response of a row that succeeded, in the same JSON as that of a realtime call."""
    error: str | None = None
    code: str | None = None
    """The provider's own code for the error, or for the state of the response."""
    retryable: bool | None = None
    """True if the same row may succeed in another batch; None if unknown."""


class BatchModule(Protocol):
    """The interface of `batch.py`: a provider's batch system."""

    @property
    def LIMITS(self) -> BatchLimits: ...  # noqa: N802 (a constant of the module)

    @property
    def TAKES_A_FILE(self) -> bool:  # noqa: N802
        """True if the rows are uploaded as a file before the batch is created."""
        ...

    @property
    def KEEPS_NAMES(self) -> bool:  # noqa: N802
        """True if each of our batches has its `tag` in every list."""
        ...

    def row(self, call: Call, key: str, /) -> bytes:
        """Return one line of the input, without its line break."""
        ...

    async def create(self, client: Any, model: str, tag: str, rows: Rows, file_id: str | None, /) -> Batch:
        """Submit a batch. `file_id` is the uploaded file with the rows, if the provider takes one."""
        ...

    async def get(self, client: Any, batch_id: str, /) -> Batch: ...

    def pages(self, client: Any, /) -> AsyncIterator[list[Batch]]:
        """Iterate over all batches of the account, newest first, one page per request, up to a limit of pages."""
        ...

    async def cancel(self, client: Any, batch_id: str, /) -> None: ...

    async def download(self, client: Any, batch: Batch, into: IO[bytes], /) -> None:
        """Write all available results as they arrive, one per line, in any order."""
        ...

    def result(self, line: bytes, /) -> Result:
        """Parse one line of the results. Raises a ValueError if it cannot be read."""
        ...

    def read_answer(self, response: Any, /) -> Answer:
        """Read the answer in the response of a row. Raises an UpstreamError if there is none."""
        ...


SKEW_S: Final = 600.0
"""The most that the clocks of this machine and of a provider are expected to differ."""

# More than any account has, to end the iteration if a provider sends pages endlessly.
_MOST_PAGES: Final = 2000


async def paginate(
    page: Callable[[str | None], Awaitable[tuple[list[Batch], str | None]]],
) -> AsyncIterator[list[Batch]]:
    """Iterate over pages. `page` takes a cursor and returns that page with the next cursor, None after the last.

    There may be empty pages between others. A repeated cursor also ends the iteration.
    """
    cursor: str | None = None
    seen: set[str | None] = {None}
    while len(seen) <= _MOST_PAGES:
        batches, cursor = await page(cursor)
        if batches:
            yield batches
        if cursor in seen:
            return
        seen.add(cursor)


def paginate_list(
    client: Any, path: str, read: Callable[[Any], Batch], *, after: str, limit: int
) -> AsyncIterator[list[Batch]]:
    """Iterate over the pages of a list whose cursor is the last id, and whose `has_more` says if there are more."""

    async def page(last: str | None) -> tuple[list[Batch], str | None]:
        asked: dict[str, Any] = {"limit": limit, **({after: last} if last else {})}
        body: Any = await client.get(path, cast_to=object, options={"params": asked})
        if not isinstance(body, dict) or not isinstance(body.get("data"), list):
            raise UpstreamError.found_in(body)
        batches = parse_batches(read, body["data"])
        return batches, batches[-1].id if batches and body.get("has_more") is not False else None

    return paginate(page)


def are_before(page: list[Batch], moment: float) -> bool:
    """Return whether all batches of a page were created earlier, as then are all later pages, the newest first."""
    return bool(page) and all(batch.created_at is not None and batch.created_at < moment for batch in page)


def parse_batches(read: Callable[[Any], Batch], entries: list[Any]) -> list[Batch]:
    """Return the readable batches of a list, as the batch that is looked for may be among them."""
    batches = []
    for each in entries:
        with suppress(UpstreamError):
            batches.append(read(each))
    return batches


def parse_count(value: Any) -> int:
    """Parse a count, which may be a string of digits (such as an int64 in Google's JSON); 0 if it is not a count."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:  # noqa: PLR2004
        return int(value)
    return as_count(value)


def parse_time(text: Any) -> float | None:
    """Parse an RFC 3339 timestamp into seconds since 1970; None if it is not a timestamp."""
    try:
        at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
