"""Many prompts: the flow `fan_out`, with its journal, against the same calls made with the bare SDK."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time

from prefect.testing.utilities import prefect_test_harness

from benchmarks.measuring import bare, measured, report
from benchmarks.server import MODEL, serve
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import fan_out

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
        serve(LATENCY_S) as server,
        prefect_test_harness(server_startup_timeout=120),
    ):
        os.environ["POLLUX_HOME"] = home
        address = server.address
        provider = PolluxProvider(
            provider="openai", model=MODEL, api_key="k", base_url=address, request_concurrency=CONCURRENCY
        )
        fan_out(prompts[:100], provider)
        asyncio.run(bare(prompts[:100], address, CONCURRENCY))
        pairs, grown, again = [], [], []
        for _ in range(repetitions):
            time.sleep(REST_S)
            # Ours first: it would find in memory what the other one has left there.
            ours, peak = measured(lambda: fan_out(prompts, provider))
            time.sleep(REST_S)
            theirs, _ = measured(lambda: asyncio.run(bare(prompts, address, CONCURRENCY)))
            pairs.append((ours / theirs, ours, theirs))
            grown.append(peak * 1024 / count)
            time.sleep(REST_S)
            again.append(measured(lambda: fan_out(prompts, provider, reuse="always"))[0] / ours)
        ratio, ours, theirs = sorted(pairs)[repetitions // 2]
    which = f"{count:,} prompts"
    said = f"{which} of {LATENCY_S} s: bare SDK {theirs:.2f} s, fan_out {ours:.2f} s, ratio {ratio:.3f}"
    report(said, ratio, MOST_TIMES)
    share = sorted(again)[repetitions // 2]
    report(f"{which}: the same again, all answered, {share:.3f} of the time", share, MOST_AGAIN)
    report(f"{which}: {max(grown):.1f} KiB an answer", max(grown), MOST_KIB)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
