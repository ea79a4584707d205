"""A process that is paused for longer than its lease does not repeat the calls of its successor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

from pollux_flows.simulator import Simulator
from tests.loopback import KEY, MODELS, asked
from tests.providers.test_killed import wait_until

ROOT = Path(__file__).parents[2]
COUNT, CONCURRENCY, LEASE_S = 60, 4, 1.0
PROGRAM = textwrap.dedent("""
    import asyncio, json, sys
    from pollux_flows import Config, run_many
    from pollux_flows.state.slots import Slots
    Slots.__init__.__kwdefaults__["lease_s"] = float(sys.argv[2])
    prompts = [f"p{n}" for n in range(int(sys.argv[3]))]
    envelope = asyncio.run(run_many(prompts, config=Config(**json.loads(sys.argv[1])), run_key="nightly"))
    assert envelope.answers == [f"Simulated answer to: {prompt}" for prompt in prompts], envelope.errors
""")


def start_process(address: str, home: Path) -> subprocess.Popen[bytes]:
    config = {
        "provider": "openai", "model": MODELS["openai"], "api_key": KEY, "base_url": address,
        "request_concurrency": CONCURRENCY,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(config), str(LEASE_S), str(COUNT)],
        env={**os.environ, "POLLUX_HOME": str(home), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


async def test_a_process_that_was_paused_beyond_its_lease_repeats_no_call_of_its_successor(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path
) -> None:
    """At most the calls that were under way at the pause are paid for twice."""
    sim.latency_s = 0.1
    address = sim.base_url("openai", origin=world[1])
    paused = start_process(address, tmp_path)
    try:
        await asyncio.to_thread(wait_until, lambda: len(asked(sim)) >= COUNT // 4)
        paused.send_signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE_S + 0.2)  # the length of the pause is what is tested
        before = len(asked(sim))
        successor = start_process(address, tmp_path)
        await asyncio.to_thread(wait_until, lambda: len(asked(sim)) >= before + CONCURRENCY)
        paused.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(successor.wait, 60) == 0
        assert await asyncio.to_thread(paused.wait, 60) == 0
    finally:
        paused.kill()
    times = Counter(json.dumps(entry.body["input"]) for entry in sim.requests if entry.operation == "generate")
    assert len(times) == COUNT
    assert sum(times.values()) <= COUNT + CONCURRENCY
