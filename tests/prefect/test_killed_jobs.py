"""Killed anywhere: a job is handed in once, paid once, collected once, on all three batch systems.

A process that submits or collects dies by SIGKILL before or after each of its steps, or at any moment; what comes after
it is what comes in life: the run is started again, or only collectors pass by, one or two at a time, of which some die
as well. A few seeded runs each time; `make batch-kills` tries all steps.
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
from tests.mortal import Death, in_a_hurry
from tests.prefect.life import BOTH, STEPS, Lane, Life, Phase, Trial

KILLS = int(os.environ.get("TEST_BATCH_KILLS", "4"))
AT_ONCE = 4


def trials(count: int) -> list[Trial]:
    """Every step of both phases on every provider, in an order that is always the same; the rest at any moment."""
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
    # However few there are, each provider and each phase comes first.
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
    with in_a_hurry(), ExitStack() as stack:
        simulators = [Simulator() for _ in range(AT_ONCE)]
        yield [
            Lane(number, simulator, stack.enter_context(serve(simulator)), tmp_path)
            for number, simulator in enumerate(simulators)
        ]


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_a_job_that_anybody_dies_of_is_paid_and_collected_once(
    lanes: list[Lane], capsys: pytest.CaptureFixture[str]
) -> None:
    left = iter(trials(KILLS))
    died: list[bool] = []
    wrong: list[str] = []

    async def go_on(lane: Lane) -> None:
        for trial in left:
            try:
                died.append(await lane.live(trial))
            except AssertionError as error:  # the others go on
                wrong.append(f"{error}\n{error.__cause__!r}")

    began = time.monotonic()
    await asyncio.gather(*map(go_on, lanes))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{KILLS} runs, {sum(died)} with somebody killed, {len(wrong)} not as they should be, "
            f"in {time.monotonic() - began:.0f} s\n"
        )
    assert not wrong, "\n\n".join(wrong)
    assert sum(died) > KILLS / 2


@pytest.mark.timeout(180)
async def test_whoever_completes_a_job_is_done_with_it_too(lanes: list[Lane]) -> None:
    """It is found by the name of the job that it has completed."""
    death = Death("pollux_flows.jobs.collector:CollectorPass._complete_parent", "after")
    assert await lanes[0].live(Trial(0, "openai", "collect", death))


@pytest.mark.timeout(180)
async def test_two_collectors_and_a_rerun_at_once(lanes: list[Lane]) -> None:
    """Each job is collected once: one result, one event."""
    await asyncio.gather(*map(_crowded, lanes, SDKS))


async def _crowded(lane: Lane, kind: ProviderName) -> None:
    life = await Life.begun(lane, Trial(SDKS.index(kind), kind, "collect", Death()), lane.folder / kind)
    try:
        await life.crowded()
        await life.looked_at()
    except Exception as error:
        raise AssertionError(life.told()) from error
    finally:
        await life.forgotten()
    fetched = [entry.path for entry in lane.simulator.requests if entry.operation in {"batch.results", "file.content"}]
    assert len(set(fetched)) == len(fetched)
    assert "Traceback" not in life.told(), "that somebody else is at work is no failure"
