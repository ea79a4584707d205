"""The requests that the simulated provider has received, counted by their kind."""

from __future__ import annotations

from pollux_flows.simulator import Simulator


def count_calls(simulator: Simulator) -> int:
    """Return the number of generate calls."""
    # Counted without being read: the body of the last one may be arriving.
    return sum(entry.operation == "generate" for entry in simulator.requests)


def count_answers(simulator: Simulator) -> int:
    """Return the number of generate calls that were answered, and paid for."""
    return sum(entry.operation == "generate" and entry.status == 200 for entry in simulator.requests)


def caching_operations(simulator: Simulator) -> list[str]:
    """Return the operations on caches, in order."""
    return [str(entry.operation) for entry in simulator.requests if "cache" in str(entry.operation)]
