"""Lease: who works on a job, for all workers of a Prefect server. A variable whose name can be given only once.

Only making it decides who has the lease. It is removed by its id, so nobody removes a successor's. Leases are told by
the wall clock: machines that share a server must agree on the time to well within a lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import VariableCreate
from prefect.exceptions import ObjectAlreadyExists

from pollux_flows.jobs.connection import connected
from pollux_flows.state.leases import LeaseLostError, run_to_completion
from pollux_flows.state.process import is_dead, this_process

# A Prefect server on SQLite may take a minute to answer when many write at once.
LEASE_S: Final = 120.0
_BEAT_S: Final = LEASE_S / 6
_SECOND_LOOK_S: Final = 2.0
_GONE: Final = 404
_VARIABLE: Final = "/variables/{id}"


class Lease:
    """A lease that was won."""

    def __init__(self, name: str, variable_id: UUID, until: float, said: dict[str, Any]) -> None:
        self._name, self._id, self._until, self._said = name, variable_id, until, said

    async def renew(self) -> None:
        """Make it last from now on, or raise LeaseLostError."""
        until = time.time() + LEASE_S
        if time.time() >= self._until:
            raise LeaseLostError(self._name)
        async with connected() as client:
            if not await _changed(client, self._id, {**self._said, "until": until}):
                raise LeaseLostError(self._name)
        self._until = until

    async def check(self) -> None:
        """Raise LeaseLostError if it may be another's by now. It asks the server only where it must."""
        if self._until - time.time() < LEASE_S / 2:
            await self.renew()

    async def release(self) -> None:
        """End it. One that was lost has ended."""
        async with connected() as client:
            await _removed(client, self._id)


@asynccontextmanager
async def lease(name: str) -> AsyncIterator[Lease | None]:
    """The lease on that name, or None when somebody alive has it. It is renewed while the work in here lasts."""
    won = await _acquire(name)
    if won is None:
        yield None
        return
    beating = asyncio.create_task(_beat(won))
    try:
        yield won
    finally:
        beating.cancel()
        with suppress(httpx.HTTPError):  # it runs out by itself
            await run_to_completion(won.release())


async def _acquire(name: str) -> Lease | None:
    async with connected() as client:
        while True:
            found = await client.read_variable_by_name(name)
            if found is not None:
                if _is_held(found.value):
                    return None
                if not _is_orphaned(found.value):
                    await asyncio.sleep(_SECOND_LOOK_S)  # its renewal may be on its way to a slow server
                    seen = await client.read_variable_by_name(name)
                    if seen is None or seen.value != found.value:
                        continue
                await _removed(client, found.id)
                continue
            until, token = time.time() + LEASE_S, uuid4().hex
            said = {"token": token, "process": this_process()}
            try:
                made = await client.create_variable(VariableCreate(name=name, value={**said, "until": until}))
            except ObjectAlreadyExists:
                # Ours, if the answer was lost and Prefect's client asked again.
                found = await client.read_variable_by_name(name)
                if found is None or not isinstance(found.value, dict) or found.value.get("token") != token:
                    continue
                made = found
            won = Lease(name, made.id, until, said)
            if until - time.time() > LEASE_S / 2:
                return won
            await won.release()  # the server took so long that it is nearly over


async def _beat(won: Lease) -> None:
    with suppress(LeaseLostError):
        while True:
            await asyncio.sleep(_BEAT_S)
            with suppress(httpx.HTTPError):  # the server may be well again for the next beat
                await won.renew()


def _is_held(said: Any) -> bool:
    if not isinstance(said, dict) or not isinstance(said.get("until"), int | float):
        return False  # somebody has edited it
    return said["until"] > time.time() and not _is_orphaned(said)


def _is_orphaned(said: Any) -> bool:
    """Whether its holder is known to have died."""
    process = said.get("process") if isinstance(said, dict) else None
    return isinstance(process, list) and is_dead(process)


async def _changed(client: PrefectClient, variable_id: UUID, value: dict[str, Any]) -> bool:
    return await _by_id(client, "PATCH", variable_id, json={"value": value})


async def _removed(client: PrefectClient, variable_id: UUID) -> bool:
    return await _by_id(client, "DELETE", variable_id)


async def _by_id(client: PrefectClient, method: Any, variable_id: UUID, **more: Any) -> bool:
    """By id, which no named method of Prefect's client does: a name may be a successor's by now."""
    try:
        await client.request(method, _VARIABLE, path_params={"id": variable_id}, **more)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != _GONE:
            raise
        return False
    return True
