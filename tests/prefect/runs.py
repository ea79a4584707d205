"""Flow runs and their pages, read from the server, and the wait until the server shows something."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowFilter, FlowFilterName
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.sorting import FlowRunSort


async def wait_until(find: Callable[[], Any], within_s: float = 120.0) -> Any:
    """Return the first result of `find` that is true."""
    deadline = time.monotonic() + within_s
    while not (found := await find()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {find}"
        await asyncio.sleep(0.2)
    return found


async def find_newest_run(flow: str) -> FlowRun:
    """Return the run of this flow that started last."""
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])), sort=FlowRunSort.START_TIME_DESC, limit=1
        )
    return runs[0]


async def read_if_ended(run: FlowRun) -> FlowRun | None:
    """Return the run as it ended; None while it goes on."""
    async with get_client() as client:
        found = await client.read_flow_run(run.id)
    return found if found.state and found.state.is_final() else None


async def read_pages(run: FlowRun) -> list[Artifact]:
    """Return the pages and the progress bar of a run."""
    async with get_client() as client:
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    return [artifact for artifact in found if artifact.type in {"markdown", "progress"}]
