"""Measure, and say what each figure may be."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

os.environ |= {"PREFECT_LOGGING_LEVEL": "WARNING", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

from prefect import flow
from prefect.testing.utilities import prefect_test_harness

from benchmarks import fan_out, map_rows
from pollux_flows import Config, run
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import arealtime, realtime
from pollux_flows.simulator import Simulator, serve

UPLOAD = """
import asyncio, sys
from pollux_flows import Config, Source, run
config = Config(provider="gemini", model="gemini-2.5-flash-lite", api_key="k", base_url=sys.argv[1])
asyncio.run(run("What is it?", source=Source.from_file(sys.argv[2]), config=config))
"""
RUNS = 11
# Back to back, a server on SQLite answers 503 while it still writes down the run before.
PAUSE_S = 3.0


def main() -> None:
    import_cost()
    flow_cost()
    file_cost()
    fan_out.compare(1_000, repetitions=5)
    fan_out.compare(10_000, repetitions=1)
    map_rows.compare(10_000)


def import_cost() -> None:
    """`import pollux_flows`, and the names that a program starts with, against bare Python."""
    bare = _process("pass")
    for code, bound in (("import pollux_flows", 150), ("from pollux_flows import Config, Options, Source, run", None)):
        _report(f"{code}, over bare Python", _process(code) - bare, bound)


def flow_cost() -> None:
    """A one-prompt flow on a running server against the same call made bare."""
    simulator = Simulator()
    with prefect_test_harness(server_startup_timeout=120), serve(simulator) as origin:
        address = simulator.base_url("openai", origin=origin)
        provider = PolluxProvider(provider="openai", model="gpt-4.1-mini", api_key="k", base_url=address)
        config = Config(provider="openai", model="gpt-4.1-mini", api_key="k", base_url=address)

        @flow
        async def empty() -> None: ...

        async def called() -> None:
            await asyncio.to_thread(realtime, "Why?", provider)

        async def measure() -> None:
            bare = await _median(lambda: run("Why?", config=config))
            _report("the bare call", bare, None)
            _report("an empty Prefect flow", await _median(empty), None)
            _report("realtime, over the bare call", await _median(called) - bare, 150)
            _report("arealtime, over the bare call", await _median(lambda: arealtime("Why?", provider)) - bare, 150)

        asyncio.run(measure())


def file_cost() -> None:
    """Memory of a process that uploads 1 GiB to Gemini, over one that uploads next to nothing."""
    simulator = Simulator()
    peaks = []
    with serve(simulator) as origin, tempfile.TemporaryDirectory() as folder:
        address = simulator.base_url("gemini", origin=origin)
        for size in (4096, 1 << 30):
            path = Path(folder) / "large.pdf"
            with path.open("wb") as file:
                file.write(b"%PDF-1.7")
                file.truncate(size)
            environment = {**os.environ, "POLLUX_HOME": folder}
            process = subprocess.Popen([sys.executable, "-c", UPLOAD, address, str(path)], env=environment)
            _, status, used = os.wait4(process.pid, 0)
            assert status == 0
            peaks.append(used.ru_maxrss / 1024)
    _report("an upload of 1 GiB, over one of 4 KiB", peaks[1] - peaks[0], 64, unit="MiB")


async def _median(operation: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds, after one run that does not count."""
    taken = []
    for _ in range(RUNS + 1):
        await asyncio.sleep(PAUSE_S)
        started = time.perf_counter()
        await operation()
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken[1:])


def _process(code: str) -> float:
    """Milliseconds that a Python process takes for it, start to end."""
    taken = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken[1:])


def _report(what: str, measured: float, bound: int | None, unit: str = "ms") -> None:
    verdict = "" if bound is None else f"  (at most {bound}: {'yes' if measured <= bound else 'NO'})"
    print(f"{what:<55} {measured:7.1f} {unit}{verdict}", flush=True)


main()
