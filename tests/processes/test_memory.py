"""Test of a long job in a process of its own: its memory, and how long it blocks the event loop."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from prefect.settings import PREFECT_API_URL

from benchmarks.simulated import simulated

PROMPTS = 10_001  # a job of one prompt less would have an envelope as well
MOST_HELD_S = 5.0  # on a busy machine; on a quiet one it is a tenth of that
# 200 MiB for 50,000 prompts, in proportion, and modules that are loaded at first use.
MOST_MIB = 200 * PROMPTS / 50_000 + 25


@pytest.mark.timeout(180)
async def test_a_long_job_needs_little_memory_and_never_blocks_the_loop() -> None:
    with simulated(0.0) as world:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.deferred_memory",
            "flows",
            "openai",
            str(PROMPTS),
            world.base_url("openai"),
            PREFECT_API_URL.value() or "",
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
    assert process.returncode == 0
    steps = json.loads(said.splitlines()[-1])["steps"]
    for name in ("submit", "collect"):
        assert steps[name]["mib"] < MOST_MIB
        assert steps[name]["held_s"] < MOST_HELD_S
