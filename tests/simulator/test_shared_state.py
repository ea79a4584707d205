"""Shared state: simulators in several processes have their files, batches and caches in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from pollux_flows.simulator import Simulator, serve, storage

from .batchers import BATCHERS, Batcher
from .clients import KEY_HEADERS

PROMPTS = ("One?", "[[simulate: status=400]] Two?", "Three?")


@pytest.fixture(scope="module")
def simulators() -> Iterator[list[tuple[Simulator, str]]]:
    """Serve two simulators that share nothing but a folder."""
    first, second = Simulator(batch_s=0), Simulator(batch_s=0)
    with serve(first) as one, serve(second) as other:
        yield [(first, one), (second, other)]


@pytest.fixture(params=tuple(BATCHERS))
async def batchers(
    request: pytest.FixtureRequest, simulators: list[tuple[Simulator, str]], tmp_path: Path
) -> AsyncIterator[list[Batcher]]:
    kind = BATCHERS[request.param]
    async with AsyncExitStack() as stack:
        opened = []
        for simulator, origin in simulators:
            simulator.share(tmp_path / "shared")
            simulator.reset()
            opened.append(await kind.open(simulator.base_url(kind.provider, origin), stack))
        yield opened


async def test_another_process_can_collect_a_batch(
    batchers: list[Batcher], simulators: list[tuple[Simulator, str]]
) -> None:
    """A process answers the rows of a batch whose submitting process has ended."""
    batch_id = await batchers[0].submit(*PROMPTS)
    simulators[0][0].batch_store._items.clear()  # as if its process had ended
    assert await batchers[1].list_ids(10) == [batch_id]
    assert await batchers[1].state(batch_id) == batchers[1].state_names["completed"]
    results = await batchers[1].results_by_key(batch_id)
    assert [results[f"r{n}"].outcome for n in range(3)] == ["succeeded", "errored", "succeeded"]
    assert results["r2"].text == "Simulated answer to: Three?"


async def test_processes_share_the_results_of_a_batch(batchers: list[Batcher]) -> None:
    batch_id = await batchers[0].submit(*PROMPTS)
    await batchers[0].state(batch_id)
    lines = [[line async for line in batcher._lines(batch_id)] for batcher in (*batchers, batchers[0])]
    assert lines[0] == lines[1] == lines[2]


async def test_processes_share_the_cancellation_of_a_batch(
    batchers: list[Batcher], simulators: list[tuple[Simulator, str]]
) -> None:
    simulators[0][0].batch(takes_s=3600)
    batch_id = await batchers[0].submit(*PROMPTS)
    await batchers[1].cancel(batch_id)
    assert await batchers[0].state(batch_id) == batchers[0].state_names["cancelling"]


async def test_equal_batches_in_two_processes_have_different_ids(
    batchers: list[Batcher], simulators: list[tuple[Simulator, str]]
) -> None:
    """Equal batches and input files of two processes are both stored."""
    ids = [await batcher.submit(*PROMPTS) for batcher in batchers]
    assert sorted(await batchers[0].list_ids(10)) == sorted(ids)
    assert len({file.id for simulator, _ in simulators for file in simulator.files if file.purpose == "batch"}) in (
        0,
        2,
    )


async def test_the_oldest_batches_are_removed(batchers: list[Batcher], tmp_path: Path) -> None:
    """Beyond the limit the oldest batches and their content are removed for all processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "MAX_ITEMS", 2)
        ids = [await batchers[n % 2].submit("Which?") for n in range(6)]
    for batcher in batchers:
        assert await batcher.list_ids(10) == ids[:-3:-1]
    rows = [path.name for path in (tmp_path / "shared").iterdir() if path.suffix == ".rows"]
    assert len(rows) == 2


async def test_a_reset_clears_the_shared_folder(
    batchers: list[Batcher], simulators: list[tuple[Simulator, str]]
) -> None:
    await batchers[0].submit(*PROMPTS)
    simulators[1][0].reset()
    assert await batchers[1].list_ids(10) == []


@pytest.mark.parametrize("batchers", ["openai"], indirect=True)
async def test_processes_share_the_deletion_of_a_file(
    batchers: list[Batcher], simulators: list[tuple[Simulator, str]], tmp_path: Path
) -> None:
    await batchers[0].submit(*PROMPTS)
    async with httpx.AsyncClient(base_url=simulators[1][1], headers=KEY_HEADERS, verify=False) as http:  # noqa: S501 (loopback)
        (file,) = (await http.get("/openai/v1/files")).json()["data"]
        content = await http.get(f"/openai/v1/files/{file['id']}/content")
        assert len(content.text.splitlines()) == 3
        assert (await http.delete(f"/openai/v1/files/{file['id']}")).status_code == 200
    assert [file.state for file in simulators[0][0].files] == ["deleted"]
    assert not list((tmp_path / "shared").glob("*.content"))


async def test_processes_share_caches(simulators: list[tuple[Simulator, str]], tmp_path: Path) -> None:
    """One process creates a cache, another extends it, and its deletion applies to both."""
    for simulator, _ in simulators:
        simulator.share(tmp_path / "shared")
        simulator.reset()
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=simulator.base_url("gemini", origin), headers=KEY_HEADERS)
            )
            for simulator, origin in simulators
        ]
        body = {"model": "models/gemini-2.5-flash", "contents": [{"parts": [{"text": "word"}]}], "ttl": "60s"}
        created = (await first.post("/v1/cachedContents", json=body)).json()
        path = f"/v1/{created['name']}"
        assert (await second.get(path)).json() == created
        extended = (await second.patch(path, json={"ttl": "3600s"})).json()
        assert extended["expireTime"] > created["expireTime"]
        assert (await first.get(path)).json() == extended
        await first.delete(path)
        assert (await second.get(path)).status_code == 403
        assert (await first.get("/v1/cachedContents")).json() == {}
