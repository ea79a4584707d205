"""A world that processes share: what one of them has been given, another finds."""

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
def worlds() -> Iterator[list[tuple[Simulator, str]]]:
    """Two of them: what they have in common is the folder alone."""
    first, second = Simulator(batch_s=0), Simulator(batch_s=0)
    with serve(first) as one, serve(second) as other:
        yield [(first, one), (second, other)]


@pytest.fixture(params=tuple(BATCHERS))
async def batchers(
    request: pytest.FixtureRequest, worlds: list[tuple[Simulator, str]], tmp_path: Path
) -> AsyncIterator[list[Batcher]]:
    kind = BATCHERS[request.param]
    async with AsyncExitStack() as stack:
        opened = []
        for world, origin in worlds:
            world.share(tmp_path / "shared")
            world.reset()
            opened.append(await kind.open(world.base_url(kind.provider, origin), stack))
        yield opened


async def test_another_process_collects(batchers: list[Batcher], worlds: list[tuple[Simulator, str]]) -> None:
    """Which answers the rows, too: the first had ended before anything asked after the batch."""
    batch_id = await batchers[0].submit(*PROMPTS)
    worlds[0][0].batch_store._items.clear()  # as if its process had ended
    assert await batchers[1].ids(10) == [batch_id]
    assert await batchers[1].state(batch_id) == batchers[1].words["completed"]
    results = await batchers[1].by_key(batch_id)
    assert [results[f"r{n}"].outcome for n in range(3)] == ["succeeded", "errored", "succeeded"]
    assert results["r2"].text == "Simulated answer to: Three?"


async def test_results_that_one_has_made_are_those_of_all(batchers: list[Batcher]) -> None:
    batch_id = await batchers[0].submit(*PROMPTS)
    await batchers[0].state(batch_id)
    lines = [[line async for line in batcher._lines(batch_id)] for batcher in (*batchers, batchers[0])]
    assert lines[0] == lines[1] == lines[2]


async def test_what_one_cancels_is_cancelled_for_all(
    batchers: list[Batcher], worlds: list[tuple[Simulator, str]]
) -> None:
    worlds[0][0].batch(takes_s=3600)
    batch_id = await batchers[0].submit(*PROMPTS)
    await batchers[1].cancel(batch_id)
    assert await batchers[0].state(batch_id) == batchers[0].words["cancelling"]


async def test_the_same_in_each_has_two_ids(batchers: list[Batcher], worlds: list[tuple[Simulator, str]]) -> None:
    """Though either counts for itself."""
    ids = [await batcher.submit(*PROMPTS) for batcher in batchers]
    assert sorted(await batchers[0].ids(10)) == sorted(ids)
    assert len({file.id for world, _ in worlds for file in world.files if file.purpose == "batch"}) in (0, 2)


async def test_the_oldest_go(batchers: list[Batcher], tmp_path: Path) -> None:
    """For all, and their content with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "KEEP_ITEMS", 2)
        ids = [await batchers[n % 2].submit("Which?") for n in range(6)]
    for batcher in batchers:
        assert await batcher.ids(10) == ids[:-3:-1]
    rows = [path.name for path in (tmp_path / "shared").iterdir() if path.suffix == ".rows"]
    assert len(rows) == 2


async def test_a_reset_forgets_what_is_on_disk(batchers: list[Batcher], worlds: list[tuple[Simulator, str]]) -> None:
    await batchers[0].submit(*PROMPTS)
    worlds[1][0].reset()
    assert await batchers[1].ids(10) == []


@pytest.mark.parametrize("batchers", ["openai"], indirect=True)
async def test_a_file_that_one_deletes_is_gone_for_all(
    batchers: list[Batcher], worlds: list[tuple[Simulator, str]], tmp_path: Path
) -> None:
    await batchers[0].submit(*PROMPTS)
    async with httpx.AsyncClient(base_url=worlds[1][1], headers=KEY_HEADERS, verify=False) as http:  # noqa: S501 (loopback)
        (file,) = (await http.get("/openai/v1/files")).json()["data"]
        content = await http.get(f"/openai/v1/files/{file['id']}/content")
        assert len(content.text.splitlines()) == 3
        assert (await http.delete(f"/openai/v1/files/{file['id']}")).status_code == 200
    assert [file.state for file in worlds[0][0].files] == ["deleted"]
    assert not list((tmp_path / "shared").glob("*.content"))


async def test_caches_are_those_of_all(worlds: list[tuple[Simulator, str]], tmp_path: Path) -> None:
    """One makes it, the other finds it and gives it more time, and both lose it."""
    for world, _ in worlds:
        world.share(tmp_path / "shared")
        world.reset()
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=world.base_url("gemini", origin), headers=KEY_HEADERS)
            )
            for world, origin in worlds
        ]
        body = {"model": "models/gemini-2.5-flash", "contents": [{"parts": [{"text": "word"}]}], "ttl": "60s"}
        made = (await first.post("/v1/cachedContents", json=body)).json()
        path = f"/v1/{made['name']}"
        assert (await second.get(path)).json() == made
        longer = (await second.patch(path, json={"ttl": "3600s"})).json()
        assert longer["expireTime"] > made["expireTime"]
        assert (await first.get(path)).json() == longer
        await first.delete(path)
        assert (await second.get(path)).status_code == 403
        assert (await first.get("/v1/cachedContents")).json() == {}
