"""Caches: the record of each cache at a provider, and the protocol of the registry that all workers share.

To create a cache, a process acquires the lease on its identity, saves its intent under a unique display name, uploads
the sources, saves the time of the request, sends the request, and saves the reply. So the record tells the next owner
of the lease what may exist at the provider: nothing while `asked_at` is empty; afterwards, perhaps, a cache of that
display name.
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
    """The contents and lifetime of a cache, to create it, and to create it again."""

    sources: list[Source] = Field(default_factory=list)
    system_instruction: Text | None = None
    tools: list[JsonObject] | None = None
    ttl_seconds: StrictInt = Field(default=3600, ge=1, description="How long it is to live, in seconds.")


class CacheRecord(Record):
    """A cache in the registry."""

    version: int = Field(default=VERSION, description="Of this format.")
    identity: str = Field(description="Of the cache: its contents at one provider, for one model and account.")
    contents_identity: str = Field(description="Of its contents alone.")
    state: CacheState = Field(default="creating", description="creating, living or failed.")
    target: Target = Field(description="The provider, the model and the address.")
    account: str = Field(description="A hash of the key that it was made with.")
    display_name: str = Field(description="Its display name at the provider, which no other creation has.")
    name: str | None = Field(default=None, description="The provider's name for it, once it lives.")
    ttl_seconds: int = Field(description="How long it was made to live.")
    contents: list[str] = Field(default_factory=list, description="The contents of the cache, in words.")
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
        """Return the time until the cache expires; 0 if it does not exist."""
        return self.expires_at - now if self.state == "living" and self.expires_at is not None else 0.0

    def handle(self) -> CacheHandle:
        """Return the handle of the cache; an expired one if the cache does not exist."""
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
    """The choice of caching of a run with cache="auto"."""

    mode: Literal["explicit", "warm", "none"]
    why: str = Field(description="The reason, for people.")
    sources: list[int] = Field(default_factory=list, description="In a broadcast, the sources that get a cache each.")


def cache_name(identity: str) -> str:
    """Return the name of the cache with this identity, which is the name of its PolluxCache block."""
    return f"pollux-cache-{identity[:32]}"


def load_readable(stored: Iterable[T], load: Callable[[T], CacheRecord]) -> list[CacheRecord]:
    """Return the readable records, sorted by identity, and log a warning for each of the others."""
    records: list[CacheRecord] = []
    for each in stored:
        try:
            records.append(load(each))
        except PolluxError as error:
            _log.warning("A registered cache is skipped: %s", error)
    return sorted(records, key=lambda record: record.identity)


class CacheLock(Protocol):
    """The lease on one cache. Only its owner writes the record."""

    record: CacheRecord | None
    """The record when the lease was acquired, or as it was last saved."""

    async def save(self, record: CacheRecord) -> None:
        """Renew the lease and write the record. Raises LeaseLostError, and writes nothing, if the lease was lost."""
        ...

    async def remove(self) -> None:
        """Remove the record, or raise LeaseLostError."""
        ...


class CacheRegistry(Protocol):
    """Cache records by identity, for many processes, threads and event loops at once."""

    where: str
    """The place of the registry, for people, without a password."""

    async def find(self, identity: str) -> CacheRecord | None:
        """Return the record, in any state; None if there is none."""
        ...

    async def find_named(self, name: str) -> CacheRecord | None:
        """Return the record of this `cache_name`, in any state; None if there is none."""
        ...

    async def list(self) -> list[CacheRecord]:
        """Return all readable records, sorted by identity, and warn of the others."""
        ...

    def lock(self, identity: str, *, patience_s: float | None = None) -> AbstractAsyncContextManager[CacheLock]:
        """Acquire the lease on this identity, whether or not it has a record, and release it at the end.

        One process has the lease at a time, and renews it while it works. Others wait for it, at most for `patience_s`
        if that is set, and then raise a TimeoutError. The lease of a dead process is taken over at once if its death
        can be detected, otherwise when the lease expires.
        """
        ...
