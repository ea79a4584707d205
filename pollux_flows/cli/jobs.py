"""pollux-flows jobs, collect and cancel: deferred jobs from a shell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Final

from cyclopts import Parameter
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from pollux_flows import flows
from pollux_flows.cli.console import shorten_log
from pollux_flows.cli.exit_codes import ExitCode
from pollux_flows.cli.printing import NO_SERVER, Flag, Json, is_silence, refusals_in_words, refuse, say
from pollux_flows.deferred.report import CollectReport, JobRow, row_of
from pollux_flows.jobs.pages import format_age
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.pricing import dollars

_WATCH_EVERY_S: Final = 3.0


def jobs(
    *,
    all_: Annotated[Flag, Parameter("--all", help="Also show the jobs that are done.")] = False,
    watch: Annotated[Flag, Parameter(help="Refresh the list every few seconds, until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Show the deferred jobs on the Prefect server, as of their last `collect`. No provider is called."""
    with refusals_in_words():
        if watch:
            _watch(all_, json=json)
            return
        rows = asyncio.run(_rows(all_))
    _show(CollectReport(rows=rows), json=json, nothing="There are no jobs." if all_ else "No job is under way.")


def collect(
    *names: Annotated[str, Parameter(help="The jobs to collect. By default, all that are not done.")],
    json: Json = False,
) -> None:
    """Collect the answers of deferred jobs that are done."""
    with refusals_in_words(), shorten_log():
        report = flows.collect(list(names) or None)
    _show(report, json=json, nothing="No job is under way.")
    if any(row.problem for row in report.rows):
        raise SystemExit(ExitCode.FAILED)


def cancel(name: Annotated[str, Parameter(help="The name of the job.")], /) -> None:
    """Cancel a deferred job. Prompts that are answered by then are billed, and collected."""
    with refusals_in_words():
        with shorten_log():
            status = flows.cancel(name)
        say(f"{name}: {status}")


def _watch(every: bool, *, json: bool) -> None:
    """Show the jobs until Ctrl-C."""
    console = Console()
    if json or not console.is_terminal:
        refuse("--watch is for a terminal. In a script, run pollux-flows jobs --json as often as you need it.")
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        asyncio.run(_refresh(live, every))


async def _refresh(live: Live, every: bool) -> None:
    """Refresh the list of jobs. Once the server has answered, its restarts are waited for."""
    report: CollectReport | None = None
    while True:
        note = "Ctrl-C ends this."
        try:
            report = CollectReport(rows=await _rows(every))
        except NO_SERVER as error:
            if report is None or not is_silence(error):
                raise
            note = f"The Prefect server does not answer. {note}"
        table = _table(report.rows) if report.rows else Text("No job is under way.")
        live.update(Group(table, Text(f"{datetime.now().astimezone():%H:%M:%S}  {note}")), refresh=True)
        await asyncio.sleep(_WATCH_EVERY_S)


async def _rows(every: bool) -> list[JobRow]:
    store, now = await BlockJobStore.open(), time.time()
    found, unreadable = await store.list_jobs()
    rows = [row_of(job, now) for job in found if every or job.retired_at is None]
    rows += [JobRow(job=name, status="unreadable", problem=why) for name, why in unreadable.items()]
    return sorted(rows, key=lambda row: row.age_s)


def _show(report: CollectReport, *, json: bool, nothing: str) -> None:
    if json:
        say(report.model_dump_json(indent=2))
    elif not report.rows:
        say(nothing)
    else:
        Console().print(_table(report.rows))
        say(f"{report.headline}.")


def _table(rows: Sequence[JobRow]) -> Table:
    table = Table(Column("Job", no_wrap=True), "Status", "Answered", "Age", "Cost", Column("Next", overflow="fold"))
    for row in rows:
        failed = f", {row.failed:,} failed" if row.failed else ""
        table.add_row(
            row.job,
            row.status,
            f"{row.succeeded:,} of {row.prompts:,}{failed}",
            format_age(row.age_s),
            "" if row.cost_usd is None else dollars(row.cost_usd),
            Text(row.problem or row.next),
        )
    return table
