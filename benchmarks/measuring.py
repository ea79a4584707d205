"""Time and memory of a piece of work, and the work of the bare SDK that ours is compared with."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from openai import AsyncOpenAI

from benchmarks.server import MODEL


async def bare(prompts: Sequence[str], address: str, concurrency: int) -> None:
    """Ask all prompts with the SDK alone, so many at a time."""
    slot = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(api_key="k", base_url=address, max_retries=0) as client:

        async def ask(prompt: str) -> str:
            async with slot:
                return (await client.responses.create(model=MODEL, input=prompt)).output_text

        answers = await asyncio.gather(*map(ask, prompts))
    assert all(answers)


def measured(work: Callable[[], object]) -> tuple[float, float]:
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


def report(what: str, figure: float, most: float) -> None:
    """Print a figure, and whether it is what it may be at most."""
    print(f"{what}  (at most {most}: {'yes' if figure <= most else 'NO'})", flush=True)


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
