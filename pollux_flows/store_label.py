"""Store label: a flow run notes which state its answers are in.

A retry may start on another worker. One that does not see the answers of the attempt before would pay for all of them
again, without a word: it refuses instead.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Final
from uuid import UUID, uuid4

from prefect.logging.loggers import get_run_logger

from pollux_flows.errors import ConfigurationError
from pollux_flows.jobs.connection import open_client
from pollux_flows.scope import Lineage
from pollux_flows.state.home import VARIABLE
from pollux_flows.state.identity import digest
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import STATE_URL, Store, open_store

LABEL: Final = "pollux.state"
ASK_ANEW: Final = "POLLUX_ASK_ANEW"

_REMEMBERED: Final = 10_000
_PATIENCE_S: Final = (0.06, 0.12, 0.25, 0.5)
# What this process has put on which run: the labels of a run at hand are those that it began with.
_labelled: Final[dict[UUID, tuple[str, str]]] = {}


async def confirm_store(here: Lineage) -> None:
    """Label the outermost flow run with the store at hand, or refuse where an earlier attempt has used another."""
    store, run, attempt = open_store(), here.outermost, here.chain[0][1]
    own = await store_id(store)
    known = _labelled.get(run.id) or _parse(run.labels.get(LABEL))
    if known == (own, attempt):
        return
    if known is not None:
        earlier, its_attempt = known
        if its_attempt == attempt:
            get_run_logger().warning(
                "Another worker has asked calls of this run, and keeps its answers in another state than this one "
                "(%s). Let all workers share one: %s=redis://….",
                store.where,
                STATE_URL,
            )
            return
        is_gone = earlier == own and await store.get(f"run/{digest('run', str(run.id))}") is None
        if (earlier != own or is_gone) and not os.environ.get(ASK_ANEW, "").strip():
            raise _refusal(store, is_gone=is_gone)
    await Journal(store, str(run.id)).begin()
    await _put_label(run.id, f"{own} {attempt}")
    while len(_labelled) >= _REMEMBERED:
        del _labelled[next(iter(_labelled))]
    _labelled[run.id] = own, attempt


async def store_id(store: Store) -> str:
    """The name of a store. One that has lost its data has another."""
    if (record := await store.get("store/id")) is None:
        await store.add("store/id", {"id": uuid4().hex[:12]})
        record = await store.get("store/id") or {}
    return str(record.get("id"))


async def _put_label(run_id: UUID, label: str) -> None:
    """Label the run.

    A server on SQLite refuses this whenever another write came between its read and its own, which is often, and
    Prefect's client then sleeps for two seconds: an earlier attempt of ours is cut off.
    """
    async with open_client() as client:
        for patience_s in (*_PATIENCE_S, None):
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await client.update_flow_run_labels(run_id, {LABEL: label})
                return


def _parse(label: object) -> tuple[str, str] | None:
    store, _, attempt = str(label or "").partition(" ")
    return (store, attempt) if store and attempt else None


def _refusal(store: Store, *, is_gone: bool) -> ConfigurationError:
    what = (
        f"Its record is gone from the state in {store.where}: it was pruned, or the state was lost."
        if is_gone
        else f"They are not in the state of this worker ({store.where}), which is another or has lost its data."
    )
    return ConfigurationError(
        f"An earlier attempt of this run has paid for answers that this one would ask, and pay, for again. {what}",
        hint=f"Let all workers share one state, with {STATE_URL}=redis://… or with {VARIABLE} on a disk that they "
        f"share, and retry where the answers are; or set {ASK_ANEW}=1 on the worker to ask all of it again.",
    )
