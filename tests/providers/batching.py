"""Batches through a session: rows written, sent, waited for by moving the clock, and read back."""

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


class Time:
    """The time of a simulated world, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def call(
    provider: ProviderName, prompt: str, options: Options | None = None, materials: Sequence[Material] = ()
) -> Call:
    return Call(MODELS[provider], tuple(materials), prompt, options or Options())


@dataclass
class Batching:
    provider: ProviderName
    session: Session
    sim: Simulator
    clock: Time
    folder: Path

    def write(self, *lines: bytes, last_end: bytes = b"\n") -> Rows:
        path = self.folder / f"rows-{len(list(self.folder.iterdir()))}.jsonl"
        path.write_bytes(b"\n".join(lines) + last_end)
        return Rows(path, len(lines))

    def rows(self, *prompts: str, options: Options | None = None) -> Rows:
        """With the keys r0, r1, …"""
        made = [call(self.provider, prompt, options) for prompt in prompts]
        return self.write(*(self.session.batches.row(each, f"r{place}") for place, each in enumerate(made)))

    async def file(self, rows: Rows, name: str = "rows.jsonl") -> str | None:
        if not self.session.batches.TAKES_A_FILE:
            return None
        return (await self.upload(name, "application/jsonl", rows.path.read_bytes(), purpose="batch")).file_id

    async def upload(self, name: str, mime_type: str, data: bytes, purpose: Any = "source") -> Uploaded:
        file = FileToSend(name, mime_type, len(data), io.BytesIO(data), purpose)
        return await self.session.upload(lambda client: self.session.files.upload(client, file))

    async def submit(self, rows: Rows, tag: str = "tag-1") -> Batch:
        return await self.session.submit_batch(tag, rows, await self.file(rows))

    async def ended(self, *prompts: str, tag: str = "tag-1") -> Batch:
        """A batch of these prompts, when its time has passed."""
        return await self.after(await self.submit(self.rows(*prompts), tag))

    async def after(self, batch: Batch, seconds: float = BATCH_S) -> Batch:
        self.clock.now += seconds
        return await self.session.inspect_batch(batch.id)

    async def results(self, batch: Batch) -> list[Result]:
        taken = io.BytesIO()
        await self.session.download_batch(batch, taken)
        return [self.session.batches.result(line) for line in taken.getvalue().splitlines()]

    async def by_key(self, batch: Batch) -> dict[str | None, Result]:
        return {result.key: result for result in await self.results(batch)}

    def answer(self, result: Result) -> Answer:
        return self.session.batches.read_answer(result.response)

    async def listed(self) -> list[list[Batch]]:
        return [page async for page in self.session.batch_pages()]

    def asked(self, operation: str) -> int:
        return len([each for each in self.sim.requests if each.operation == operation])


@asynccontextmanager
async def batching(settings: Config, sim: Simulator, folder: Path) -> AsyncIterator[Batching]:
    """A session of a provider in whose world time stands still, and a batch takes 100 seconds."""
    before, sim.clock, sim.batch_s = sim.batch_s, (clock := Time()), BATCH_S
    try:
        async with open_session(settings) as session:
            yield Batching(settings.provider, session, sim, clock, folder)
    finally:
        sim.batch_s = before
