"""Cleanup: delete files at the providers that no run uses any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from pollux_flows.config import Config
from pollux_flows.errors import APIError, PolluxError
from pollux_flows.providers.session import Session
from pollux_flows.state.home import home
from pollux_flows.state.ledger import Ledger
from pollux_flows.state.store import Store, open_store
from pollux_flows.state.upload import Due

_AT_ONCE: Final = 4
# The most time that a run takes to delete its files; the rest is left to `sweep`.
_DELETE_S: Final = 30.0
_log: Final = logging.getLogger("pollux_flows")


def open_ledger(config: Config) -> Ledger:
    """Return the ledger of uploaded files."""
    return Ledger(store_of(config))


def store_of(config: Config) -> Store:
    """Return the state store for a Config: that of this process, or the simulator's."""
    return _simulated_store(home() / "simulator" / "state") if config.use_mock else open_store()


async def release_owner(session: Session, ledger: Ledger, owner: str) -> None:
    """Release the files of an owner, and delete those without another owner, best effort. `sweep` deletes the rest.

    The answers of the run are paid for by now, so errors are only logged.
    """
    try:
        async with asyncio.timeout(_DELETE_S):
            await delete(session, ledger, await ledger.release(owner))
    except (PolluxError, TimeoutError) as error:
        _log.warning("Some files of this run are left for the flow `sweep` to delete: %s", error or "it took too long")


async def delete_due(session: Session, ledger: Ledger) -> list[str]:
    """Delete all files of this account that have no owner any more, and return their ids."""
    config = session.config
    due = await ledger.list_due(provider=config.provider, account=await ledger.derive_account(config.key()))
    return await delete(session, ledger, [each for each in due if each.key.base_url == config.base_url])


async def delete(session: Session, ledger: Ledger, dues: Sequence[Due]) -> list[str]:
    """Delete these files, and return their ids. Files that cannot be deleted now are left for the next time."""
    # Of files whose reply was lost, only the name is known: one list finds them all.
    lost = [due for due in dues if due.uploaded is None and await ledger.begin_deletion(due)]
    listing = asyncio.ensure_future(session.find_files({due.marker for due in lost})) if lost else None
    turn = asyncio.Semaphore(_AT_ONCE)

    async def delete_one(due: Due) -> list[str]:
        async with turn:
            if due.uploaded is not None and not await ledger.begin_deletion(due):
                return []
            try:
                file_ids = [due.uploaded.file_id] if due.uploaded else (await listing)[due.marker] if listing else []
                for file_id in file_ids:
                    await session.delete_file(file_id)
            except APIError as error:
                await ledger.postpone_deletion(due, error.message)
                return []
        if not file_ids and due.reason == "orphan":  # the upload may still be in progress: look again later
            await ledger.postpone_deletion(due, "no file of that name was found yet")
        else:
            await ledger.finish_deletion(due)
        return file_ids

    deleted = await asyncio.gather(*map(delete_one, [*(due for due in dues if due.uploaded is not None), *lost]))
    return [file_id for file_ids in deleted for file_id in file_ids]


@cache
def _simulated_store(folder: Path) -> Store:
    """Return the store for the simulator, whose batches also outlive a process."""
    from pollux_flows.state.disk import DiskStore

    return DiskStore(folder)
