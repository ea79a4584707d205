"""Work: the calls of a run that would be asked, and earlier answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import uuid4

from pollux_flows.pipeline.plan import Plan, PlannedCall
from pollux_flows.pipeline.terms import Terms
from pollux_flows.result import Outcome
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import open_store

# Records are loaded in portions, as each holds an entire answer.
_AT_ONCE: Final = 500
MOST_EARLIER: Final = 200
"""The most earlier answers that an estimate is derived from."""


class SampledCall(NamedTuple):
    """A call that would be asked, and the plan that it is part of."""

    plan: Plan
    call: PlannedCall


@dataclass(frozen=True)
class Work:
    """The calls of a run. For a table, `sample` is an even selection of all rows to ask.

    `earlier` are outcomes of the same calls, from which the length and the duration of answers are estimated.
    """

    sample: Sequence[SampledCall]
    calls: int
    to_ask: int
    duplicates: int = 0
    reused: int = 0
    unusable: int = 0
    why: Sequence[str] = ()
    """The assumptions behind these numbers."""
    earlier: Sequence[Outcome] = field(default=(), repr=False)

    @property
    def scale(self) -> float:
        """The number of calls to ask that each call of the sample represents."""
        return self.to_ask / len(self.sample) if self.sample else 0.0

    @property
    def only_plan(self) -> Plan | None:
        """The plan of all calls to ask; None if there are several, or if the sample represents further calls."""
        plans = {id(each.plan): each.plan for each in self.sample}
        return next(iter(plans.values())) if len(plans) == 1 and self.to_ask == len(self.sample) else None


async def find_work(plan: Plan, terms: Terms) -> Work:
    """Return the calls of a plan that would be asked on these terms, and earlier answers to them."""
    earlier: list[Outcome] = []
    reused: set[int] = set()
    if terms.reuse == "always":
        for start in range(0, len(plan.calls), _AT_ONCE):
            calls = plan.calls[start : start + _AT_ONCE]
            found = await load_earlier(calls, terms.max_age)
            reused |= {call.index for call in calls if call.identity in found}
            earlier += list(found.values())[: MOST_EARLIER - len(earlier)]
    to_ask = [call for call in plan.calls if call.index not in reused]
    # Earlier answers to the same calls, of another run or too old to be reused.
    latest = list((await load_earlier(spread(to_ask, MOST_EARLIER))).values())
    return Work(
        sample=[SampledCall(plan, call) for call in to_ask],
        calls=len(plan.calls),
        to_ask=len(to_ask),
        duplicates=sum(call.occurrence > 0 for call in plan.calls),
        reused=len(reused),
        earlier=latest or earlier,
    )


async def load_earlier(calls: Sequence[PlannedCall], max_age_s: float | None = None) -> dict[str, Outcome]:
    """Return the latest answers to these calls of any run, by identity. Nothing is written."""
    journal = Journal(open_store(), uuid4().hex)
    found = await journal.load_reusable([call.identity for call in calls], max_age_s)
    return {identity: outcome for identity, outcome in found.items() if outcome.problem is None}


def spread(calls: Sequence[PlannedCall], most: int) -> Sequence[PlannedCall]:
    """Return at most `most` of these calls, evenly spread, including the first and the last."""
    if len(calls) <= most:
        return calls
    return [calls[round(place * (len(calls) - 1) / (most - 1))] for place in range(most)]
