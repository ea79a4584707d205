"""Estimate: the expected calls, tokens, cost and time of a run, and their presentation."""

from __future__ import annotations

from typing import Final, NamedTuple

from pydantic import Field

from pollux_flows.config import Target
from pollux_flows.document import Record
from pollux_flows.pricing import dollars

UNKNOWN: Final = "unknown"
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600


class Amount(Record):
    """An estimated number: its lowest, expected and worst value."""

    low: int | float | None = None
    expected: int | float | None = None
    worst: int | float | None = None
    unknown: str | None = Field(default=None, description="Why one of these is not known.")


class Estimate(Record):
    """The expected calls, tokens, cost and time of a run. Nothing was generated for it."""

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


class EstimateRow(NamedTuple):
    """A row of the table of amounts."""

    name: str
    low: str
    expected: str
    worst: str


def make_table(estimate: Estimate) -> list[EstimateRow]:
    """Return the table of the amounts, row by row."""
    now, batch, duration = estimate.cost_usd, estimate.batch_cost_usd, estimate.duration_s
    return [
        _row("Input tokens", estimate.input_tokens),
        _row("Output tokens", estimate.output_tokens),
        EstimateRow("Cost now", *map(_money, (now.low, now.expected, now.worst))),
        EstimateRow("Cost as a batch", *map(_money, (batch.low, batch.expected, batch.worst))),
        EstimateRow("Time", *map(_time, (duration.low, duration.expected, duration.worst))),
    ]


def describe_calls(estimate: Estimate) -> str:
    """Return a phrase about the number of calls and how many of them would be asked."""
    every = "" if estimate.to_ask == estimate.calls else f"of {estimate.calls:,} "
    parts = [f"{estimate.to_ask:,} {every}{'call' if estimate.calls == 1 else 'calls'} to ask"]
    parts += [f"{estimate.reused:,} answered already"] if estimate.reused else []
    if number := estimate.duplicates:
        parts.append(f"{number:,} {'duplicate' if number == 1 else 'duplicates'}")
    if estimate.unusable:
        parts.append(f"{estimate.unusable:,} that cannot be asked")
    return ", ".join(parts)


def describe_cost(estimate: Estimate) -> str:
    """Return a phrase about the expected cost and its range."""
    cost = estimate.cost_usd
    if cost.expected is None:
        return f"cost unknown: {cost.unknown}"
    worst = "an unknown amount" if cost.worst is None else dollars(cost.worst)
    batch = estimate.batch_cost_usd.expected
    as_batch = "" if batch is None else f", as a batch about {dollars(batch)}"
    return f"about {dollars(cost.expected)} ({dollars(cost.low or 0.0)} to {worst}){as_batch}"


def list_unknowns(estimate: Estimate) -> list[str]:
    """Return the reasons why some of the amounts are unknown, each once."""
    amounts = (
        estimate.input_tokens,
        estimate.output_tokens,
        estimate.cost_usd,
        estimate.batch_cost_usd,
        estimate.duration_s,
    )
    return list(dict.fromkeys(amount.unknown for amount in amounts if amount.unknown is not None))


def _row(name: str, amount: Amount) -> EstimateRow:
    return EstimateRow(
        name, *(UNKNOWN if each is None else f"{each:,}" for each in (amount.low, amount.expected, amount.worst))
    )


def _money(usd: float | None) -> str:
    return UNKNOWN if usd is None else dollars(usd)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:,.0f} s"
    return f"{seconds / _MINUTE_S:,.0f} min" if seconds < 2 * _HOUR_S else f"{seconds / _HOUR_S:,.1f} h"
