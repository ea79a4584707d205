"""pollux-flows estimate: estimate the cost of a run from a shell."""

from __future__ import annotations

import asyncio
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Column, Table

from pollux_flows.cli.ask import (
    MaxTokens,
    Prompts,
    Provider,
    Schema,
    Sources,
    System,
    load_provider,
    read_options,
    read_prompt_arguments,
    read_sources,
)
from pollux_flows.cli.printing import Flag, Json, refusals_in_words, say
from pollux_flows.errors import ConfigurationError
from pollux_flows.estimation.api import estimate_many, estimate_table
from pollux_flows.estimation.estimate import Estimate, describe_calls, list_unknowns, make_table
from pollux_flows.flows.mapping import make_spec
from pollux_flows.pipeline.terms import Reuse, Terms


def estimate(
    *prompt: Annotated[str, Parameter(help="The prompts, each in quotes.")],
    provider: Provider,
    prompts: Prompts = None,
    sources: Sources = None,
    each_source: Annotated[
        Flag, Parameter(help="The prompts are asked about each source separately, as in a broadcast.")
    ] = False,
    system: System = None,
    schema: Schema = None,
    max_tokens: MaxTokens = None,
    table: Annotated[
        str | None, Parameter(help="Estimate the prompt about each row of this table, with columns in braces.")
    ] = None,
    source_columns: Annotated[
        list[str] | None, Parameter("--source-column", help="A column of the table with sources. Can be repeated.")
    ] = None,
    limit: Annotated[int | None, Parameter(help="How many rows of the table to read.")] = None,
    reuse: Annotated[
        Reuse | None,
        Parameter(
            help="Which stored answers would be reused: those of any run (always, the default for a table), or none "
            "(run, never)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Estimate calls, tokens, cost and time of a run."""
    with refusals_in_words():
        asked = read_prompt_arguments(prompt, prompts)
        options = read_options(system, schema, max_tokens)
        block = asyncio.run(load_provider(provider))
        about = read_sources(sources)

        async def make() -> Estimate:
            config = await block.config()
            if table is None:
                return await estimate_many(
                    asked, sources=about, config=config, options=options, each_source=each_source, reuse=reuse or "run"
                )
            if len(asked) > 1 or about:
                raise ConfigurationError(
                    "A table is estimated with one prompt, and without further sources.",
                    hint="Write one prompt, and name columns with --source-column.",
                )
            spec = make_spec(asked[0], source_columns or (), config.target, options)
            terms = Terms(reuse=reuse or "always")
            return await estimate_table(table, spec, config=config, terms=terms, limit=limit)

        found = asyncio.run(make())
    if json:
        say(found.model_dump_json(indent=2))
    else:
        _print(found)


def _print(estimate: Estimate) -> None:
    console = Console(markup=False, highlight=False)
    say(f"{estimate.target.provider} {estimate.target.model}: {describe_calls(estimate)}")
    table = Table("", *(Column(name, justify="right") for name in ("Low", "Expected", "Worst")), box=None)
    for row in make_table(estimate):
        table.add_row(*row)
    console.print(table)
    for line in [*list_unknowns(estimate), estimate.caching, *estimate.assumptions]:
        console.print(f"- {line}", soft_wrap=True)
