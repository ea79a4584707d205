"""Tests of jobs whose processes are killed: each is submitted, paid and collected once, on all three batch systems.

A process that submits or collects is killed by SIGKILL before or after one of its steps, or at a random moment. After
that the run is started again, or collectors run, one or two at a time, of which some are killed as well. The suite does
a few seeded trials; `make batch-kills` kills at every step.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import pytest

from pollux_flows.config import ProviderName
from pollux_flows.simulator import Simulator, serve
from tests.loopback import SDKS
from tests.mortal import Death, find_function, retry_quickly_without_logs
from tests.processes.life import BOTH, STEPS, Lane, Life, Phase, Trial

KILLS = int(os.environ.get("TEST_BATCH_KILLS", "4"))
AT_ONCE = 4


def make_trials(count: int) -> list[Trial]:
    """Return trials for every step, phase and provider, in a seeded order, and then trials killed at random moments."""
    chance = random.Random(8)  # noqa: S311 (no secret)
    steps: list[tuple[ProviderName, Phase, Death]] = [
        (kind, phase, Death(step, when, chance.choice((1, 1, 1, 2, 3)) if step in BOTH else 1))
        for phase, some in STEPS.items()
        for step in some
        for when in ("before", "after")
        for kind in SDKS
    ]
    while len(steps) < count:
        phase = chance.choice(tuple(STEPS))
        steps.append((chance.choice(SDKS), phase, Death(after_s=chance.uniform(0.05, 1.5))))
    chance.shuffle(steps)
    # Each provider and each phase comes first, so that a few trials cover them.
    wanted = [
        (kind, phase)
        for phases in (("submit", "collect"), ("collect", "submit"))
        for kind, phase in zip(SDKS, cycle(phases), strict=False)
    ]
    first = [next(each for each in steps if each[:2] == pair) for pair in wanted]
    ordered = [*first, *(each for each in steps if each not in first)]
    return [Trial(seed, *each) for seed, each in enumerate(ordered[:count])]


@pytest.fixture
def lanes(tmp_path: Path) -> Iterator[list[Lane]]:
    with retry_quickly_without_logs(), ExitStack() as stack:
        simulators = [Simulator() for _ in range(AT_ONCE)]
        yield [
            Lane(number, simulator, stack.enter_context(serve(simulator)), tmp_path)
            for number, simulator in enumerate(simulators)
        ]


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_a_job_with_killed_processes_is_paid_and_collected_once(
    lanes: list[Lane], capsys: pytest.CaptureFixture[str]
) -> None:
    remaining = iter(make_trials(KILLS))
    died: list[bool] = []
    failures: list[str] = []

    async def run_trials(lane: Lane) -> None:
        for trial in remaining:
            try:
                died.append(await lane.run(trial))
            except AssertionError as error:  # the others go on
                failures.append(f"{error}\n{error.__cause__!r}")

    began = time.monotonic()
    await asyncio.gather(*map(run_trials, lanes))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{KILLS} runs, {sum(died)} with a killed process, {len(failures)} wrong, "
            f"in {time.monotonic() - began:.0f} s\n"
        )
    assert not failures, "\n\n".join(failures)
    assert sum(died) > KILLS / 2


@pytest.mark.timeout(180)
async def test_a_child_is_retired_although_its_collector_was_killed_after_completing_the_parent(
    lanes: list[Lane],
) -> None:
    """A pass of the collector over the parent includes the child."""
    death = Death("pollux_flows.jobs.collector:CollectorPass._complete_parent", "after")
    assert await lanes[0].run(Trial(0, "openai", "collect", death))


@pytest.mark.timeout(180)
async def test_concurrent_collectors_and_a_rerun_collect_each_job_once(lanes: list[Lane]) -> None:
    """Each job has one download, one envelope and one event."""
    await asyncio.gather(*map(_run_concurrently, lanes, SDKS))


async def _run_concurrently(lane: Lane, kind: ProviderName) -> None:
    life = await Life.create(lane, Trial(SDKS.index(kind), kind, "collect", Death()), lane.folder / kind)
    try:
        await life.run_concurrently()
        await life.check()
    except Exception as error:
        raise AssertionError(life.describe()) from error
    finally:
        await life.clean_up()
    fetched = [entry.path for entry in lane.simulator.requests if entry.operation in {"batch.results", "file.content"}]
    assert len(set(fetched)) == len(fetched)
    assert "Traceback" not in life.describe(), "a job that another process works on is no failure"


@pytest.mark.parametrize("step", sorted({step for some in STEPS.values() for step in some}))
def test_every_step_names_a_function(step: str) -> None:
    """A trial whose step names no function would not be killed."""
    find_function(step)
