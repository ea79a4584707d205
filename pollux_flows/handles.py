"""Handles: what a run leaves with a provider, as plain data that finds it again."""

from __future__ import annotations

from pydantic import Field, StrictFloat

from pollux_flows.config import ProviderName
from pollux_flows.document import Record
from pollux_flows.plain import Text


class CacheHandle(Record):
    """Content that a provider keeps for us until `expires_at` (seconds since 1970)."""

    name: Text = Field(min_length=1, description="The provider's name for it.")
    model: Text = Field(min_length=1, description="The only model that can read it.")
    provider: ProviderName = Field(description="Who keeps it.")
    expires_at: StrictFloat = Field(description="When it is gone, in seconds since 1970.")
