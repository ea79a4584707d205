"""Mapping: answer the rows of a table, a chunk at a time, and write the table with the answers."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from prefect import get_run_logger
from prefect.filesystems import LocalFileSystem
from prefect.results import aget_default_result_storage
from prefect.settings import PREFECT_HOME

from pollux_flows import artifacts
from pollux_flows.address import file_name, redact_address
from pollux_flows.artifacts import show_progress
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import Target
from pollux_flows.errors import ConfigurationError, InternalError
from pollux_flows.estimation.api import estimate_scanned
from pollux_flows.file_system import find_file_system
from pollux_flows.flows.answering import OnPartial
from pollux_flows.flows.approval import require_approval
from pollux_flows.flows.chunks import ChunkRunner, MapRun
from pollux_flows.flows.mapping_batch import BatchRunner
from pollux_flows.flows.restrictions import with_restrictions
from pollux_flows.map_page import Highlights, map_line, render_map
from pollux_flows.mapping.answer import ChunkAnswers
from pollux_flows.mapping.columns import AnswerColumns
from pollux_flows.mapping.report import MapReport, RowTally
from pollux_flows.mapping.spec import MapSpec
from pollux_flows.options import Options
from pollux_flows.output import manifest_path, unreadable_error
from pollux_flows.pages import count_of
from pollux_flows.pipeline.terms import Reuse, Terms
from pollux_flows.run_store import confirm_store, store_id
from pollux_flows.scope import Lineage, find_start, lineage
from pollux_flows.state.home import home
from pollux_flows.state.slots import RunScope
from pollux_flows.state.store import open_store
from pollux_flows.tables.table import Chunk, Table, read_chunk, scan_table
from pollux_flows.tables.writer import TableWriter, resolve_table_output

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
    terms: Terms,
    limit: int | None,
    on_partial: OnPartial,
    if_exists: Literal["replace", "error"],
    rows_per_chunk: int | None,
    needs_approval: bool,
) -> MapReport:
    """Answer the rows of a table and write it with the answers. Invalid arguments are refused before the first call."""
    here = await lineage()
    if here is None:
        raise InternalError("map_table was called outside a flow run.")
    _check_counts(limit=limit, rows_per_chunk=rows_per_chunk)
    if terms.budget is not None and delivery == "deferred":
        raise ConfigurationError(
            "A PolluxBudget applies to realtime calls only, and delivery is 'deferred'.",
            hint="Leave budget out, and pass max_cost_usd, which also applies to a batch.",
        )
    config = await provider.config()
    spec = make_spec(prompt, source_columns, config.target, options)
    spec.check()
    answer_columns = AnswerColumns(answer_column, spec.options)
    async with _open_output(output, table, here, if_exists) as opened:
        scanned = await asyncio.to_thread(
            scan_table,
            table,
            rows_per_chunk=rows_per_chunk or _ROWS_PER_CHUNK,
            limit=limit,
            need=[*spec.columns, *(columns or ())],
            id_column=id_column,
        )
        output_columns = list(dict.fromkeys(columns or scanned.columns))
        answer_columns.check_names(output_columns)
        get_run_logger().info(
            "Planned %s of %s, in %s, for %s %s.",
            count_of(scanned.rows, "row"),
            redact_address(table),
            count_of(len(scanned.chunks), "chunk"),
            provider.provider,
            provider.model,
        )
        await confirm_store(here)
        if needs_approval:
            await require_approval(lambda: estimate_scanned(scanned, spec, config, terms))
        scope = _make_scope(here, terms.reuse)
        run = MapRun(spec, _share_answers(terms, here), scope, await store_id(open_store()), provider.name)
        mapping = _Mapping(scanned, output_columns, answer_columns)
        async with show_progress(scanned.rows, "Rows answered") as progress:
            runner = (
                ChunkRunner(config, run, progress)
                if delivery == "realtime"
                else BatchRunner(provider, config, run, progress)
            )
            report = await mapping.write(opened, runner)
    await _publish(spec, report, mapping.highlights)
    failure = mapping.tally.first_failure
    if failure is not None and (on_partial == "fail" or not report.answered):
        if isinstance(runner, BatchRunner):
            await runner.mark_failed()
        error = failure.error(config.provider)
        summary = f"{report.unanswered:,} of {count_of(report.rows, 'row')} have no answer."
        error.message = f"{summary} The first: {error.message}"
        raise error
    return report


def make_spec(prompt: str, source_columns: Sequence[str], target: Target, options: Options | None) -> MapSpec:
    """Return how the rows of a table become calls. Paths in its cells must be in or below the working folder."""
    return MapSpec(
        prompt=prompt,
        source_columns=list(source_columns),
        target=target,
        options=options or Options(),
        folders=[os.getcwd()],  # noqa: PTH109 (paths are compared as text)
        private=[str(PREFECT_HOME.value()), str(home())],
    )


@dataclass(frozen=True)
class _Mapping:
    """A scanned table, its output columns, and the counts and examples for the report of the run."""

    table: Table
    output_columns: Sequence[str]
    columns: AnswerColumns
    tally: RowTally = field(default_factory=RowTally)
    highlights: Highlights = field(default_factory=Highlights)

    async def write(self, output: _Output, runner: ChunkRunner | BatchRunner) -> MapReport:
        """Write the rows with their answers, chunk by chunk, and return the report."""
        output_table = replace(self.table, columns=list(self.output_columns))
        writer = await asyncio.to_thread(TableWriter, output.path, output_table, self.columns.added)
        with writer:
            # Closed explicitly, so that calls in flight end before the run does.
            async with aclosing(runner.answer(self.table.chunks)) as answered:
                async for chunk, answers in answered:
                    await asyncio.to_thread(self._write_chunk, writer, chunk, answers)
            report = self.tally.report(self.table.address, output.shown, output.run)
            await asyncio.to_thread(writer.complete, report)
        return report

    def _write_chunk(self, writer: TableWriter, chunk: Chunk, answers: ChunkAnswers) -> None:
        rows: list[dict[str, Any]] = []
        cells = zip(read_chunk(chunk, self.output_columns), self.tally.add(answers), strict=True)
        for number, (row, (answer, is_reused)) in enumerate(cells, start=chunk.first_row + 1):
            self.highlights.add(number, answer)
            rows.append(row | self.columns.cells(answer, is_reused=is_reused))
        writer.write(rows)


@dataclass(frozen=True)
class _Output:
    """The path of the output, the path as it is shown to people, and the run that writes it."""

    path: str
    shown: str
    run: str
    """The id of the run, which stays the same when the run is retried."""


@asynccontextmanager
async def _open_output(
    output: str | None, table: str, here: Lineage, if_exists: Literal["replace", "error"]
) -> AsyncIterator[_Output]:
    """Yield the output to write; by default, a file in the result storage of the run."""
    run = here.scope.place or str(here.outermost.id)
    if output is not None:
        path = await asyncio.to_thread(resolve_table_output, output)
        if if_exists == "error" and await asyncio.to_thread(_is_of_another_run, path, run):
            raise ConfigurationError(
                f"The output {redact_address(path)!r} exists already.",
                hint="Name another one, or pass if_exists='replace'.",
            )
        yield _Output(path, path, run)
        return
    storage = await aget_default_result_storage()
    name = f"pollux-tables/{here.flow_run.id}{_ending_of(table)}"
    if isinstance(storage, LocalFileSystem) and storage.basepath:
        path = await asyncio.to_thread(resolve_table_output, f"{storage.basepath}/{name}")
        yield _Output(path, path, run)
        return
    with tempfile.TemporaryDirectory(prefix="pollux-") as folder:
        file = Path(folder) / f"table{_ending_of(table)}"
        yield _Output(str(file), name, run)
        await storage.write_path(name, await asyncio.to_thread(file.read_bytes))


def _is_of_another_run(path: str, run: str) -> bool:
    """Return whether the output exists and was not written by an attempt of this run."""
    files, place = find_file_system(path)
    try:
        if not files.exists(place):
            return False
        return MapReport.model_validate_json(files.cat_file(manifest_path(place))).run != run
    except (FileNotFoundError, ValueError):  # no manifest, or one of something else
        return True
    except Exception as error:  # noqa: BLE001 (each file system has errors of its own)
        raise unreadable_error(path, error) from None


def _ending_of(table: str) -> str:
    """Return the file extension of an output in the format of the table."""
    ending = Path(file_name(table)).suffix.lower()
    return ending if ending in {".csv", ".jsonl"} else ".jsonl" if ending == ".ndjson" else ".parquet"


def _share_answers(terms: Terms, here: Lineage) -> Terms:
    """Return the terms under which equal rows share one answer.

    A row reuses any answer to its call, so `reuse` only limits the age: any age, no older than the outermost run, or
    no older than the current run.
    """
    start = find_start(here.flow_run if terms.reuse == "never" else here.outermost)
    since: float | None = start
    if terms.reuse == "always":
        since = None if terms.max_age is None else start - terms.max_age
    return terms.model_copy(update={"reuse": "always", "max_age": None, "since": since})


def _make_scope(here: Lineage, reuse: Reuse) -> RunScope:
    run = here.flow_run if reuse == "never" else here.outermost
    is_repeated = here.scope.is_repeated or here.flow_run.run_count > 1 or here.is_deep
    return RunScope(str(run.id), (), str(here.flow_run.id), is_repeated)


async def _publish(spec: MapSpec, report: MapReport, highlights: Highlights) -> None:
    page = render_map(spec.target, spec.prompt, report, highlights)
    await artifacts.publish_page(page, f"{spec.target.model}: {count_of(report.rows, 'row')}")
    get_run_logger().info(map_line(report))


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ConfigurationError(f"{name} is {count}.", hint="Pass 1 or more, or leave it out.")
