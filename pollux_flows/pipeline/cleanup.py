"""Cleanup: delete files at the providers that no run uses any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
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
# A run waits so long for its files to be deleted; the rest is left to `sweep`.
_GIVE_BACK_S: Final = 30.0
_log: Final = logging.getLogger("pollux_flows")


def open_ledger(config: Config) -> Ledger:
    """Return the ledger of the files that the provider has."""
    return Ledger(store_of(config))


def store_of(config: Config) -> Store:
    """Return the state store of a Config: that of this process, or the simulator's."""
    return _simulated(home() / "simulator" / "state") if config.use_mock else open_store()


async def give_back(session: Session, ledger: Ledger, owner: str) -> None:
    """Release a run's files, and delete those that no owner is left of; what takes long is left to `sweep`.

    The answers are paid for by now: nothing that goes wrong here may cost one.
    """
    try:
        async with asyncio.timeout(_GIVE_BACK_S):
            await delete(session, ledger, await ledger.release(owner))
    except (PolluxError, TimeoutError) as error:
        _log.warning("Some files of this run are left for the flow `sweep` to delete: %s", error or "it took too long")


async def delete_due(session: Session, ledger: Ledger) -> list[str]:
    """Delete all files of this account that have no owner any more."""
    config = session.config
    due = await ledger.list_due(provider=config.provider, account=await ledger.derive_account(config.key()))
    return await delete(session, ledger, [each for each in due if each.key.base_url == config.base_url])


async def delete(session: Session, ledger: Ledger, dues: Sequence[Due]) -> list[str]:
    """Delete these; what cannot be deleted now is left for the next time."""
    deleting = _Deleting(session, ledger, asyncio.Semaphore(_AT_ONCE))
    known = [deleting.known(due, due.uploaded.file_id) for due in dues if due.uploaded is not None]
    lost = deleting.lost([due for due in dues if due.uploaded is None])
    return _flat(await asyncio.gather(*known, lost))


@dataclass(frozen=True)
class _Deleting:
    session: Session
    ledger: Ledger
    turn: asyncio.Semaphore

    async def known(self, due: Due, file_id: str) -> list[str]:
        async with self.turn:
            return await self._delete(due, [file_id]) if await self.ledger.begin_deletion(due) else []

    async def lost(self, orphans: Sequence[Due]) -> list[str]:
        """Those of which only the name is known: one listing finds them all."""
        claimed = list(compress(orphans, await asyncio.gather(*map(self.ledger.begin_deletion, orphans))))
        if not claimed:
            return []
        try:
            found = await self.session.find_files({due.marker for due in claimed})
        except APIError as error:
            await asyncio.gather(*(self.ledger.postpone_deletion(due, error.message) for due in claimed))
            return []
        return _flat(await asyncio.gather(*(self._found(due, found[due.marker]) for due in claimed)))

    async def _found(self, due: Due, file_ids: list[str]) -> list[str]:
        if not file_ids and due.reason == "orphan":  # it may still be on its way: a second look, later
            await self.ledger.postpone_deletion(due, "nothing of that name was there yet")
            return []
        async with self.turn:
            return await self._delete(due, file_ids)

    async def _delete(self, due: Due, file_ids: list[str]) -> list[str]:
        try:
            for file_id in file_ids:
                await self.session.delete_file(file_id)
        except APIError as error:
            await self.ledger.postpone_deletion(due, error.message)
            return []
        await self.ledger.finish_deletion(due)
        return file_ids


def _flat(lists: Sequence[list[str]]) -> list[str]:
    return [each for some in lists for each in some]


@cache
def _simulated(folder: Path) -> Store:
    """Return the store beside the simulated world, which outlives a process as well: its batches are found again."""
    from pollux_flows.state.disk import DiskStore

    return DiskStore(folder)
