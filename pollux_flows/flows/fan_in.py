"""fan_in: one prompt about many sources together."""

from collections.abc import Sequence

from pollux_flows.blocks.budget import PolluxBudget, limits_of
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.flows.answering import Cache, answer
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import OptionsField, SourceField
from pollux_flows.pipeline.terms import Reuse, Terms
from pollux_flows.result import ResultEnvelope


@sync_form("fan-in")
async def fan_in(
    prompt: str,
    sources: Sequence[SourceField],
    provider: PolluxProvider,
    options: OptionsField = None,
    *,
    output: str | None = None,
    cache: Cache = None,
    reuse: Reuse = "run",
    max_age: float | None = None,
    max_cost_usd: float | None = None,
    budget: PolluxBudget | None = None,
) -> ResultEnvelope:
    """Ask one prompt about many sources together.

    Args:
        prompt: The prompt.
        provider: The PolluxProvider that answers.
        sources: The files, addresses and texts that the prompt is about.
        options: How to answer.
        output: A file that all answers are also written to: .jsonl or .csv or, ending in a slash, a folder; on this
            machine, or an address such as s3://bucket/answers.csv.
        cache: The PolluxCache that the prompts are about, by name, or "auto": hold the sources in a cache of the
            provider while the run lasts, where that is cheaper. The answers do not change.
        reuse: Which saved answers are reused: "run", those of this run when it is retried; "always", those of any
            earlier run too; "never", none.
        max_age: With "always", how old another run's answer may be, in seconds.
        max_cost_usd: The most that the answers, and caches that the run creates, may cost. A call is made only if it is
            sure to fit.
        budget: A PolluxBudget that this run shares with others. A call must fit into both budgets.
    """
    return await answer(
        "fan-in",
        [prompt],
        provider,
        sources,
        options,
        terms=Terms(reuse=reuse, max_age=max_age, max_cost_usd=max_cost_usd, budget=limits_of(budget)),
        output=output,
        cache=cache,
    )


afan_in = async_form(fan_in)
