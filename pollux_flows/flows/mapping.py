"""Mapping: the way of a table through its prompt, a chunk at a time, to a table with answers."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from prefect import get_run_logger
from prefect.filesystems import LocalFileSystem
from prefect.results import aget_default_result_storage
from prefect.settings import PREFECT_HOME

from pollux_flows import artifacts
from pollux_flows.address import shown
from pollux_flows.artifacts import show_progress
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import Config
from pollux_flows.errors import ConfigurationError, InternalError
from pollux_flows.flows.answering import OnPartial
from pollux_flows.flows.chunks import ChunkRunner, MapRun
from pollux_flows.flows.restrictions import with_restrictions
from pollux_flows.map_page import Highlights, map_line, render_map
from pollux_flows.mapping.answer import ChunkAnswers
from pollux_flows.mapping.columns import AnswerColumns
from pollux_flows.mapping.report import MapReport, Tally
from pollux_flows.mapping.spec import MapSpec
from pollux_flows.options import Options
from pollux_flows.output import write_report
from pollux_flows.pages import count_of
from pollux_flows.pipeline.terms import Reuse, Terms
from pollux_flows.run_store import confirm_store, store_id
from pollux_flows.scope import Lineage, lineage
from pollux_flows.state.home import home
from pollux_flows.state.slots import RunScope
from pollux_flows.state.store import open_store
from pollux_flows.tables.table import Chunk, Table, read_chunk, scan_table
from pollux_flows.tables.writer import TableWriter, output_exists, resolve_table_output

Delivery = Literal["realtime", "deferred"]
"""How the calls of a table are delivered: at once, or as the provider's batches."""

_ROWS_PER_CHUNK: Final = 1000


@with_restrictions
async def map_table(
    table: str,
    prompt: str,
    provider: PolluxProvider,
    output: str | None,
    *,
    id_column: str | None,
    source_columns: Sequence[str],
    columns: Sequence[str] | None,
    answer_column: str,
    options: Options | None,
    delivery: Delivery,
    reuse: Reuse,
    max_age: float | None,
    max_cost_usd: float | None,
    limit: int | None,
    on_partial: OnPartial,
    if_exists: Literal["replace", "error"],
    rows_per_chunk: int | None,
    require_approval: bool,
) -> MapReport:
    """Answer the rows of a table and write it with the answers. All that can be refused is refused before a call."""
    here = await lineage()
    if here is None:
        raise InternalError("A table is mapped by a flow, and no flow run is at hand.")
    _check_counts(limit=limit, rows_per_chunk=rows_per_chunk)
    Terms(reuse=reuse, max_age=max_age, max_cost_usd=max_cost_usd)
    config = await provider.config()
    spec = MapSpec(
        prompt=prompt,
        source_columns=list(source_columns),
        target=config.target,
        options=options or Options(),
        folders=[os.getcwd()],  # noqa: PTH109 (paths are compared as text)
        private=[str(PREFECT_HOME.value()), str(home())],
    )
    spec.check()
    answer_columns = AnswerColumns(answer_column, spec.options)
    async with _open_output(output, table, here, if_exists) as place:
        scanned = await asyncio.to_thread(
            scan_table,
            table,
            rows_per_chunk=rows_per_chunk or _ROWS_PER_CHUNK,
            limit=limit,
            need=[*spec.columns, *(columns or ())],
            id_column=id_column,
        )
        kept = list(columns or scanned.columns)
        answer_columns.check_names(kept)
        get_run_logger().info(
            "Planned %s of %s, in %s, for %s %s.",
            count_of(scanned.rows, "row"),
            shown(table),
            count_of(len(scanned.chunks), "chunk"),
            provider.provider,
            provider.model,
        )
        await confirm_store(here)
        mapping = _Mapping(scanned, kept, answer_columns, config, provider.name, spec, _make_scope(here, reuse))
        terms = _make_terms(here, reuse, max_age, max_cost_usd)
        report, tally, highlights = await mapping.write(place, terms)
    await _publish(spec, report, highlights)
    if tally.first_failure is not None and (on_partial == "fail" or not report.answered):
        error = tally.first_failure.error(config.provider)
        error.message = (
            f"{report.unanswered:,} of {count_of(report.rows, 'row')} have no answer. The first: {error.message}"
        )
        raise error
    return report


