"""Leases on a Prefect server: the exclusive right to work on a job or a cache until a time. Each is a variable.

A server refuses a second variable of the same name, so exactly one of many processes acquires a lease. A variable is
removed by its id, so that a later lease of the same name is never removed. Leases expire by the wall clock: the clocks
of machines that share a server must differ by much less than the length of a lease.
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

from pollux_flows.jobs.connection import open_client, suppress_status
from pollux_flows.state.leases import LeaseLostError, run_to_completion
from pollux_flows.state.process import is_dead, this_process

# A Prefect server on SQLite may take a minute to answer when many write at once.
LEASE_S: Final = 120.0
_RENEW_S: Final = LEASE_S / 6
_CONFIRM_S: Final = 2.0
_VARIABLE: Final = "/variables/{id}"


class ServerLease:
    """A lease that this process has acquired."""

    def __init__(self, name: str, variable_id: UUID, until: float, holder: dict[str, Any]) -> None:
        self._name, self._id, self._until, self._holder = name, variable_id, until, holder

    async def renew(self) -> None:
        """Extend the lease from now on, or raise LeaseLostError."""
        until = time.time() + LEASE_S
        if time.time() >= self._until:
            raise LeaseLostError(self._name)
        async with open_client() as client:
            if not await _request(client, "PATCH", self._id, json={"value": {**self._holder, "until": until}}):
                raise LeaseLostError(self._name)
        self._until = until

    async def check(self) -> None:
        """Raise LeaseLostError if another process may have taken over. A lease that expires soon is renewed."""
        if self._until - time.time() < LEASE_S / 2:
            await self.renew()

    async def release(self) -> None:
        """Release the lease. Releasing a lost lease does nothing."""
        async with open_client() as client:
            await _request(client, "DELETE", self._id)


@asynccontextmanager
async def acquire_server_lease(name: str) -> AsyncIterator[ServerLease | None]:
    """Acquire a lease and renew it until the end of the block; None if another process has it."""
    lease = await _acquire(name)
    if lease is None:
        yield None
        return
    renewal = asyncio.create_task(_renew_repeatedly(lease))
    try:
        yield lease
    finally:
        renewal.cancel()
        with suppress(httpx.HTTPError):  # the lease then expires
            await run_to_completion(lease.release())


async def _acquire(name: str) -> ServerLease | None:
    async with open_client() as client:
        while True:
            found = await client.read_variable_by_name(name)
            if found is not None:
                if _is_active(found.value):
                    return None
                if not _is_orphaned(found.value):
                    await asyncio.sleep(_CONFIRM_S)  # a renewal may be in flight to a slow server
                    seen = await client.read_variable_by_name(name)
                    if seen is None or seen.value != found.value:
                        continue
                await _request(client, "DELETE", found.id)
                continue
            until, token = time.time() + LEASE_S, uuid4().hex
            holder = {"token": token, "process": this_process()}
            try:
                made = await client.create_variable(VariableCreate(name=name, value={**holder, "until": until}))
            except ObjectAlreadyExists:
                # Perhaps by this call: if its reply was lost, Prefect's client has repeated it.
                found = await client.read_variable_by_name(name)
                if found is None or not isinstance(found.value, dict) or found.value.get("token") != token:
                    continue
                made = found
            lease = ServerLease(name, made.id, until, holder)
            if until - time.time() > LEASE_S / 2:
                return lease
            await lease.release()  # the server was so slow that the lease has nearly expired


async def _renew_repeatedly(lease: ServerLease) -> None:
    with suppress(LeaseLostError):
        while True:
            await asyncio.sleep(_RENEW_S)
            with suppress(httpx.HTTPError):  # the server may be available again for the next renewal
                await lease.renew()


def _is_active(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("until"), int | float):
        return False  # the variable was edited
    return value["until"] > time.time() and not _is_orphaned(value)


def _is_orphaned(value: Any) -> bool:
    """Return True if the process that holds the lease is known to have died."""
    process = value.get("process") if isinstance(value, dict) else None
    return isinstance(process, list) and is_dead(process)


async def _request(client: PrefectClient, method: Any, variable_id: UUID, **more: Any) -> bool:
    """Change or delete a variable by its id, and return whether it exists.

    Prefect's client addresses variables by name, which may belong to a later lease by now.
    """
    with suppress_status(httpx.codes.NOT_FOUND):
        await client.request(method, _VARIABLE, path_params={"id": variable_id}, **more)
        return True
    return False
