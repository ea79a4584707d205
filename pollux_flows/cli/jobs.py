"""pollux-flows jobs, collect, cancel: deferred work, seen from a shell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pollux_flows import flows
from pollux_flows.cli.exit_codes import ExitCode
from pollux_flows.cli.words import Json, refusals_in_words, say
from pollux_flows.deferred.report import CollectReport, JobRow, row_of
from pollux_flows.jobs.pages import format_age
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.pricing import dollars


def jobs(
    *,
    all_: Annotated[bool, Parameter("--all", help="Those that are done as well.", negative="")] = False,
    json: Json = False,
) -> None:
    """Show the deferred jobs on the Prefect server, as they were last collected. No provider is asked."""
    with refusals_in_words():
        rows = asyncio.run(_rows(all_))
    _show(CollectReport(rows=rows), json=json, nothing="There are no jobs." if all_ else "No job is under way.")


def collect(
    *names: Annotated[str, Parameter(help="The jobs to look at; all that are not done, if none is named.")],
    json: Json = False,
) -> None:
    """Look at deferred jobs, and keep the answers of those that are done. It may be run as often as one likes."""
    with refusals_in_words():
        report = flows.collect(list(names) or None)
    _show(report, json=json, nothing="No job is under way.")
    if any(row.problem for row in report.rows):
        raise SystemExit(ExitCode.FAILED)


def cancel(name: Annotated[str, Parameter(help="The job.")]) -> None:
    """Ask the provider to stop a deferred job. What is answered by then is paid for, and collected."""
    with refusals_in_words():
        say(f"{name}: {flows.cancel(name)}")


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
