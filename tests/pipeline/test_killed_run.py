"""Killed at any moment: the rerun asks only for what was on its way.

A few seeded moments each time; `make kills` tries fifty, of a run of 1,000 prompts.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pollux_flows.simulator import Simulator
from pollux_flows.state.leases import LEASE_S
from tests.loopback import KEY, MODELS, asked
from tests.providers.test_killed import wait_until
from tests.state.servers import Server

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("TEST_KILLS", "3"))
PROMPTS = int(os.environ.get("TEST_PROMPTS", "200"))
CONCURRENCY = 50
LATENCY_S = 0.05
PROGRAM = textwrap.dedent("""
    import asyncio, json, sys
    from pollux_flows import Config, run_many
    config, terms, count = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    envelope = asyncio.run(run_many([f"p{n}" for n in range(count)], config=Config(**config), **terms))
    assert envelope.answers == [f"Simulated answer to: p{n}" for n in range(count)], envelope.errors
    print(envelope.metrics["n_reused"])
""")


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The state in a Redis of the test's own."""
    server = Server(tmp_path / "redis")
    server.start()
    monkeypatch.setenv("POLLUX_STATE_URL", server.url)
    yield
    server.kill()


def started(address: str, home: Path, **terms: Any) -> subprocess.Popen[str]:
    config = {
        "provider": "openai",
        "model": MODELS["openai"],
        "api_key": KEY,
        "base_url": address,
        "request_concurrency": CONCURRENCY,
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(config), json.dumps(terms), str(PROMPTS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "POLLUX_HOME": str(home)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_run_that_is_killed_pays_for_nothing_twice(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path, seed: int
) -> None:
    """At most what was under way when it was killed is asked for again, and every prompt is answered."""
    sim.latency_s = LATENCY_S
    address = sim.base_url("openai", world[1])
    moment = random.Random(seed).randrange(PROMPTS)  # noqa: S311 (no secret)
    killed = started(address, tmp_path, run_key="nightly")
    while len(asked(sim)) <= moment and killed.poll() is None:
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    before = len(asked(sim))
    again = started(address, tmp_path, run_key="nightly")
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0
    assert before > moment
    assert len(asked(sim)) <= PROMPTS + CONCURRENCY
    assert int(output) >= before - CONCURRENCY
    assert len(_counts(sim)) == PROMPTS


@pytest.mark.timeout(120)
@pytest.mark.parametrize("place", ["disk", "redis"])
def test_two_processes_share_the_work(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    """With reuse='always' each call is paid for once, whoever asks it first."""
    if place == "redis":
        request.getfixturevalue("redis")
    sim.latency_s = LATENCY_S
    address = sim.base_url("openai", world[1])
    both = [started(address, tmp_path, reuse="always") for _ in range(2)]
    reused = [int(process.communicate(timeout=100)[0]) for process in both]
    assert set(_counts(sim).values()) == {1}
    assert sum(reused) == PROMPTS


@pytest.mark.timeout(120)
def test_nobody_waits_for_a_process_that_was_killed(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path
) -> None:
    """What it had claimed is taken over before the claims run out."""
    sim.latency_s = 60.0
    address = sim.base_url("openai", world[1])
    killed = started(address, tmp_path, reuse="always")
    wait_until(lambda: len(asked(sim)) == CONCURRENCY)
    killed.kill()
    killed.wait()
    sim.latency_s = 0.0
    began = time.monotonic()
    assert started(address, tmp_path, reuse="always").communicate(timeout=100)[0].strip() == "0"
    assert time.monotonic() - began < LEASE_S


def _counts(sim: Simulator) -> Counter[str]:
    """How often each was asked; one that was cut off while it was being sent is not counted."""
    return Counter(json.dumps(entry.body["input"]) for entry in asked(sim) if entry.body)
