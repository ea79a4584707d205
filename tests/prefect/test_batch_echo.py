"""Tests with a batch provider that echoes the API key: the key is stored nowhere."""

from __future__ import annotations

import os
from pathlib import Path

from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from pydantic import SecretStr

from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import acollect, asubmit
from pollux_flows.simulator import Fault, Simulator
from tests.prefect.jobs import jobs_home, no_jobs_are_left, read_job_events

__all__ = ["jobs_home", "no_jobs_are_left"]

KEY = "sk-echoed-by-a-batch-4f1c92"


async def test_a_batch_that_echoes_the_key_stores_it_nowhere(
    world: tuple[Simulator, str], simulator: Simulator, tmp_path: Path
) -> None:
    """The database of the server (jobs, artifacts, events, logs), results, outputs and POLLUX_HOME are searched."""
    simulator.batch_s = 0
    simulator.fail(Fault(status=400, message=f"bad key {KEY}"), operation="batch.row", contains="Echo it.", times=None)
    simulator.batch(end="completed")
    simulator.batch(end="failed", message=f"bad key {KEY}")
    address = simulator.base_url("openai", origin=world[1])
    block = PolluxProvider(provider="openai", model="gpt-4.1-mini", api_key=SecretStr(KEY), base_url=address)
    await block.asave("echoes", overwrite=True)
    jobs = [
        await asubmit(
            ["Echo it.", "Who?"], await PolluxProvider.named("echoes"), output=str(tmp_path / f"{kind}.jsonl")
        )
        for kind in ("row", "whole")
    ]
    report = await acollect()
    for kind, job in zip(("row", "whole"), jobs, strict=True):
        assert "bad key [REDACTED]" in (tmp_path / f"{kind}.jsonl").read_text()
        assert len(await read_job_events(job)) == 2
    assert KEY not in report.model_dump_json()
    assert _find_files_with_key(tmp_path, Path(os.environ["PREFECT_HOME"]), _find_database().parent) == []


def test_the_search_covers_the_servers_database() -> None:
    """The test above searches the folder of this file."""
    assert _find_database().is_file()


def _find_files_with_key(*folders: Path) -> list[str]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if KEY.encode() in path.read_bytes()]


def _find_database() -> Path:
    return Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2])
