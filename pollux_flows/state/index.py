"""Index: what each flow run of a run has asked, by position, and under which name its answer is found.

So the answers of a run can be listed later, also those of one that failed or was killed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol
from uuid import uuid4

from pollux_flows.state.bounds import kept_s
from pollux_flows.state.store import Store


class Call(Protocol):
    """As much of a planned call as is noted."""

    @property
    def index(self) -> int: ...
    @property
    def prompt(self) -> str | None: ...
    @property
    def source(self) -> int | None: ...
    @property
    def identity(self) -> str: ...


async def write_index(
    store: Store, run: str, flow_run: str | None, found_as: Iterable[tuple[Call, str]], *, at: float
) -> None:
    """Note under which identities the answers to these calls are found. A later note about a call counts more."""
    rows = [[call.index, identity, call.source, call.prompt] for call, identity in found_as]
    if rows and flow_run is not None:
        key = f"index/{run}/{flow_run}/{at:017.6f}-{uuid4().hex[:8]}"
        await store.put(key, {"at": at, "flow_run": flow_run, "calls": rows}, kept_s())
