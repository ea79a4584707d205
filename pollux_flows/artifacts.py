"""Artifacts: the pages, tables and progress bars that a run publishes for people."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from prefect import get_run_logger
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from slugify import slugify

from pollux_flows.estimation.estimate import Estimate, describe_calls, describe_cost
from pollux_flows.jobs.connection import open_client
from pollux_flows.pages import RunInput, headline, render_answers, render_cache, render_estimate, render_grid
from pollux_flows.pipeline.caches import CacheRecord
from pollux_flows.result import Outcome, ResultEnvelope, SweepReport
from pollux_flows.scope import lineage

_PROGRESS_EVERY_S: Final = 2.0
_LABEL: Final = "label:"


@asynccontextmanager
async def best_effort() -> AsyncIterator[None]:
    """Publish best effort: if a page cannot be published, the run logs a warning and goes on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (any error of the server or the network)
        get_run_logger().warning("An artifact could not be published (%s); the answers are in the result.", error)


async def publish_answers(
    run_input: RunInput,
    envelopes: Sequence[ResultEnvelope],
    advice: str | None,
    output: str | None,
) -> None:
    """Publish the page of a run: its failures, numbers, prompts and answers. `advice` is for a retry."""
    async with best_effort():
        page = (
            render_grid(run_input, envelopes, advice, output)
            if run_input.each_source
            else render_answers(run_input, envelopes[0], advice, output)
        )
        await publish_page(page, headline(run_input, envelopes))


async def publish_page(page: str, description: str) -> None:
    """Publish the page of the current run. The UI shows the pages of one flow and deployment as a history."""
    await acreate_markdown_artifact(markdown=page, key=await _page_key(), description=description)


async def _page_key() -> str:
    """Return the artifact key of a run's page. The UI shows the pages with one key as a history.

    The key names the outermost flow, its deployment, the current flow, and tags such as `label:north`:
    `pollux-fan-out` for a script, `pollux-fan-out-north` for one that tags its run so, `pollux-fan-out-nightly` for a
    deployment, `pollux-weekly-report-fan-out` for a flow that calls fan-out.
    """
    here, context = await lineage(), FlowRunContext.get()
    own = [] if context is None or context.flow is None else [context.flow.name]
    names, labels = list(own), list[str]()
    if here is not None:
        run = here.outermost
        labels = sorted(
            {tag.removeprefix(_LABEL) for tag in [*run.tags, *here.flow_run.tags] if tag.startswith(_LABEL)}
        )
        async with open_client() as client:
            if not here.is_outermost:
                names = [(await client.read_flow(run.flow_id)).name]
            if run.deployment_id is not None:
                with suppress(ObjectNotFound):  # deleted since
                    names.append((await client.read_deployment(run.deployment_id)).name)
    # A deployment may have the name of its flow.
    words = dict.fromkeys(filter(None, map(slugify, [*names, *own, *labels])))
    return "-".join(["pollux", *words])


async def publish_cache(name: str, record: CacheRecord) -> None:
    """Publish a page about a cache: its contents, size, cost and break-even point."""
    async with best_effort():
        await acreate_markdown_artifact(
            markdown=render_cache(record),
            key=name,
            description=f"{record.target.model}: {', '.join(record.contents)}",
        )


async def publish_estimate(estimate: Estimate) -> None:
    """Publish the page of an estimate, under a key of its own beside that of the run's page."""
    async with best_effort():
        key = await _page_key()
        await acreate_markdown_artifact(
            markdown=render_estimate(estimate),
            key=key if key.endswith("estimate") else f"{key}-estimate",
            description=f"{estimate.target.model}: {describe_calls(estimate)}, {describe_cost(estimate)}",
        )


async def publish_sweep(report: SweepReport) -> None:
    """Publish a table with a row for each file or cache that was removed, and for each problem."""
    rows = [{"provider": file.provider, "file": file.file_id, "now": "removed"} for file in report.removed]
    rows += [
        {"provider": file.provider, "file": file.file_id, "now": f"still there: {file.why}"} for file in report.left
    ]
    rows += [{"provider": "", "file": cache, "now": "removed"} for cache in report.caches]
    rows += [{"provider": "", "file": "", "now": problem} for problem in [*report.unusable, *report.unreadable]]
    await acreate_table_artifact(
        table=rows,
        key="pollux-sweep",
        description=f"{len(report.removed) + len(report.caches)} removed, {len(report.left)} still there",
    )


@dataclass
class Progress:
    """The progress of a run, with the tokens and cost of its new answers."""

    total: int
    done: int = 0
    tokens: int = 0
    cost_usd: float | None = 0.0
    """None once the cost of an answer is unknown."""
    on_change: ProgressListener | None = None

    def advance(self, steps: int) -> None:
        """Add steps that are done, and notify the listener."""
        self.done += steps
        if self.on_change is not None:
            self.on_change(self)

    def add(self, outcome: Outcome) -> None:
        """Add a call that has ended, with the tokens and the cost of its answer."""
        if outcome.answer is not None and outcome.reused is None:
            self.tokens += outcome.answer.usage.get("total_tokens", 0)
            known = self.cost_usd is not None and outcome.cost_usd is not None
            self.cost_usd = (self.cost_usd or 0.0) + (outcome.cost_usd or 0.0) if known else None
        self.advance(1)

    @property
    def percent(self) -> float:
        return 100.0 * self.done / self.total if self.total else 100.0


ProgressListener = Callable[[Progress], None]
_listener: ContextVar[ProgressListener | None] = ContextVar("pollux_flows_progress_listener", default=None)


@contextmanager
def listen_to_progress(listener: ProgressListener) -> Iterator[None]:
    """Call the listener at the start and on each progress of runs that are started inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@asynccontextmanager
async def show_progress(total: int, description: str) -> AsyncIterator[Progress]:
    """Show a progress bar in the UI for work that takes longer than two seconds."""
    progress = Progress(total, on_change=_listener.get())
    progress.advance(0)

    async def show() -> None:
        await asyncio.sleep(_PROGRESS_EVERY_S)
        async with best_effort():
            bar = await acreate_progress_artifact(progress=progress.percent, description=f"{description}, of {total:,}")
            try:
                while True:
                    await asyncio.sleep(_PROGRESS_EVERY_S)
                    await aupdate_progress_artifact(bar, progress=progress.percent)
            finally:
                await asyncio.shield(aupdate_progress_artifact(bar, progress=progress.percent))

    shown = asyncio.create_task(show())
    try:
        yield progress
    finally:
        shown.cancel()
        with suppress(asyncio.CancelledError):
            await shown
