"""realtime: one prompt, answered now."""

from collections.abc import Sequence

from pollux_flows.blocks.budget import PolluxBudget, limits_of
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.flows.answering import Cache, answer
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import OptionsField, SourceField
from pollux_flows.pipeline.terms import Reuse, Terms
from pollux_flows.result import ResultEnvelope


@sync_form("realtime")
async def realtime(
    prompt: str,
    provider: PolluxProvider,
    sources: Sequence[SourceField] = (),
    options: OptionsField = None,
    *,
    output: str | None = None,
    cache: Cache = None,
    reuse: Reuse = "run",
    max_age: float | None = None,
    max_cost_usd: float | None = None,
    budget: PolluxBudget | None = None,
) -> ResultEnvelope:
    """Ask one thing, about some sources or none.

    Args:
        prompt: What is asked.
        provider: The PolluxProvider that answers.
        sources: What the prompt is about.
        options: How to answer.
        output: Where the answers are to be written as well, all of them: a .jsonl or .csv file or, with a slash at its
            end, a folder; on this machine, or an address such as s3://bucket/answers.csv.
        cache: The PolluxCache that the prompts are about, by name, or "auto": hold the sources in a cache of the
            provider while the run lasts, where that is cheaper. It changes no answer.
        reuse: Which answers are not asked for again: "run", those of this run, when it is retried; "always", any
            earlier run's as well; "never", none.
        max_age: With "always", how old another run's answer may be, in seconds.
        max_cost_usd: The most that answers, and caches that the run creates, cost. A call is made if it surely fits.
        budget: A PolluxBudget that the run shares with others. A call must fit into both.
    """
    return await answer(
        "realtime",
        [prompt],
        provider,
        sources,
        options,
        terms=Terms(reuse=reuse, max_age=max_age, max_cost_usd=max_cost_usd, budget=limits_of(budget)),
        output=output,
        cache=cache,
    )


arealtime = async_form(realtime)
