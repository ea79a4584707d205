"""Tests of a worker that is killed while it creates a cache: one usable cache exists, and other workers find it.

The workers have a POLLUX_HOME each, and share only the Prefect server. The suite tries a few seeded moments;
`make cache-kills` tries more.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import Config, Options, Source, run
from pollux_flows.caching.create import make_cache_request
from pollux_flows.caching.sweep import sweep_caches
from pollux_flows.handles import CacheHandle
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.pipeline import cache_creation
from pollux_flows.pipeline.cache_creation import create_or_find, prepare_cache
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import KEY, MODELS
from tests.mortal import Death, start_process

KILLS = max(4, int(os.environ.get("TEST_CACHE_KILLS", "4")) // 4)
SETTLED_S = 1.0
_WORK_S = 0.3  # for which the provider works on a cache
_LONGEST_S = 30.0
_CREATION = "pollux_flows.pipeline.cache_creation"
STEPS = [
    *(
        Death("pollux_flows.jobs.caches:_BlockLock.save", when, nth)
        for when in ("before", "after")
        for nth in (1, 2, 3)
    ),
    *(Death(f"{_CREATION}:{name}", when) for when in ("before", "after") for name in ("_create", "mark_living")),
]


def choose_death(seed: int) -> Death:
    """Return a death at one of our steps, or at any moment of the creation."""
    chosen = random.Random(seed)  # noqa: S311 (no secret)
    return chosen.choice(STEPS) if seed % 2 else Death(after_s=chosen.uniform(0.0, 1.5))


async def create(settings: dict[str, Any], file: Path) -> CacheHandle:
    """Create the cache, or find it, as `warm_cache` does."""
    config = Config(**settings)
    request = make_cache_request(config.target, [Source.from_file(file)], None, None, 3600)
    obtained = await create_or_find(
        await prepare_cache(request, config), config, BlockRegistry(), needed_s=1800, verify=True, pin=True
    )
    return obtained.handle


async def create_elsewhere(settings: dict[str, Any], file: Path, result: Path) -> None:
    """Create the cache in a process of its own, and write its name to `result`."""
    cache_creation.SETTLED_S = SETTLED_S  # type: ignore[misc]
    name = (await create(settings, file)).name
    await asyncio.to_thread(result.write_text, name)


@pytest.fixture
def settings(world: tuple[Simulator, str], simulator: Simulator) -> dict[str, Any]:
    base_url = simulator.base_url("gemini", origin=world[1])
    return {"provider": "gemini", "model": MODELS["gemini"], "api_key": KEY, "base_url": base_url, "keep_files_s": 0.0}


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("no_caches_are_left")
@pytest.mark.parametrize("seed", range(KILLS))
async def test_a_cache_is_created_once_although_its_creator_is_killed(
    seed: int, settings: dict[str, Any], simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "here"))
    monkeypatch.setattr(cache_creation, "SETTLED_S", SETTLED_S)
    simulator.fail(Fault(kind="slow", delay_s=_WORK_S), operation="cache.create", times=None)
    file, result, death = tmp_path / "report.pdf", tmp_path / "name", choose_death(seed)
    file.write_bytes(b"%PDF-1.7\n" + seed.to_bytes() + bytes(range(256)) * 40)
    registry = BlockRegistry()
    work = (create_elsewhere, settings, file, result)
    creator = start_process(*work, death=death, home=tmp_path / "there", log=tmp_path / "log")
    while creator.process.exitcode is None and not await registry.list():  # noqa: ASYNC110 (another process)
        await asyncio.sleep(0.02)
    began = time.monotonic()
    handles = await asyncio.gather(*(create(settings, file) for _ in range(3)))
    assert time.monotonic() - began < _LONGEST_S, death
    assert await creator.runs_to_completion(30) == result.exists()

    (name,) = {handle.name for handle in handles}
    await asyncio.sleep(_WORK_S)  # until any request still under way has arrived
    (record,) = await registry.list()
    assert {cache.name for cache in simulator.gemini_caches.all(simulator.now())} == {record.name} == {name}, death
    answer = await run("What is it?", config=Config(**settings), options=Options(cache=handles[0]))
    assert answer.metrics["cache_used"] is True

    later = time.time() + 8 * 86_400
    await sweep_caches(registry, Config(**settings), clock=lambda: later)
    assert await registry.list() == []
    assert list(simulator.gemini_caches.all(simulator.now())) == []
