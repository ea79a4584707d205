"""Tests of a killed map_rows: a rerun asks again for no more than was under way, and its output is complete.

A process that maps a table is killed by SIGKILL at a seeded moment, or at a seeded step of its output, and started
again. The suite tries two seeds; `make map-kills` tries twenty.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import amap_rows
from pollux_flows.simulator import Simulator
from tests.loopback import MODELS, until
from tests.mortal import Death, Mortal, find_function, start_process

SEEDS: Final = int(os.environ.get("TEST_MAP_KILLS", "2"))
ROWS: Final = int(os.environ.get("TEST_MAP_ROWS", "400"))
CONCURRENCY: Final = 20
LATENCY_S: Final = 0.02
_HUNG_S: Final = 120.0
_WRITER: Final = "pollux_flows.tables.writer:TableWriter"
STEPS: Final = (
    f"{_WRITER}.write",
    f"{_WRITER}.complete",
    "pollux_flows.tables.writer:write_manifest",
    "pollux_flows.flows.mapping:scan_table",
)


async def run_map(table: str, output: str, base_url: str) -> None:
    provider = PolluxProvider(
        provider="openai",
        model=MODELS["openai"],
        api_key="sk-killed-map",
        base_url=base_url,
        request_concurrency=CONCURRENCY,
    )
    report = await amap_rows(table, "Say it: {text}", provider, output, rows_per_chunk=ROWS // 8)
    assert report.answered == ROWS


def choose_death(seed: int) -> tuple[int | None, Death | None]:
    """Return after how many requests the process is killed, or at which step it dies."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    if seed % 2 == 0:
        return chance.randrange(ROWS), None
    step = chance.choice(STEPS)
    return None, Death(step, chance.choice(("before", "after")), chance.randint(1, 8) if step.endswith(".write") else 1)


def read_output(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an output, without the column of reused answers."""
    rows: list[dict[str, Any]] = pq.read_table(path).drop_columns(["answer_reused"]).to_pylist()
    return rows


@dataclass(frozen=True)
class Map:
    """A table, and the simulator that answers its rows."""

    table: Path
    base_url: str

    def start(self, output: Path, death: Death | None = None) -> Mortal:
        """Map the table in a process of its own, with a home beside the output."""
        folder = output.parent
        arguments = (str(self.table), str(output), self.base_url)
        return start_process(run_map, *arguments, death=death, home=folder / "home", log=folder / "said")


@pytest.fixture(scope="module")
def mapping(world: tuple[Simulator, str], tmp_path_factory: pytest.TempPathFactory) -> Map:
    table = tmp_path_factory.mktemp("table") / "table.parquet"
    pq.write_table(pa.table({"number": range(ROWS), "text": [f"row {row}" for row in range(ROWS)]}), table)
    return Map(table, Simulator.base_url("openai", origin=world[1]))


@pytest.fixture(scope="module")
def expected_output(mapping: Map, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the output of a run that is not killed."""
    output = tmp_path_factory.mktemp("expected") / "out.parquet"
    assert asyncio.run(mapping.start(output).runs_to_completion(_HUNG_S))
    return read_output(output)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_rerun_of_a_killed_map_pays_for_no_saved_answer_twice(
    mapping: Map, expected_output: list[dict[str, Any]], simulator: Simulator, tmp_path: Path, seed: int
) -> None:
    simulator.latency_s = LATENCY_S
    output = tmp_path / "out.parquet"
    moment, death = choose_death(seed)
    killed = mapping.start(output, death)
    if moment is not None:
        try:
            await until(lambda: len(simulator.requests) > moment, within_s=_HUNG_S)
        finally:
            killed.process.kill()
    assert not await killed.runs_to_completion(_HUNG_S)
    if output.exists():
        assert read_output(output) == expected_output

    assert await mapping.start(output).runs_to_completion(_HUNG_S)
    assert read_output(output) == expected_output
    prompts = _count_prompts(simulator)
    assert len(prompts) == ROWS
    assert prompts.total() <= ROWS + CONCURRENCY


@pytest.mark.parametrize("step", STEPS)
def test_every_step_names_a_function(step: str) -> None:
    find_function(step)


def _count_prompts(simulator: Simulator) -> Counter[str]:
    """Return how often each row was asked, without requests that were cut off on their way."""
    entries = [entry for entry in simulator.requests if entry.operation == "generate" and entry.body]
    return Counter(json.dumps(entry.body["input"]) for entry in entries)
