"""Very many deferred jobs at once: what `collect` takes while all are pending, when few are done, and when all are.

`python -m benchmarks.deferred_jobs JOBS` prints it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from typing import Any

os.environ |= {"PREFECT_LOGGING_LEVEL": "ERROR", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

from prefect.context import AsyncClientContext
from prefect.testing.utilities import prefect_test_harness

from benchmarks.simulated import Simulated, simulated
from pollux_flows.blocks import PolluxProvider
from pollux_flows.config import Config
from pollux_flows.deferred.report import CollectReport
from pollux_flows.deferred.store import JobRequest, StateJobStore
from pollux_flows.deferred.submit import create_job, submit_created_job
from pollux_flows.flows import acollect
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.pipeline.cleanup import store_of
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.providers.session import open_session

MODELS = {"openai": "gpt-4.1-mini", "anthropic": "claude-haiku-4-5", "gemini": "gemini-2.5-flash-lite"}
FEW = 30
BATCH_S = 3600.0
MOST_REQUESTS, MOST_S = 60, 60
REST_S = 10.0  # for the Prefect server, to write down the run before


async def main(count: int) -> None:
    with simulated(BATCH_S) as world:
        configs = {kind: await _saved(kind, world) for kind in MODELS}
        started = time.monotonic()
        async with AsyncClientContext():
            for number in range(count):
                if number == FEW:
                    world.forward(BATCH_S / 2)  # the others are handed in later, and done later
                await _submitted(number, configs)
        print(f"{count:,} jobs were made in {time.monotonic() - started:.0f} s", flush=True)
        await _collected(f"{count:,} jobs, all pending", 0, count)
        world.forward(BATCH_S / 2)
        await _collected(f"{count:,} jobs, {FEW} of them done", FEW, count - FEW)
        world.forward(BATCH_S)
        await _collected(f"{count - FEW:,} jobs, all done", count - FEW, 0)


async def _saved(kind: Any, world: Simulated) -> Config:
    provider = PolluxProvider(provider=kind, model=MODELS[kind], api_key="k", base_url=world.base_url(kind))
    await provider.asave(f"bench-{kind}", overwrite=True)
    return await (await PolluxProvider.named(f"bench-{kind}")).config()


async def _submitted(number: int, configs: dict[str, Config]) -> None:
    """A job as `submit` makes it, without a flow run and a lease on the server: those are not what is measured."""
    kind = [*configs][number % len(configs)]
    config, store = configs[kind], await BlockJobStore.open()
    request = make_request([f"Question {number}?", "And why?"], target=config.target)
    plan, asked, name = make_plan(request), JobRequest.of(request, []), f"{kind}-{number:05}"
    async with open_session(config) as session:
        scratch = StateJobStore(store_of(config))
        await create_job(scratch, name, asked, plan, config.key(), provider_block=f"bench-{kind}")
        job = await submit_created_job(scratch, name, session, plan)
    await store.save_request(job.name, asked)
    assert await store.create(job)


async def _collected(what: str, done: int, pending: int) -> None:
    await asyncio.sleep(REST_S)
    started, used = time.monotonic(), time.process_time()
    report: CollectReport = await acollect()
    taken, used = time.monotonic() - started, time.process_time() - used
    problems = Counter(row.problem for row in report.rows if row.problem)
    left = sum(not row.collected for row in report.rows)
    bound = f"  (at most {MOST_S}: {'yes' if taken <= MOST_S else 'NO'})" if not done else ""
    fits = f"  (at most {MOST_REQUESTS}: {'yes' if report.requests <= MOST_REQUESTS else 'NO'})"
    print(f"{what}: {taken:.1f} s, {used:.1f} of the CPU{bound}; {report.requests} requests to look at them{fits}")
    print(
        f"    {len(report.rows) - left} of {done} collected, {left} of {pending} left, {problems or 'no problems'}",
        flush=True,
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home, prefect_test_harness(server_startup_timeout=120):
        os.environ["POLLUX_HOME"] = home
        asyncio.run(main(int(sys.argv[1])))
