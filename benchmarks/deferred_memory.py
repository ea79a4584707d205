"""What a long deferred job takes in memory, over the idle process with its prompts, and for how long it holds the loop.

`python -m benchmarks.deferred_memory WAY PROVIDER PROMPTS BASE_URL [API_URL]` prints it as JSON. WAY is `flows`:
submit and collect on the Prefect server at API_URL, or on one of its own; or `engine`: defer_many and collect_deferred.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

# A Prefect server takes 512 KiB of parameters by default; it and we read this when they start.
os.environ |= {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_API_MAX_PARAMETER_SIZE": str(1 << 28),
}

import anthropic  # noqa: F401 (an idle process has them, too)
import google.genai  # noqa: F401
import openai  # noqa: F401
from prefect.settings import PREFECT_API_URL, temporary_settings

from pollux_flows import Config, collect_deferred, defer_many
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import acollect, asubmit

T = TypeVar("T")
MODELS = {"openai": "gpt-4.1-mini", "anthropic": "claude-haiku-4-5", "gemini": "gemini-2.5-flash-lite"}
_TICK_S = 0.01


@dataclass
class Measured:
    """A step: seconds, those of the CPU, MiB at its largest over the idle process, for how long the loop is held."""

    idle: float
    steps: dict[str, dict[str, float]] = field(default_factory=dict)

    async def step(self, name: str, work: Awaitable[T]) -> T:
        gap = 0.0

        async def tick() -> None:
            nonlocal gap
            while True:
                before = time.monotonic()
                await asyncio.sleep(_TICK_S)
                gap = max(gap, time.monotonic() - before - _TICK_S)

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)  # the first gap counts, too
        forget_the_largest()
        started, used = time.monotonic(), time.process_time()
        try:
            return await work
        finally:
            taken, used = time.monotonic() - started, time.process_time() - used
            largest = memory("VmHWM")
            await asyncio.sleep(_TICK_S)  # and the last
            ticking.cancel()
            self.steps[name] = {"s": taken, "cpu_s": used, "mib": largest - self.idle, "held_s": gap}


def forget_the_largest() -> None:
    """From now on VmHWM is told of what comes."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(which: str) -> float:
    """MiB of this process: VmRSS, or VmHWM for the most that it was."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def prompts_of(count: int) -> list[str]:
    """About 100 characters each."""
    return [
        f"Question {number:06}: what does this sentence say, and what would follow if it said the opposite?"
        for number in range(count)
    ]


async def flows(provider: str, prompts: list[str], base_url: str, home: str) -> Measured:
    name = f"bench-{provider}"
    made: Any = PolluxProvider(provider=provider, model=MODELS[provider], api_key="k", base_url=base_url)
    await made.asave(name, overwrite=True)
    block, output = await PolluxProvider.aload(name), Path(home) / "answers.jsonl"
    measured = Measured(memory("VmRSS"))
    job = await measured.step("submit", asubmit(prompts, block, output=str(output)))
    report = await measured.step("collect", acollect([job]))
    assert report.rows[0].collected, report.rows
    with output.open() as lines:
        assert sum(json.loads(line)["status"] == "answered" for line in lines) == len(prompts)
    return measured


async def engine(provider: Any, prompts: list[str], base_url: str, _: str) -> Measured:
    config = Config(provider=provider, model=MODELS[provider], api_key="k", base_url=base_url)
    measured = Measured(memory("VmRSS"))
    handle = await measured.step("submit", defer_many(prompts, config=config))
    envelope = await measured.step("collect", collect_deferred(handle, config=config))
    assert envelope.status == "ok"
    return measured


def server(api_url: str) -> AbstractContextManager[object]:
    """Use the Prefect server at that address, or a new one."""
    if api_url:
        return temporary_settings({PREFECT_API_URL: api_url})
    from prefect.testing.utilities import prefect_test_harness  # which takes a second to import

    return prefect_test_harness(server_startup_timeout=120)


def main(way: str, provider: str, count: int, base_url: str, api_url: str = "") -> None:
    with tempfile.TemporaryDirectory() as home:
        os.environ["POLLUX_HOME"] = home
        if way == "engine":
            measured = asyncio.run(engine(provider, prompts_of(count), base_url, home))
        else:
            with server(api_url):
                measured = asyncio.run(flows(provider, prompts_of(count), base_url, home))
    print(json.dumps({"idle": measured.idle, "steps": measured.steps}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
