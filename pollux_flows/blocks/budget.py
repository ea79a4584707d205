"""PolluxBudget: a spending limit that runs of several deployments share, as a block."""

from __future__ import annotations

from typing import Any, Self

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl, ModelWrapValidatorHandler, model_validator

from pollux_flows.errors import ConfigurationError
from pollux_flows.pipeline.terms import SharedBudget


class PolluxBudget(Block):
    """An amount that runs share: a day, in all, or both. It holds for all runs that use this block and the same state.

    Example:
        Keep the runs of a day below ten dollars together:

        ```python
        from pollux_flows.blocks import PolluxBudget, PolluxProvider
        from pollux_flows.flows import fan_out

        budget = PolluxBudget.load("BLOCK_NAME")
        print(budget.usd_per_day, budget.usd_in_total)
        fan_out(["Who speaks?", "Where?"], PolluxProvider.load("gemini"), budget=budget)
        ```
    """

    _block_type_name = "Pollux Budget"
    _block_type_slug = "pollux-budget"
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")
    _description = "An amount that runs share. A call is made only if its worst case fits."

    # Field order is part of the block schema's checksum: append new fields, and give them defaults.
    usd_per_day: float | None = Field(
        default=None, ge=0, title="Per day (USD)", description="The most that the calls of a day (UTC) cost."
    )
    usd_in_total: float | None = Field(
        default=None, ge=0, title="In total (USD)", description="The most that all calls cost, ever."
    )
    each_provider: bool = Field(
        default=False, title="Each provider", description="Whether each provider has these amounts by itself."
    )

    @classmethod
    def model_json_schema(cls, *args: Any, **settings: Any) -> dict[str, Any]:
        """Return the schema of the UI's form, without the alternatives for None, so that each field is one input."""
        schema = super().model_json_schema(*args, **settings)
        for field in schema["properties"].values():
            field.update(field.pop("anyOf", [{}])[0])
        return schema

    @model_validator(mode="wrap")
    @classmethod
    def _restore_name(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Restore the name of a saved block that is read from a run's parameters, which Pydantic would drop."""
        block = handler(data)
        if isinstance(data, dict) and (name := data.get("_block_document_name")):
            block._block_document_name = name  # noqa: SLF001
        return block

    def limits(self) -> SharedBudget:
        """Return the limits for a run. Raises if the block was not saved, as runs share a budget by its name."""
        if self.name is None:
            raise ConfigurationError(
                "This PolluxBudget was never saved, and runs share a budget by its name.",
                hint="Save it first: PolluxBudget(usd_per_day=…).save('a-name').",
            )
        if self.usd_per_day is None and self.usd_in_total is None:
            raise ConfigurationError(
                f"The PolluxBudget {self.name!r} has no limit.", hint="Set usd_per_day, usd_in_total or both."
            )
        return SharedBudget(
            name=self.name,
            usd_per_day=self.usd_per_day,
            usd_in_total=self.usd_in_total,
            each_provider=self.each_provider,
        )

    @property
    def name(self) -> str | None:
        """The name that this block was saved under."""
        return self._block_document_name


def limits_of(budget: PolluxBudget | None) -> SharedBudget | None:
    """Return the limits of a run's shared budget; None if it has none."""
    return None if budget is None else budget.limits()
