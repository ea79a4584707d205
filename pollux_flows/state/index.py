"""Index: records the calls of each flow run, with the identities under which their answers are stored.

So the answers of a run can be listed later, even if the run failed or was killed. Other facts that a list needs (the
requested schema, the names of sources) have a record of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from pollux_flows.state.identity import digest
from pollux_flows.state.retention import retention_s
from pollux_flows.state.store import Store


class IndexedCall(NamedTuple):
    """A call of a flow run, as it is recorded in the index."""

    position: int
    identity: str
    source: int | None
    prompt: str | None


class RunFacts(NamedTuple):
    """The facts about all calls of a flow run that a list of its answers needs."""

    schema: dict[str, Any] | None = None
    """The JSON Schema that was requested for the answers."""
    source_names: list[str] | None = None
    """The names of the sources, if each call is about one of them."""


class IndexCall(Protocol):
    """The part of a planned call that is recorded in the index."""

    @property
    def index(self) -> int: ...
    @property
    def prompt(self) -> str | None: ...
    @property
    def source(self) -> int | None: ...
    @property
    def identity(self) -> str: ...


async def write_index(
    store: Store, run: str, flow_run: str | None, stored_calls: Iterable[tuple[IndexCall, str]], *, at: float
) -> None:
    """Record the identities under which the answers to these calls are stored. The latest record of a call counts."""
    rows = [[call.index, identity, call.source, call.prompt] for call, identity in stored_calls]
    if rows and flow_run is not None:
        key = f"index/{run}/{flow_run}/{at:017.6f}-{uuid4().hex[:8]}"
        await store.put(key, {"at": at, "flow_run": flow_run, "calls": rows}, retention_s())


async def write_facts(store: Store, run: str, flow_run: str | None, facts: RunFacts, *, at: float) -> None:
    """Record these facts about the calls of a flow run, if there are any."""
    if facts != RunFacts() and flow_run is not None:
        key = f"index/{run}/{flow_run}/{at:017.6f}-{uuid4().hex[:8]}"
        await store.put(key, {"at": at, "flow_run": flow_run, "calls": [], "facts": [*facts]}, retention_s())


async def read_index(store: Store, run: str, flow_run: str) -> tuple[list[IndexedCall], RunFacts]:
    """Return the calls of a flow run, in order, and the facts about them.

    `run` is the name of the run that the answers belong to.
    """
    calls: dict[int, IndexedCall] = {}
    facts = RunFacts()
    async for _, record in store.scan(f"index/{digest('run', run)}/{flow_run}/"):  # oldest first
        for call in (IndexedCall(*row) for row in record["calls"]):
            # A call that sends tool results has no prompt: it continues the call before.
            earlier = calls.get(call.position)
            is_continued = call.prompt is None and earlier is not None
            calls[call.position] = call._replace(prompt=earlier.prompt) if is_continued and earlier else call
        facts = RunFacts(*record["facts"]) if "facts" in record else facts
    return [calls[index] for index in sorted(calls)], facts
