"""Runs that are killed at any moment: the rerun repeats only the calls that were under way.

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
    """Keep the state in a Redis that only this test uses."""
    server = Server(tmp_path / "redis")
    server.start()
    monkeypatch.setenv("POLLUX_STATE_URL", server.url)
    yield
    server.kill()


def start_process(address: str, home: Path, **terms: Any) -> subprocess.Popen[str]:
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
def test_a_rerun_after_a_kill_repeats_at_most_the_calls_under_way(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path, seed: int
) -> None:
    """Each prompt is answered in the end."""
    sim.latency_s = LATENCY_S
    address = sim.base_url("openai", world[1])
    moment = random.Random(seed).randrange(PROMPTS)  # noqa: S311 (no secret)
    killed = start_process(address, tmp_path, run_key="nightly")
    while len(asked(sim)) <= moment and killed.poll() is None:
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    before = len(asked(sim))
    again = start_process(address, tmp_path, run_key="nightly")
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0
    assert before > moment
    assert len(asked(sim)) <= PROMPTS + CONCURRENCY
    assert int(output) >= before - CONCURRENCY
    assert len(_count_requests(sim)) == PROMPTS


@pytest.mark.timeout(120)
@pytest.mark.parametrize("place", ["disk", "redis"])
def test_two_processes_with_reuse_always_pay_for_each_call_once(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    if place == "redis":
        request.getfixturevalue("redis")
    sim.latency_s = LATENCY_S
    address = sim.base_url("openai", world[1])
    both = [start_process(address, tmp_path, reuse="always") for _ in range(2)]
    reused = [int(process.communicate(timeout=100)[0]) for process in both]
    assert set(_count_requests(sim).values()) == {1}
    assert sum(reused) == PROMPTS


@pytest.mark.timeout(120)
def test_calls_of_a_killed_process_are_taken_over_before_their_leases_run_out(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path
) -> None:
    sim.latency_s = 60.0
    address = sim.base_url("openai", world[1])
    killed = start_process(address, tmp_path, reuse="always")
    wait_until(lambda: len(asked(sim)) == CONCURRENCY)
    killed.kill()
    killed.wait()
    sim.latency_s = 0.0
    began = time.monotonic()
    assert start_process(address, tmp_path, reuse="always").communicate(timeout=100)[0].strip() == "0"
    assert time.monotonic() - began < LEASE_S


def _count_requests(sim: Simulator) -> Counter[str]:
    """Return how often each prompt was sent. A request that was cut off while it was sent does not count."""
    return Counter(json.dumps(entry.body["input"]) for entry in asked(sim) if entry.body)
