"""Saved: whether the answers of a run are still in the store, looked up before an error advises to rely on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pollux_flows.errors import PolluxError
from pollux_flows.result import Outcome
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import LostError


class Saved(NamedTuple):
    """The result of a look for the answers of a run."""

    where: str
    are_there: bool
    problem: str | None = None
    """Why it could not be looked up."""

    def advice(self, which: str, retry: str, anew: str) -> str:
        """Return what to expect of a retry: `which` are saved and `retry` is true of them, or they are gone.

        `anew` says who then asks everything again.
        """
        if self.problem is not None:
            return f"Whether {which.lower()} still saved could not be looked up: {self.problem}"
        if self.are_there:
            return f"{which} saved: {retry}."
        return f"{which} gone from {self.where}, which has lost them: {anew} asks, and pays for, everything again."


async def look_for(journal: Journal, outcomes: Sequence[Outcome]) -> Saved:
    """Look whether the store still has these answers of a run: one read, of the first and the last of them."""
    where = f"the state in {journal.store.where}"
    try:
        return Saved(where, await journal.has_answers([outcomes[0], outcomes[-1]] if outcomes else []))
    except LostError:
        return Saved(where, are_there=False)
    except PolluxError as error:
        return Saved(where, are_there=False, problem=error.message)