@dataclass(frozen=True)
class _Mapping:
    """A table that was looked at, and all that its run needs."""

    table: Table
    kept: Sequence[str]
    columns: AnswerColumns
    config: Config
    provider: str | None
    spec: MapSpec
    scope: RunScope

    async def write(self, place: _Place, terms: Terms) -> tuple[MapReport, Tally, Highlights]:
        """Answer all chunks and write the output as they come."""
        tally, highlights = Tally(), Highlights()
        store = await store_id(open_store())

        def make_run(limits: dict[str, int | None]) -> MapRun:
            return MapRun(self.spec, terms, self.scope, store, self.provider, limits)

        writer = await asyncio.to_thread(TableWriter, place.path, self.kept, self.table, self.columns.added)
        try:
            async with show_progress(self.table.rows, "Rows answered") as progress:
                async for chunk, answers in ChunkRunner(self.config, make_run, progress).answer(self.table.chunks):
                    await asyncio.to_thread(self._write_chunk, writer, chunk, answers, tally, highlights)
            await asyncio.to_thread(writer.complete)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(writer.discard))
            raise
        report = tally.report(self.table.address, place.shown)
        await asyncio.to_thread(write_report, place.path, report)
        return report, tally, highlights

    def _write_chunk(
        self, writer: TableWriter, chunk: Chunk, answers: ChunkAnswers, tally: Tally, highlights: Highlights
    ) -> None:
        rows: list[dict[str, Any]] = []
        cells = zip(read_chunk(chunk, self.kept), tally.add(answers), strict=True)
        for number, (row, (answer, is_reused)) in enumerate(cells, start=chunk.first_row + 1):
            highlights.add(number, answer)
            rows.append(row | self.columns.cells(answer, is_reused=is_reused))
        writer.write(rows)


@dataclass(frozen=True)
class _Place:
    """Where the output is written, and how people are told of it."""

    path: str
    shown: str


@asynccontextmanager
async def _open_output(
    output: str | None, table: str, here: Lineage, if_exists: Literal["replace", "error"]
) -> AsyncIterator[_Place]:
    """Yield the place of the output; without one, a file in the result storage of the run."""
    if output is not None:
        path = await asyncio.to_thread(resolve_table_output, output)
        if if_exists == "error" and await asyncio.to_thread(output_exists, path):
            raise ConfigurationError(
                f"The output {shown(path)!r} exists already.",
                hint="Name another one, or pass if_exists='replace'.",
            )
        yield _Place(path, path)
        return
    storage = await aget_default_result_storage()
    name = f"pollux-tables/{here.flow_run.id}{_ending_of(table)}"
    if isinstance(storage, LocalFileSystem) and storage.basepath:
        path = await asyncio.to_thread(resolve_table_output, str(Path(storage.basepath).expanduser() / name))
        yield _Place(path, path)
        return
    with tempfile.TemporaryDirectory(prefix="pollux-") as folder:
        file = Path(folder) / f"table{_ending_of(table)}"
        yield _Place(str(file), name)
        await storage.write_path(name, await asyncio.to_thread(file.read_bytes))


def _ending_of(table: str) -> str:
    """Return the ending of an output in the format of the table."""
    ending = Path(table).suffix.lower()
    return ending if ending in {".csv", ".jsonl"} else ".jsonl" if ending == ".ndjson" else ".parquet"


def _make_terms(here: Lineage, reuse: Reuse, max_age: float | None, max_cost_usd: float | None) -> Terms:
    """Return terms by which rows of one run share their answers, however often they are asked.

    Identical rows are asked once, so a row takes any answer to its call. What `reuse` decides is how old that may be:
    any age, or no older than the outermost run, or no older than the run at hand.
    """
    began = (here.flow_run if reuse == "never" else here.outermost).start_time
    since = time.time() if began is None else began.timestamp()
    if reuse == "always":
        return Terms(reuse="always", since=None if max_age is None else since - max_age, max_cost_usd=max_cost_usd)
    return Terms(reuse="always", since=since, max_cost_usd=max_cost_usd)


def _make_scope(here: Lineage, reuse: Reuse) -> RunScope:
    run = here.flow_run if reuse == "never" else here.outermost
    return RunScope(str(run.id), (), str(here.flow_run.id))


async def _publish(spec: MapSpec, report: MapReport, highlights: Highlights) -> None:
    advice = (
        "**Retry** this run, or start it again: rows with an answer are not asked again." if report.unanswered else None
    )
    page = render_map(spec.target, spec.prompt, report, highlights, advice)
    await artifacts.publish_page(page, f"{spec.target.model}: {count_of(report.rows, 'row')}")
    get_run_logger().info(map_line(report))


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ConfigurationError(f"{name} is {count}.", hint="Pass 1 or more, or leave it out.")
