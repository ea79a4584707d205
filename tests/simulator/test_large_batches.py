"""Large batches: bounded memory, and no blocking of other requests."""

import asyncio
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from pollux_flows.simulator import Simulator
from pollux_flows.simulator.anthropic.batch_results import ResultLines

from .batchers import Anthropic
from .clients import KEY_HEADERS
from .conftest import Clock

ROWS = 3_000
PROMPT = "x" * 5_000
#: The prompts have 15 MB; their processing must take less memory than this.
MEMORY_LIMIT = 6 * 1024 * 1024
PARAMS = {"model": "claude-haiku-4-5", "max_tokens": 99, "messages": [{"role": "user", "content": PROMPT}]}


async def test_a_large_batch_body_takes_little_memory(http: httpx.AsyncClient, clock: Clock) -> None:
    """A large body is never completely in memory: when received, when its rows are answered, when results are sent."""

    async def body() -> AsyncIterator[bytes]:
        yield b'{"requests":['
        for number in range(ROWS):
            row = json.dumps({"custom_id": f"r{number}", "params": PARAMS})
            yield (row if number == 0 else "," + row).encode()
        yield b"]}"

    tracemalloc.start()
    try:
        created = await http.post("/anthropic/v1/messages/batches", content=body(), timeout=60)
        clock.now += 1
        path = f"/anthropic/v1/messages/batches/{created.json()['id']}"
        assert (await http.get(path, timeout=60)).json()["request_counts"]["succeeded"] == ROWS
        assert await count_lines(http, f"{path}/results") == ROWS
        assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    finally:
        tracemalloc.stop()


async def test_a_large_input_file_takes_little_memory(http: httpx.AsyncClient, clock: Clock, tmp_path: Path) -> None:
    """A large input file and its results file are never completely in memory."""
    with (tmp_path / "in.jsonl").open("w") as file:
        for number in range(ROWS):
            body = {"model": "gpt-4.1", "input": PROMPT}
            row = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/responses", "body": body}
            file.write(json.dumps(row) + "\n")
    tracemalloc.start()
    try:
        with (tmp_path / "in.jsonl").open("rb") as content:
            # httpx cannot stream a form asynchronously, so a sync client uploads it.
            uploaded = await asyncio.to_thread(upload, str(http.base_url), content)
        batch_request = {"input_file_id": uploaded, "endpoint": "/v1/responses", "completion_window": "24h"}
        created = await http.post("/openai/v1/batches", json=batch_request, timeout=60)
        clock.now += 1
        batch = (await http.get(f"/openai/v1/batches/{created.json()['id']}", timeout=60)).json()
        assert batch["request_counts"] == {"total": ROWS, "completed": ROWS, "failed": 0}
        assert await count_lines(http, f"/openai/v1/files/{batch['output_file_id']}/content") == ROWS
        assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    finally:
        tracemalloc.stop()


async def test_other_requests_are_answered_while_a_batch_settles(
    sim: Simulator, origin: str, clock: Clock, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_continue = threading.Event(), threading.Event()
    read = ResultLines.read_row

    def read_slowly(self: ResultLines, *row: Any) -> Any:
        has_begun.set()
        assert may_continue.wait(20)
        return read(self, *row)

    monkeypatch.setattr(ResultLines, "read_row", read_slowly)
    async with AsyncExitStack() as stack:
        batcher = await Anthropic.open(sim.base_url("anthropic", origin), stack)
        batch_id = await batcher.submit("Hello?")
        clock.now += 1
        reading = asyncio.create_task(batcher.state(batch_id))
        assert await asyncio.to_thread(has_begun.wait, 20)
        assert (await http.get("/anthropic/v1/files")).status_code == 200
        assert not reading.done()
        may_continue.set()
        assert await reading == "ended"


def upload(origin: str, content: Any) -> str:
    with httpx.Client(base_url=origin, headers=KEY_HEADERS, timeout=60) as client:
        answer = client.post("/openai/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
    return str(answer.json()["id"])


async def count_lines(http: httpx.AsyncClient, path: str) -> int:
    async with http.stream("GET", path) as answer:
        return sum([piece.count(b"\n") async for piece in answer.aiter_bytes()])
