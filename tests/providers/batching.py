"""Helpers for batch tests: write rows, submit them, move the clock until the batch ends, and download the results."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pollux_flows import Config, Options
from pollux_flows.config import ProviderName
from pollux_flows.providers.base import Call
from pollux_flows.providers.batches import Batch, Result, Rows
from pollux_flows.providers.material import Material
from pollux_flows.providers.session import Session, open_session
from pollux_flows.providers.uploads import FileToSend
from pollux_flows.result import Answer
from pollux_flows.simulator import Simulator
from pollux_flows.state.upload import Uploaded
from tests.loopback import MODELS

BATCH_S = 100.0


class FrozenClock:
    """A clock for the simulator that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def make_call(
    provider: ProviderName, prompt: str, options: Options | None = None, materials: Sequence[Material] = ()
) -> Call:
    return Call(MODELS[provider], tuple(materials), prompt, options or Options())


@dataclass
class BatchSession:
    provider: ProviderName
    session: Session
    sim: Simulator
    clock: FrozenClock
    folder: Path

    def write_rows(self, *lines: bytes, last_end: bytes = b"\n") -> Rows:
        path = self.folder / f"rows-{len(list(self.folder.iterdir()))}.jsonl"
        path.write_bytes(b"\n".join(lines) + last_end)
        return Rows(path, len(lines))

    def make_rows(self, *prompts: str, options: Options | None = None) -> Rows:
        """Write a row for each prompt, with the keys r0, r1, …"""
        calls = [make_call(self.provider, prompt, options) for prompt in prompts]
        return self.write_rows(*(self.session.batches.row(call, f"r{place}") for place, call in enumerate(calls)))

    async def upload_rows(self, rows: Rows, name: str = "rows.jsonl") -> str | None:
        """Upload the rows, and return the file's id; None if the provider takes rows in the request itself."""
        if not self.session.batches.TAKES_A_FILE:
            return None
        return (await self.upload(name, "application/jsonl", rows.path.read_bytes(), purpose="batch")).file_id

    async def upload(self, name: str, mime_type: str, data: bytes, purpose: Any = "source") -> Uploaded:
        file = FileToSend(name, mime_type, len(data), io.BytesIO(data), purpose)
        return await self.session.upload(lambda client: self.session.files.upload(client, file))

    async def submit(self, rows: Rows, tag: str = "tag-1") -> Batch:
        return await self.session.submit_batch(tag, rows, await self.upload_rows(rows))

    async def run_batch(self, *prompts: str, tag: str = "tag-1") -> Batch:
        """Submit a batch of these prompts, move the clock to its end, and return the batch as it is then."""
        return await self.inspect_after(await self.submit(self.make_rows(*prompts), tag))

    async def inspect_after(self, batch: Batch, seconds: float = BATCH_S) -> Batch:
        """Move the clock by so many seconds, and return the batch as it is then."""
        self.clock.now += seconds
        return await self.session.inspect_batch(batch.id)

    async def download_results(self, batch: Batch) -> list[Result]:
        downloaded = io.BytesIO()
        await self.session.download_batch(batch, downloaded)
        return [self.session.batches.result(line) for line in downloaded.getvalue().splitlines()]

    async def download_by_key(self, batch: Batch) -> dict[str | None, Result]:
        return {result.key: result for result in await self.download_results(batch)}

    def read_answer(self, result: Result) -> Answer:
        return self.session.batches.read_answer(result.response)

    async def list_pages(self) -> list[list[Batch]]:
        return [page async for page in self.session.batch_pages()]

    def count_requests(self, operation: str) -> int:
        return len([entry for entry in self.sim.requests if entry.operation == operation])


@asynccontextmanager
async def open_batch_session(settings: Config, sim: Simulator, folder: Path) -> AsyncIterator[BatchSession]:
    """Open a session of the provider with a frozen clock and batches that take 100 seconds."""
    previous_batch_s, sim.clock, sim.batch_s = sim.batch_s, (clock := FrozenClock()), BATCH_S
    try:
        async with open_session(settings) as session:
            yield BatchSession(settings.provider, session, sim, clock, folder)
    finally:
        sim.batch_s = previous_batch_s
