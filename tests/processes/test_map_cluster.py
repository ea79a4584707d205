"""Tests of a table on a cluster of two Dask workers: the limits of the provider hold, and each row is paid for once.

The suite maps a few hundred rows; `make cluster` maps 5,000.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster
from prefect_dask.task_runners import DaskTaskRunner

from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import amap_rows
from pollux_flows.mapping.report import MapReport
from tests.budgets import INPUT_USD, OUTPUT_USD, SHORT, find_worst_case
from tests.loopback import MODELS, Reply, good, http, scripted, until

ROOT: Final = Path(__file__).parents[2]
ROWS: Final = int(os.environ.get("TEST_CLUSTER_ROWS", "240"))
CHUNK: Final = ROWS // 8
WORKERS: Final = 2
CONCURRENCY: Final = 10
LATENCY_S: Final = 0.02
USAGE: Final = {"input_tokens": 300, "output_tokens": 16}
ROW_USD: Final = 300 * INPUT_USD + 16 * OUTPUT_USD


@dataclass
class Provider:
    """Counts how often each row is asked, and how many requests are under way at once."""

    held: int = 0
    """How many rows, from the first on, are answered only after two chunks of other rows have been asked."""
    asked: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    most: int = 0

    def choose(self, body: bytes) -> Reply:
        prompt = json.loads(body)["input"][0]["content"][0]["text"]
        self.asked[prompt] += 1
        is_held = int(prompt.rpartition(" ")[2]) < self.held

        async def reply(writer: asyncio.StreamWriter) -> None:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            if is_held:
                await until(lambda: len(self.asked) > self.held + 2 * CHUNK, within_s=60)
            await asyncio.sleep(LATENCY_S)
            self.under_way -= 1
            writer.write(http(good("openai", "fine", usage=USAGE)))

        return reply

    @property
    def requests(self) -> int:
        return sum(self.asked.values())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Start two workers that share a state, each a process with one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLLUX_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PREFECT_LOGGING_TO_API_ENABLED", "false")
        start: Any = LocalCluster  # it is untyped
        with start(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as made:
            yield made


@dataclass
class Mapping:
    """A table on its way through the cluster."""

    provider: Provider
    run: asyncio.Task[MapReport]
    worst_case_usd: float
    """The most that one call may cost."""
    output: Path

    def count_statuses(self) -> Counter[str]:
        """Return how many rows of the output have which status; they are in order, and have an answer or none."""
        rows = pq.read_table(self.output).to_pylist()
        assert [row["number"] for row in rows] == [*range(ROWS)]
        assert all((row["answer"] == "fine") == (row["answer_status"] == "answered") for row in rows)
        return Counter(row["answer_status"] for row in rows)


@asynccontextmanager
async def mapping(
    cluster: LocalCluster, folder: Path, name: str, *, held: int = 0, **settings: Any
) -> AsyncIterator[Mapping]:
    """Start to map a table on the cluster, with a counting provider."""
    provider, table, output = Provider(held), folder / "table.parquet", folder / "out.parquet"
    pq.write_table(pa.table({"number": range(ROWS), "text": [f"{name}, row {row}" for row in range(ROWS)]}), table)
    runner: Any = DaskTaskRunner(address=cluster.scheduler_address)  # Prefect types its futures too narrowly
    flow: Any = amap_rows.with_options(task_runner=runner)
    async with scripted(provider.choose, by_body=True) as server:
        block = PolluxProvider(
            provider="openai",
            model=MODELS["openai"],
            api_key="sk-cluster",
            base_url=f"{server.origin}/v1",
            request_concurrency=CONCURRENCY,
        )
        await block.asave(name, overwrite=True)
        worst = await find_worst_case(await block.config(), f"Say it: {name}, row {ROWS - 1}")
        settings |= {"options": SHORT, "rows_per_chunk": CHUNK}
        run = flow(str(table), "Say it: {text}", block, str(output), **settings)
        yield Mapping(provider, asyncio.create_task(run), worst, output)


@pytest.mark.timeout(600)
async def test_every_row_is_paid_for_once_within_the_limits(cluster: LocalCluster, tmp_path: Path) -> None:
    """A slow chunk does not block the other worker."""
    async with mapping(cluster, tmp_path, "map-cluster", held=CHUNK) as mapped:
        await mapped.run
    assert mapped.count_statuses() == {"answered": ROWS}
    assert len(mapped.provider.asked) == mapped.provider.requests == ROWS
    assert CONCURRENCY / WORKERS < mapped.provider.most <= CONCURRENCY


@pytest.mark.timeout(600)
async def test_a_worker_that_is_killed_costs_no_more_than_it_had_under_way(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    async with mapping(cluster, tmp_path, "map-cluster-killed") as mapped:
        await until(lambda: mapped.provider.requests > ROWS / 3 or mapped.run.done(), within_s=120)
        assert not mapped.run.done()
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        await mapped.run
    assert mapped.count_statuses() == {"answered": ROWS}
    assert len(mapped.provider.asked) == ROWS
    assert mapped.provider.requests <= ROWS + CONCURRENCY // WORKERS
    assert mapped.provider.most <= CONCURRENCY


@pytest.mark.timeout(600)
async def test_a_budget_holds_over_all_workers(cluster: LocalCluster, tmp_path: Path) -> None:
    """Each worker stops at most one worst case below the budget. The output names the rows that were not asked."""
    budget = ROWS * ROW_USD / 2
    async with mapping(cluster, tmp_path, "map-cluster-budget", max_cost_usd=budget) as mapped:
        report = await mapped.run
    bill = mapped.provider.requests * ROW_USD
    assert report.cost_usd == pytest.approx(bill)
    assert budget - WORKERS * mapped.worst_case_usd <= bill <= budget
    asked = mapped.provider.requests
    assert mapped.count_statuses() == {"answered": asked, "budget": ROWS - asked}
