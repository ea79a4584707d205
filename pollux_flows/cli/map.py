"""pollux-flows map: ask one prompt about each row of a table."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from cyclopts import Parameter

from pollux_flows import flows
from pollux_flows.cli.ask import MaxTokens, Provider, Schema, System, load_provider, read_options
from pollux_flows.cli.console import show_run
from pollux_flows.cli.exit_codes import ExitCode
from pollux_flows.cli.printing import Json, refusals_in_words, refuse, say
from pollux_flows.map_page import map_line
from pollux_flows.pipeline.terms import Reuse


def map_(
    table: Annotated[str, Parameter(help="A .parquet, .jsonl or .csv file or address, or a folder of parquet.")],
    *,
    prompt: Annotated[str, Parameter(help='The prompt, with columns in braces: "Summarize {title}: {body}".')],
    provider: Provider,
    output: Annotated[
        str | None,
        Parameter(("--output", "-o"), help="Where to write the table with the answers, in one of these formats."),
    ] = None,
    id_column: Annotated[str | None, Parameter(help="A column with a unique id for each row.")] = None,
    source_columns: Annotated[
        list[str] | None, Parameter(("--source-column", "-s"), help="A column with sources. Can be repeated.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        Parameter("--column", help="A column to write to the output, instead of all. Can be repeated."),
    ] = None,
    answer_column: Annotated[str, Parameter(help="The column for the answers.")] = "answer",
    system: System = None,
    schema: Schema = None,
    max_tokens: MaxTokens = None,
    batch: Annotated[bool, Parameter(help="Use the provider's batches, at a lower price.", show_default=False)] = False,
    reuse: Annotated[
        Reuse,
        Parameter(help="Which stored answers to reuse: those of any run (always), of this one (run), none (never)."),
    ] = "always",
    max_cost_usd: Annotated[float | None, Parameter(help="The most that the answers may cost, in US dollars.")] = None,
    limit: Annotated[int | None, Parameter(help="How many rows to read.")] = None,
    if_exists: Annotated[
        Literal["replace", "error"], Parameter(help="What to do if the output exists already.")
    ] = "replace",
    rows_per_chunk: Annotated[int | None, Parameter(help="How many rows each task run answers.")] = None,
    json: Json = False,
) -> None:
    """Ask one prompt about each row of a table, and write the table with the answers."""
    with refusals_in_words():
        options = read_options(system, schema, max_tokens)
        block = asyncio.run(load_provider(provider))
        with show_run():
            report = flows.map_rows(
                table,
                prompt,
                block,
                output,
                id_column=id_column,
                source_columns=source_columns or (),
                columns=columns,
                answer_column=answer_column,
                options=options,
                delivery="deferred" if batch else "realtime",
                reuse=reuse,
                max_cost_usd=max_cost_usd,
                limit=limit,
                if_exists=if_exists,
                rows_per_chunk=rows_per_chunk,
            )
        say(report.model_dump_json(indent=2) if json else f"{map_line(report)}\n{report.output}")
        if report.unanswered:
            refuse(f"{report.unanswered:,} rows have no answer: the output says why.", ExitCode.FAILED)
