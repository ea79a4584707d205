"""Many prompts: the flow `fan_out`, with its journal, against the same calls made with the bare SDK."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import AsyncOpenAI
from prefect.testing.utilities import prefect_test_harness

from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import fan_out

MODEL = "gpt-4.1-mini"
CONCURRENCY = 50
LATENCY_S = 0.2
MOST_TIMES, MOST_KIB, MOST_AGAIN = 1.05, 20, 0.05
REST_S = 3.0  # for the Prefect server, to write down the run before


def compare(prompts: int, repetitions: int) -> None:
    """Measure both in turn, in a process of their own, and the memory that the flow's answers take."""
    command = [sys.executable, "-m", "benchmarks.fan_out", str(prompts), str(repetitions)]
    subprocess.run(command, check=True)


def main(count: int, repetitions: int) -> None:
    prompts = [f"Question {number}: what is it?" for number in range(count)]
    with (
        tempfile.TemporaryDirectory() as home,
        _server() as address,
        prefect_test_harness(server_startup_timeout=120),
    ):
        os.environ["POLLUX_HOME"] = home
        provider = PolluxProvider(
            provider="openai", model=MODEL, api_key="k", base_url=address, request_concurrency=CONCURRENCY
        )
        fan_out(prompts[:100], provider)
        asyncio.run(_bare(prompts[:100], address))
        pairs, grown, again = [], [], []
        for _ in range(repetitions):
            time.sleep(REST_S)
            # Ours first: it would find in memory what the other one has left there.
            ours, peak = _measured(lambda: fan_out(prompts, provider))
            time.sleep(REST_S)
            bare, _ = _measured(lambda: asyncio.run(_bare(prompts, address)))
            pairs.append((ours / bare, ours, bare))
            grown.append(peak * 1024 / count)
            time.sleep(REST_S)
            again.append(_measured(lambda: fan_out(prompts, provider, reuse="always"))[0] / ours)
        ratio, ours, bare = sorted(pairs)[repetitions // 2]
    said = f"{count:,} prompts of {LATENCY_S} s: bare SDK {bare:.2f} s, fan_out {ours:.2f} s, ratio {ratio:.3f}"
    print(f"{said}  (at most {MOST_TIMES}: {'yes' if ratio <= MOST_TIMES else 'NO'})")
    said = f"{count:,} prompts: the same again, all answered, {sorted(again)[repetitions // 2]:.3f} of the time"
    print(f"{said}  (at most {MOST_AGAIN}: {'yes' if sorted(again)[repetitions // 2] <= MOST_AGAIN else 'NO'})")
    said = f"{count:,} prompts: {max(grown):.1f} KiB an answer"
    print(f"{said}  (at most {MOST_KIB}: {'yes' if max(grown) <= MOST_KIB else 'NO'})", flush=True)


async def _bare(prompts: list[str], address: str) -> None:
    slot = asyncio.Semaphore(CONCURRENCY)
    async with AsyncOpenAI(api_key="k", base_url=address, max_retries=0) as client:

        async def ask(prompt: str) -> str:
            async with slot:
                return (await client.responses.create(model=MODEL, input=prompt)).output_text

        answers = await asyncio.gather(*map(ask, prompts))
    assert all(answers)


def _measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and MiB that the process grew by at its largest."""
    before, largest, done = _resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.05):
            largest = max(largest, _resident())

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.perf_counter()
    work()
    taken = time.perf_counter() - started
    done.set()
    watching.join()
    return taken, max(0.0, largest - before)


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.server", str(LATENCY_S)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
