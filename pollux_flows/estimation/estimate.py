"""Estimate: what a run is expected to take, and where each number comes from."""

from __future__ import annotations

from pydantic import Field

from pollux_flows.config import Target
from pollux_flows.document import Record


class Amount(Record):
    """A number that is not known yet: the least, the expected and the most of it."""

    low: int | float | None = None
    expected: int | float | None = None
    worst: int | float | None = None
    unknown: str | None = Field(default=None, description="Why one of these is not known.")


class Estimate(Record):
    """What a run is expected to take. Nothing was generated for it."""

    target: Target = Field(description="The provider and the model that would be asked.")
    calls: int = Field(description="How many calls the run makes.")
    duplicates: int = Field(description="How many of them ask what an earlier one asks; of a table, once in all.")
    reused: int = Field(description="How many are answered in the journal already.")
    unusable: int = Field(default=0, description="How many rows of a table cannot be asked.")
    to_ask: int = Field(description="How many would be asked, and paid for.")
    input_tokens: Amount = Field(description="Of the calls to ask.")
    output_tokens: Amount = Field(description="Of the calls to ask, thinking included.")
    cost_usd: Amount = Field(description="If they are asked now.")
    batch_cost_usd: Amount = Field(description="If they are submitted as a batch.")
    duration_s: Amount = Field(description="The time that it takes within the account's limits.")
    caching: str = Field(description="Whether caching what the calls share would make them cheaper.")
    counted: int = Field(description="For how many calls the provider has counted the tokens.")
    prices: str = Field(description="The price list.")
    assumptions: list[str] = Field(description="Where each number comes from.")
