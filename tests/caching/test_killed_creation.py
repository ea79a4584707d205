"""Processes that are killed while they create a cache: all callers get one usable cache, and nothing is left behind.

A few seeded moments each time; `make cache-kills` tries a hundred.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import Config, Options, Source, create_cache, run
from pollux_flows.caching.registry import StoreRegistry, open_registry
from pollux_flows.caching.sweep import sweep_caches
from pollux_flows.pipeline import cache_creation
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.leases import LEASE_S
from tests.loopback import KEY, MODELS
from tests.mortal import Death, Mortal, start_process

KILLS = int(os.environ.get("TEST_CACHE_KILLS", "5"))
SETTLED_S = 1.0
# How long the provider works on a cache.
_WORK_S = 0.3
_CREATION = "pollux_flows.pipeline.cache_creation"
_SAVES = 3  # the intent, the time of the request, the reply
STEPS = [
    *(Death("pollux_flows.caching.registry:_StoreLock.save", when, nth) for when in ("before", "after")
      for nth in range(1, _SAVES + 1)),
    *(Death(f"{_CREATION}:{name}", when) for when in ("before", "after") for name in ("_create", "mark_living")),
    *(Death(f"pollux_flows.providers.session:Session.{name}", when) for when in ("before", "after")
      for name in ("upload", "file_ready")),
    Death("pollux_flows.state.leases:Lease.release"),
]  # fmt: skip


def choose_death(seed: int) -> Death:
    """Choose a step of the creation, or a time within the first second, while the provider creates the cache."""
    chosen = random.Random(seed)  # noqa: S311 (no secret)
    return chosen.choice(STEPS) if seed % 2 else Death(after_s=chosen.uniform(0.0, 1.0))


async def make_cache(settings: dict[str, Any], file: Path, name_file: Path) -> None:
    """Create the cache, and write its name to a file; this runs in a separate process."""
    cache_creation.SETTLED_S = SETTLED_S  # type: ignore[misc]
    handle = await create_cache([Source.from_file(file)], config=Config(**settings))
    _write(name_file, handle.name)


def _write(name_file: Path, name: str) -> None:
    name_file.write_text(name)


@pytest.fixture
def settings(world: tuple[Simulator, str], sim: Simulator) -> dict[str, Any]:
    base_url = sim.base_url("gemini", world[1])
    return {"provider": "gemini", "model": MODELS["gemini"], "api_key": KEY, "base_url": base_url, "keep_files_s": 0.0}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state that all processes of the test share."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    monkeypatch.setattr(cache_creation, "SETTLED_S", SETTLED_S)
    return tmp_path / "pollux"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7\n" + bytes(range(256)) * 40)
    return tmp_path / "report.pdf"


def list_caches(sim: Simulator) -> set[str]:
    """Return the names of the caches that exist at the provider."""
    return {cache.name for cache in sim.gemini_caches.all(sim.now())}


async def wait_for_intent(creator: Mortal, registry: StoreRegistry) -> None:
    """Wait until the creator has recorded its intent, or has died before."""
    while creator.process.exitcode is None and not await registry.list():  # noqa: ASYNC110 (another process)
        await asyncio.sleep(0.01)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(KILLS))
async def test_waiters_get_one_cache_after_a_kill_of_its_creator_at_any_moment(
    seed: int, settings: dict[str, Any], sim: Simulator, home: Path, report: Path, *, tmp_path: Path
) -> None:
    """Waiters get a cache within the lease time: the one of the killed process, if the provider has created it."""
    sim.fail(Fault(kind="slow", delay_s=_WORK_S), operation="cache.create", times=None)
    config, source = Config(**settings), Source.from_file(report)
    registry, death = open_registry(config), choose_death(seed)
    work = (make_cache, settings, report, tmp_path / "name")
    creator = start_process(*work, death=death, home=home, log=tmp_path / "log")
    await wait_for_intent(creator, registry)
    began = time.monotonic()
    handles = await asyncio.gather(*(create_cache([source], config=config) for _ in range(4)))
    assert time.monotonic() - began < LEASE_S + SETTLED_S, death
    is_complete = await creator.runs_to_completion(30)
    assert is_complete == (tmp_path / "name").exists()

    (name,) = {handle.name for handle in handles}
    await asyncio.sleep(_WORK_S)  # so that every request has arrived
    (record,) = await registry.list()
    assert list_caches(sim) == {record.name} == {name}, death
    assert [entry for entry in sim.requests if entry.operation == "cache.delete"] == [], death
    answer = await run("What is it?", config=config, options=Options(cache=handles[0]))
    assert answer.metrics["cache_used"] is True

    later = time.time() + 8 * 86_400
    await sweep_caches(registry, config, clock=lambda: later)
    assert await registry.list() == []
    assert list_caches(sim) == set()
    assert [file.filename for file in sim.files if file.is_there] == [], death


@pytest.mark.timeout(180)
async def test_twenty_concurrent_processes_create_one_cache(
    settings: dict[str, Any], sim: Simulator, home: Path, report: Path, *, tmp_path: Path
) -> None:
    """The file is uploaded once, and each process gets the handle."""
    sim.latency_s = 0.1
    name_files = [tmp_path / f"name-{number}" for number in range(20)]
    processes = [
        start_process(make_cache, settings, report, file, death=None, home=home, log=tmp_path / "log")
        for file in name_files
    ]
    assert [await process.runs_to_completion(120) for process in processes] == [True] * 20
    assert {file.read_text() for file in name_files} == list_caches(sim)
    assert len(list_caches(sim)) == len(sim.files) == 1
    assert len([entry for entry in sim.requests if entry.operation == "cache.create"]) == 1
