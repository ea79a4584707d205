"""map_rows: one prompt over each row of a table."""

from collections.abc import Sequence
from typing import Literal

from pollux_flows.blocks.budget import PolluxBudget, limits_of
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.flows.answering import OnPartial
from pollux_flows.flows.mapping import Delivery, map_table
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import OptionsField
from pollux_flows.mapping.report import MapReport
from pollux_flows.pipeline.terms import Reuse, Terms


@sync_form("map-rows")
async def map_rows(
    table: str,
    prompt: str,
    provider: PolluxProvider,
    output: str | None = None,
    *,
    id_column: str | None = None,
    source_columns: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    answer_column: str = "answer",
    options: OptionsField = None,
    delivery: Delivery = "realtime",
    reuse: Reuse = "always",
    max_age: float | None = None,
    max_cost_usd: float | None = None,
    budget: PolluxBudget | None = None,
    limit: int | None = None,
    on_partial: OnPartial = "complete",
    if_exists: Literal["replace", "error"] = "replace",
    rows_per_chunk: int | None = None,
    require_approval: bool = False,
) -> MapReport:
    """Ask one prompt about each row of a table, and write the table with the answers as additional columns.

    Args:
        table: A .parquet, .jsonl or .csv file, or a folder of parquet with a slash at its end; on this machine, or an
            address such as s3://bucket/reviews.parquet.
        prompt: The prompt, with columns in braces, as in "Summarize {title}: {body}". Write {{ for a brace.
        provider: The PolluxProvider that answers.
        output: Where the table with the answers is written, in one of these formats; empty for the result storage.
        id_column: A column with a unique id for each row; a table in which an id occurs twice is refused.
        source_columns: Columns with sources that the prompt is about: texts, paths, addresses, or lists of them.
        columns: The columns of the table that the output has, besides the answers; empty for all.
        answer_column: The name of the column for the answers, and the prefix of the other columns of an answer.
        options: How to answer.
        delivery: "realtime", or "deferred" for batches, which cost less and may take a day.
        reuse: Which saved answers are reused: "always", those of any run; "run", those of this run when it is retried;
            "never", none.
        max_age: With "always", how old another run's answer may be, in seconds.
        max_cost_usd: The most that the answers may cost. A row is asked only if it is sure to fit; the others get the
            status "budget". A batch is submitted only if all of it is sure to fit.
        budget: A PolluxBudget that this run shares with others. A call must fit into both budgets. Not for batches.
        limit: How many rows to read; empty for all.
        on_partial: When some rows have no answer, "complete" the run, or "fail" it, so that it can be retried.
        if_exists: If the output exists already: "replace" it once the new one is complete, or raise an "error".
        rows_per_chunk: How many rows each task run answers; empty for 1,000.
        require_approval: Before the first call, wait until a person has seen the estimate and resumes the run.
    """
    return await map_table(
        table,
        prompt,
        provider,
        output,
        id_column=id_column,
        source_columns=source_columns,
        columns=columns,
        answer_column=answer_column,
        options=options,
        delivery=delivery,
        terms=Terms(reuse=reuse, max_age=max_age, max_cost_usd=max_cost_usd, budget=limits_of(budget)),
        limit=limit,
        on_partial=on_partial,
        if_exists=if_exists,
        rows_per_chunk=rows_per_chunk,
        needs_approval=require_approval,
    )


amap_rows = async_form(map_rows)
