"""Saved answers: check that the answers of a run are still in the store before an error advises to rely on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pollux_flows.errors import PolluxError
from pollux_flows.result import Outcome
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import StateLostError


class Saved(NamedTuple):
    """The result of looking for the saved answers of a run in its store."""

    where: str
    are_saved: bool
    problem: str | None = None
    """Why this could not be checked."""

    def advice(self, which: str, retry: str, anew: str) -> str:
        """Return a sentence on what a retry does.

        If the answers exist, "`which` saved: `retry`."; otherwise, that `anew` asks everything again.
        """
        if self.problem is not None:
            return f"Whether {which.lower()} still saved could not be checked: {self.problem}"
        if self.are_saved:
            return f"{which} saved: {retry}."
        return f"{which} no longer in {self.where}: {anew} asks, and pays for, everything again."


async def check_saved(journal: Journal, outcomes: Sequence[Outcome]) -> Saved:
    """Check whether the store still has these answers of a run, by reading the first and the last of them."""
    where = f"the state in {journal.store.where}"
    try:
        return Saved(where, await journal.has_answers([outcomes[0], outcomes[-1]] if outcomes else []))
    except StateLostError:
        return Saved(where, are_saved=False)
    except PolluxError as error:
        return Saved(where, are_saved=False, problem=error.message)
