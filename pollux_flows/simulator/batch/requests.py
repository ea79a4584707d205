"""Requests about batches, as far as the providers are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pollux_flows.simulator.batch.plan import Plan
from pollux_flows.simulator.batch.rows import Rows
from pollux_flows.simulator.batch.settling import RowWriter, look_at
from pollux_flows.simulator.batch.stored import StoredBatch
from pollux_flows.simulator.wire import Call

Prepare = Callable[[Call], None]


def accepted(call: Call, prefix: str, plan: Plan, rows: Rows, **fields: Any) -> StoredBatch:
    """Store a new batch, whose id has this prefix; `fields` are further fields of the batch."""
    world = call.world
    batch = StoredBatch(
        provider=call.provider.name,
        id=f"{prefix}{world.number():08d}{rows.spool.sha256[:8]}",
        account=call.account,
        created_at=world.now(),
        takes_s=world.batch_s if plan.takes_s is None else plan.takes_s,
        plan=plan,
        input=rows,
        **fields,
    )
    world.batch_store.add(batch)
    call.stored = batch.id
    return batch


def looks_at_one(find: Callable[[Call], StoredBatch], writer: RowWriter) -> Prepare:
    """Return a `prepare` that finds the requested batch, with its current phase."""

    def prepare(call: Call) -> None:
        batch = find(call)
        call.prepared = batch, look_at(batch, call, writer)

    return prepare


def looks_at_page(page: Callable[[Call], tuple[list[StoredBatch], object]], writer: RowWriter) -> Prepare:
    """Return a `prepare` that finds the batches of a page, each with its current phase, and the next page."""

    def prepare(call: Call) -> None:
        batches, following = page(call)
        call.prepared = [(batch, look_at(batch, call, writer)) for batch in batches], following

    return prepare
