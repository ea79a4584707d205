"""Caches: what is known of each cache that a provider holds, and the registry that all workers share.

A creator acquires the lease on the cache's identity, saves its intent under a display name that no other creation has,
uploads, notes that it asks, asks, and saves the reply. So each state of a record tells the next lease holder what may
exist at the provider: nothing while `asked_at` is empty; afterwards, perhaps, a cache of that display name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, Protocol, Self, TypeVar

from pydantic import Field, StrictInt, field_validator

from pollux_flows.config import Target
from pollux_flows.document import Document, Record
from pollux_flows.errors import PolluxError
from pollux_flows.handles import CacheHandle, checked_version
from pollux_flows.plain import JsonObject, Text
from pollux_flows.source import Source
from pollux_flows.state.upload import Failure

T = TypeVar("T")

VERSION: Final = 1
_log: Final = logging.getLogger("pollux_flows")
CacheState = Literal["creating", "living", "failed"]


class CacheRequest(Document):
    """All that it takes to make a cache, and to make it again."""

    sources: list[Source] = Field(default_factory=list)
    system_instruction: Text | None = None
    tools: list[JsonObject] | None = None
    ttl_seconds: StrictInt = Field(default=3600, ge=1, description="How long it is to live, in seconds.")


class CacheRecord(Record):
    """A cache as the registry knows it."""

    version: int = Field(default=VERSION, description="Of this format.")
    identity: str = Field(description="Of the cache: its contents at one provider, for one model and account.")
    contents_identity: str = Field(description="Of its contents alone.")
    state: CacheState = Field(default="creating", description="creating, living or failed.")
    target: Target = Field(description="The provider, the model and the address.")
    account: str = Field(description="A hash of the key that it was made with.")
    display_name: str = Field(description="Its display name at the provider, which no other creation has.")
    name: str | None = Field(default=None, description="The provider's name for it, once it lives.")
    ttl_seconds: int = Field(description="How long it was made to live.")
    contents: list[str] = Field(default_factory=list, description="What is in it, in words.")
    request: CacheRequest | None = Field(default=None, description="How to make it again, unless that is too large.")
    file_owner: str = Field(description="Under this name its files are owned in the ledger.")
    file_ids: list[str] = Field(default_factory=list, description="Files that were uploaded for it.")
    created_by: str | None = Field(default=None, description="Who made it, in words.")
    created_at: float = Field(description="When its creation began, in seconds since 1970.")
    asked_at: float | None = Field(default=None, description="When the provider was asked for it; empty: not yet.")
    last_used_at: float = Field(description="When it was last handed out, to within ten minutes.")
    expires_at: float | None = Field(default=None, description="When it is gone, by the provider's clock.")
    tokens: int | None = Field(default=None, description="How many it holds; empty where the provider did not say.")
    is_pinned: bool = Field(default=False, description="Whether a handle is in a caller's hands until it expires.")
    is_temporary: bool = Field(default=False, description="Whether the run that created it deletes it at its end.")
    failure: Failure | None = Field(default=None, description="Why its creation failed, for those who waited for it.")
    abandoned: list[str] = Field(
        default_factory=list, description="Display names of earlier creations that may still turn up at the provider."
    )

    @field_validator("version")
    @classmethod
    def _readable(cls, value: int) -> int:
        return checked_version(value, "This cache record")

    @property
    def may_exist(self) -> bool:
        """Return whether the provider may have a cache of this display name."""
        return self.state == "creating" and self.asked_at is not None

    def remaining_s(self, now: float) -> float:
        """Return for how long it lives from now on; nothing for one that does not live."""
        return self.expires_at - now if self.state == "living" and self.expires_at is not None else 0.0

    def handle(self) -> CacheHandle:
        """Return the handle of a cache; of one that does not live, a handle that has expired."""
        return CacheHandle(
            name=self.name or self.display_name,
            model=self.target.model,
            provider=self.target.provider,
            expires_at=self.expires_at or 0.0,
            identity=self.identity,
            contents=self.contents_identity,
        )

    def change(self, **update: Any) -> Self:
        """Return a copy with these fields changed."""
        return self.model_copy(update=update)


class CacheChoice(Document):
    """How a run with cache="auto" caches what its prompts share."""

    mode: Literal["explicit", "warm", "none"]
    why: str = Field(description="The reason, for people.")
    sources: list[int] = Field(default_factory=list, description="In a broadcast, the sources that get a cache each.")


def cache_name(identity: str) -> str:
    """Return the name of the cache with this identity: that of its PolluxCache block."""
    return f"pollux-cache-{identity[:32]}"


def load_readable(stored: Iterable[T], load: Callable[[T], CacheRecord]) -> list[CacheRecord]:
    """Return the records that can be read, by identity; of each of the others, a warning says why it cannot be."""
    records: list[CacheRecord] = []
    for each in stored:
        try:
            records.append(load(each))
        except PolluxError as error:
            _log.warning("A registered cache is skipped: %s", error)
    return sorted(records, key=lambda record: record.identity)


class CacheLock(Protocol):
    """The lease on one cache. Only its holder writes the record."""

    record: CacheRecord | None
    """The record as it was when the lease was acquired, or as it was last saved."""

    async def save(self, record: CacheRecord) -> None:
        """Write the record and renew the lease; LeaseLostError, and nothing written, if another has taken over."""
        ...

    async def remove(self) -> None:
        """Remove the record, or raise LeaseLostError."""
        ...


class CacheRegistry(Protocol):
    """Cache records by identity, for many processes, threads and event loops at once."""

    where: str
    """In words for people, and without a password."""

    async def find(self, identity: str) -> CacheRecord | None:
        """Return the record, whatever its state; None if there is none."""
        ...

    async def find_named(self, name: str) -> CacheRecord | None:
        """Return the record of this `cache_name`, whatever its state; None if there is none."""
        ...

    async def list(self) -> list[CacheRecord]:
        """Return all records that can be read, by identity, and warn of the others."""
        ...

    def lock(self, identity: str, *, patience_s: float | None = None) -> AbstractAsyncContextManager[CacheLock]:
        """Acquire the lease on this identity, whether or not it has a record, and release it at the end.

        Of all who ask, one has it at a time. It is renewed while its holder works. Others wait: as long as the holder
        lives, or for `patience_s` and then a TimeoutError. The lease of a holder that died is taken over at once where
        its death can be seen, else when it runs out.
        """
        ...
