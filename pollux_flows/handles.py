"""Handles: plain data that identifies caches and deferred work at a provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, StrictFloat, field_validator

from pollux_flows.config import ProviderName
from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError
from pollux_flows.plain import Text

VERSION: Final = 1
"""The format of handles and jobs. It is raised when an older version of this package would misread them."""

DeferredStatus = Literal["queued", "running", "cancelling", "completed", "partial", "failed", "cancelled", "expired"]
TERMINAL: Final[frozenset[DeferredStatus]] = frozenset({"completed", "partial", "failed", "cancelled", "expired"})


class CacheHandle(Record):
    """A cache at a provider, which exists until `expires_at` (seconds since 1970)."""

    name: Text = Field(min_length=1, description="The provider's name of the cache.")
    model: Text = Field(min_length=1, description="The only model that can read the cache.")
    provider: ProviderName = Field(description="The provider of the cache.")
    expires_at: StrictFloat = Field(description="The time of its expiry, in seconds since 1970.")
    identity: Text | None = Field(default=None, description="The cache's name in the registry; empty if unregistered.")
    contents: Text | None = Field(default=None, description="Identity of its contents, the same in every account.")


class DeferredHandle(Record):
    """Submitted deferred work. A handle contains no key and no prompts."""

    job_id: str = Field(description="The provider's id of the batch; of several, our name for all of them.")
    provider: ProviderName
    model: str
    request_count: int = Field(ge=1, description="The number of its prompts.")
    submitted_at: float = Field(description="In seconds since 1970.")
    schema_hash: str | None = Field(default=None, description="A hash of response_schema, if there was one.")
    provider_state: dict[str, Any] | None = Field(
        default=None, description="The data that is needed to find the work again."
    )
    version: int = Field(default=VERSION, description="The format of this handle.")

    @field_validator("version")
    @classmethod
    def _readable(cls, value: int) -> int:
        return checked_version(value, "This handle")

    def to_dict(self) -> dict[str, Any]:
        """Return the handle as plain JSON data."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the handle that `to_dict` was called on."""
        return cls.model_validate(dict(data))


class DeferredSnapshot(Record):
    """The progress of deferred work."""

    job_id: str
    provider: ProviderName
    model: str
    status: DeferredStatus
    provider_status: str = Field(description="The status in the provider's own words.")
    request_count: int
    succeeded: int
    failed: int = Field(description="Prompts that will have no answer: failed, cancelled and expired ones.")
    pending: int
    submitted_at: float
    completed_at: float | None = None
    expires_at: float | None = Field(default=None, description="The time when the provider gives up.")

    @property
    def is_terminal(self) -> bool:
        """True if the results are final, so that they can be collected."""
        return self.status in TERMINAL


def checked_version(version: int, what: str) -> int:
    """Return the version. Raises a ConfigurationError if a newer version of this package wrote the document."""
    if version > VERSION:
        raise ConfigurationError(
            f"{what} was written by a newer pollux_flows (format {version}; this one reads up to {VERSION}).",
            hint="Collect it with that version, or a later one.",
        )
    return version
