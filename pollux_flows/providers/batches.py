"""Batches: what the `batch.py` of a provider says and is told, in words that mean the same for all three."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol

from pollux_flows.providers.base import Call, UpstreamError

BatchState = Literal["queued", "running", "cancelling", "completed", "failed", "cancelled", "expired"]
"""How far a batch is. "completed" says that the provider is done with it, not that its rows succeeded; "failed" that it
was refused as a whole. A word that nobody here knows is "running"."""

RowStatus = Literal["succeeded", "failed", "cancelled", "expired"]

ENDED: frozenset[BatchState] = frozenset({"completed", "failed", "cancelled", "expired"})


@dataclass(frozen=True)
class Limits:
    """What one batch may hold."""

    rows: int
    size_bytes: int


@dataclass(frozen=True)
class Rows:
    """The input of one batch, as a file with one row a line."""

    path: Path
    count: int


@dataclass(frozen=True)
class Batch:
    """What a provider says of one batch."""

    id: str
    state: BatchState
    native: str
    """The state in the provider's own word."""
    tag: str | None = None
    """The name that we gave it. None where the provider keeps no name."""
    total: int | None = None
    """How many rows it has; None while the provider does not say."""
    succeeded: int = 0
    failed: int = 0
    """Rows that the provider will not answer: failed, cancelled and expired ones."""
    created_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    problem: str | None = None
    """Why it failed as a whole."""
    queue_full: bool = False
    """It failed only because too much is waiting already: the same batch may be handed in again later."""
    results: tuple[str, ...] = ()
    """Where its results are, as `download` wants it."""

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Result:
    """What became of one row."""

    key: str | None
    """The row's key, as it was submitted; None if the line does not say."""
    status: RowStatus
    response: dict[str, Any] | None = None
    """Of a row that succeeded: the same JSON that a call of its own would have been answered with."""
    error: str | None = None
    code: str | None = None
    """The provider's own word or number for the error, or for the state of the response."""
    retryable: bool | None = None
    """Whether the same row may succeed in another batch; None where nobody can tell."""
    details: Mapping[str, Any] = field(default_factory=dict)


class BatchModule(Protocol):
    """`batch.py`: a provider's batch system."""

    LIMITS: Limits
    TAKES_A_FILE: bool
    """Whether the rows are uploaded as a file before the batch is made."""
    KEEPS_NAMES: bool
    """Whether each of our batches has its `tag` in every list."""

    def row(self, call: Call, key: str, /) -> bytes:
        """One line of the input, without its end."""
        ...

    async def create(self, client: Any, model: str, tag: str, rows: Rows, file_id: str | None, /) -> Batch:
        """Hand a batch in. `file_id` is the uploaded file with the rows, where the provider takes one."""
        ...

    async def get(self, client: Any, batch_id: str, /) -> Batch: ...

    def pages(self, client: Any, /) -> AsyncIterator[list[Batch]]:
        """All batches of the account, the newest first, a page a request. It ends, whatever the provider says."""
        ...

    async def cancel(self, client: Any, batch_id: str, /) -> None: ...

    async def download(self, client: Any, batch: Batch, into: IO[bytes], /) -> None:
        """Write all results that there are as they come, one a line, in whatever order."""
        ...

    def result(self, line: bytes, /) -> Result:
        """What one line of the results says; a ValueError if it says nothing that can be read."""
        ...


SKEW_S: Final = 600.0
"""By so much the clocks of this machine and of a provider may differ."""

# More than any account has. A provider that makes up pages without end is left at that.
_MOST_PAGES: Final = 2000


async def turned(
    page: Callable[[str | None], Awaitable[tuple[list[Batch], str | None]]],
) -> AsyncIterator[list[Batch]]:
    """Page after page. `page` is told where to go on, and tells it: None where the provider says that it was the last.

    An empty page may stand between others. One that brings only what was there before is the end, too.
    """
    seen: set[str] = set()
    cursors: set[str | None] = set()
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        cursors.add(cursor)
        batches, cursor = await page(cursor)
        new = [batch for batch in batches if batch.id not in seen]
        if new:
            seen |= {batch.id for batch in new}
            yield new
        if cursor is None or cursor in cursors or (batches and not new):
            return


def listed(
    client: Any, path: str, read: Callable[[Any], Batch], *, after: str, limit: int
) -> AsyncIterator[list[Batch]]:
    """The pages of a list that goes on after the last id, and says in `has_more` whether it does."""

    async def page(last: str | None) -> tuple[list[Batch], str | None]:
        asked: dict[str, Any] = {"limit": limit, **({after: last} if last else {})}
        body: Any = await client.get(path, cast_to=object, options={"params": asked})
        if not isinstance(body, dict) or not isinstance(body.get("data"), list):
            raise UpstreamError.found_in(body)
        batches = readable(read, body["data"])
        return batches, batches[-1].id if batches and body.get("has_more") is not False else None

    return turned(page)


def are_before(page: list[Batch], moment: float) -> bool:
    """Whether all on the page came earlier: of a list that begins with the newest, the rest did, too."""
    return bool(page) and all(batch.created_at is not None and batch.created_at < moment for batch in page)


def readable(read: Callable[[Any], Batch], listed: list[Any]) -> list[Batch]:
    """The batches of a list, without those that cannot be read: others may be what somebody looks for."""
    batches = []
    for each in listed:
        with suppress(UpstreamError):
            batches.append(read(each))
    return batches


def moment(text: Any) -> float | None:
    """The time that an RFC 3339 timestamp tells."""
    try:
        at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
