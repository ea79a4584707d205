"""Handles: what a run leaves with a provider, as plain data that finds it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, StrictFloat, field_validator

from pollux_flows.config import ProviderName
from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError
from pollux_flows.plain import Text

VERSION: Final = 1
"""Of what handles and jobs say. It grows when an older version of this package would misread them."""

DeferredStatus = Literal["queued", "running", "cancelling", "completed", "partial", "failed", "cancelled", "expired"]
TERMINAL: Final[frozenset[DeferredStatus]] = frozenset({"completed", "partial", "failed", "cancelled", "expired"})


class CacheHandle(Record):
    """Content that a provider keeps for us until `expires_at` (seconds since 1970)."""

    name: Text = Field(min_length=1, description="The provider's name for it.")
    model: Text = Field(min_length=1, description="The only model that can read it.")
    provider: ProviderName = Field(description="Who keeps it.")
    expires_at: StrictFloat = Field(description="When it is gone, in seconds since 1970.")
    identity: Text | None = Field(default=None, description="The cache's name in the registry; empty if unregistered.")
    contents: Text | None = Field(default=None, description="Identity of what it holds, whoever's account it is in.")


class DeferredHandle(Record):
    """Work that was handed in. It holds no key, and nothing of what was asked."""

    job_id: str = Field(description="The provider's id of the batch; of several, our name for all of them.")
    provider: ProviderName
    model: str
    request_count: int = Field(ge=1, description="How many prompts it has.")
    submitted_at: float = Field(description="In seconds since 1970.")
    schema_hash: str | None = Field(default=None, description="A hash of response_schema, if there was one.")
    provider_state: dict[str, Any] | None = Field(default=None, description="What it takes to find it again.")
    version: int = Field(default=VERSION, description="Of what this says.")

    @field_validator("version")
    @classmethod
    def _readable(cls, value: int) -> int:
        return checked_version(value, "This handle")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The handle that `to_dict` gave."""
        return cls.model_validate(dict(data))


class DeferredSnapshot(Record):
    """How far deferred work is."""

    job_id: str
    provider: ProviderName
    model: str
    status: DeferredStatus
    provider_status: str = Field(description="The same in the provider's own words.")
    request_count: int
    succeeded: int
    failed: int = Field(description="Prompts that will have no answer: failed, cancelled and expired ones.")
    pending: int
    submitted_at: float
    completed_at: float | None = None
    expires_at: float | None = Field(default=None, description="When the provider gives up.")

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more will come of it, so that it can be collected."""
        return self.status in TERMINAL


def checked_version(version: int, what: str) -> int:
    """Refuse what a newer version of this package wrote in a way that this one would misread."""
    if version > VERSION:
        raise ConfigurationError(
            f"{what} was written by a newer pollux_flows (format {version}; this one reads up to {VERSION}).",
            hint="Collect it with that version, or a later one.",
        )
    return version
