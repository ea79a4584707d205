"""A table: the flow `map_rows` against the bare SDK over the rows of its file, its memory, and its reruns."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from prefect.testing.utilities import prefect_test_harness

from benchmarks.measuring import bare, measured, report
from benchmarks.server import MODEL, Server, serve
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import map_rows

CONCURRENCY = 200
LATENCY_S = 0.02
FEW = NEW = 1_000
MOST_TIMES, MOST_MIB, MOST_GROWTH, MOST_AGAIN = 1.3, 300, 1.1, 0.05
REST_S = 3.0  # for the Prefect server, to write down the run before


@dataclass
class Mapped:
    """A run of the flow: seconds, MiB at its largest over the idle process, and requests."""

    taken: float
    grown: float
    requests: int


def compare(rows: int) -> None:
    """Measure it in a process of its own."""
    subprocess.run([sys.executable, "-m", "benchmarks.map_rows", str(rows)], check=True)


def main(count: int) -> None:
    with (
        tempfile.TemporaryDirectory() as home,
        serve(LATENCY_S) as server,
        prefect_test_harness(server_startup_timeout=120),
    ):
        os.environ["POLLUX_HOME"] = home
        folder = Path(home)
        mapped(write_table(folder / "warm.parquet", 100), server)
        ask_bare(folder / "warm.parquet", server)
        few = mapped(write_table(folder / "few.parquet", FEW), server)
        many = mapped(write_table(folder / "many.parquet", count), server)
        again = mapped(folder / "many.parquet", server)
        time.sleep(REST_S)
        theirs, _ = measured(lambda: ask_bare(folder / "many.parquet", server))
        new = mapped(write_table(folder / "many.parquet", count + NEW), server)
    times, growth = many.taken / theirs, (many.taken / count) / (few.taken / FEW)
    rows = f"{count:,} rows of {LATENCY_S} s"
    report(f"{rows}: bare SDK {theirs:.2f} s, map_rows {many.taken:.2f} s, ratio {times:.3f}", times, MOST_TIMES)
    report(f"{rows}: {many.grown:.0f} MiB above idle", many.grown, MOST_MIB)
    report(f"{rows}: {growth:.3f} of the time a row that {FEW:,} take", growth, MOST_GROWTH)
    share = again.taken / many.taken
    report(f"{rows}: the same again, all answered, {share:.3f} of the time", share, MOST_AGAIN)
    report(f"{rows}: the same again, {again.requests} requests", again.requests, 0)
    report(f"{rows}: {NEW:,} more, {new.requests:,} requests", new.requests, NEW)


def write_table(path: Path, rows: int) -> Path:
    """Write a table with a text of about 100 characters in each row."""
    texts = [
        f"{path.stem} {row}: the pump was loud, its valve late, and still it moved the water." for row in range(rows)
    ]
    pq.write_table(pa.table({"id": range(rows), "text": texts}), path)
    return path


def mapped(table: Path, server: Server) -> Mapped:
    """Map the table, and check that each row has an answer."""
    provider = PolluxProvider(
        provider="openai", model=MODEL, api_key="k", base_url=server.address, request_concurrency=CONCURRENCY
    )
    output = table.with_suffix(".answers.parquet")
    time.sleep(REST_S)
    before = server.requests
    taken, grown = measured(lambda: map_rows(str(table), "Summarize: {text}", provider, str(output)))
    answers = pq.read_table(output, columns=["answer"])["answer"]
    assert len(answers) == pq.read_metadata(table).num_rows
    assert answers.null_count == 0
    return Mapped(taken, grown, server.requests - before)


def ask_bare(table: Path, server: Server) -> None:
    texts = pq.read_table(table, columns=["text"])["text"].to_pylist()
    asyncio.run(bare([f"Summarize: {text}" for text in texts], server.address, CONCURRENCY))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10_000)
