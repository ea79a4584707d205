"""Terms: which answers a run may reuse, and how much it may spend."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, StrictBool, StrictFloat, field_validator, model_validator

from pollux_flows.document import Document
from pollux_flows.errors import ConfigurationError
from pollux_flows.plain import Text

Reuse = Literal["run", "always", "never"]
"""Which saved answers to the same call are reused: those of this run, those of any run, or none."""


class SharedBudget(Document):
    """A budget that runs with the same state share by its name."""

    name: Text = Field(min_length=1, description="Its name.")
    usd_per_day: StrictFloat | None = Field(default=None, ge=0, description="The most that one day (UTC) may cost.")
    usd_in_total: StrictFloat | None = Field(default=None, ge=0, description="The most that all days may cost.")
    each_provider: StrictBool = Field(default=False, description="Whether each provider has the amounts by itself.")


class Terms(Document):
    """The terms on which the calls of a run are made. They do not affect the content of answers."""

    reuse: Reuse = "run"
    max_age: StrictFloat | None = Field(
        default=None, ge=0, description="With reuse='always': how old another run's answer may be, in seconds."
    )
    since: StrictFloat | None = Field(
        default=None, ge=0, description="With reuse='always': answers of other runs from before this time do not count."
    )
    run_key: Text | None = Field(default=None, min_length=1, description="The run that these calls belong to.")
    max_cost_usd: StrictFloat | None = Field(
        default=None,
        ge=0,
        description="The answers cost no more than this: a call is not made while its worst case might exceed it.",
    )

    budget: SharedBudget | None = Field(default=None, description="A budget that the run shares with others.")
    spent_usd: StrictFloat = Field(default=0.0, ge=0, description="What earlier rounds of the run have cost.")

    @field_validator("max_age", mode="before")
    @classmethod
    def _in_seconds(cls, value: Any) -> Any:
        return value.total_seconds() if isinstance(value, timedelta) else value

    @model_validator(mode="after")
    def _check_max_age(self) -> Terms:
        if self.max_age is not None and self.reuse != "always":
            raise ConfigurationError(
                f"max_age limits the age of other runs' answers, and reuse={self.reuse!r} reuses none of them.",
                hint="Pass reuse='always', or leave max_age out.",
            )
        return self
