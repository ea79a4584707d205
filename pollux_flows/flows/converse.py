"""converse: a conversation that continues from run to run, with tools that the model may call."""

from collections.abc import Sequence

from pollux_flows.blocks.budget import PolluxBudget, limits_of
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.flows.conversing import answer_turn
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import OptionsField, SourceField
from pollux_flows.result import ResultEnvelope


@sync_form("converse")
async def converse(
    prompt: str,
    provider: PolluxProvider,
    conversation: str | None = None,
    *,
    sources: Sequence[SourceField] = (),
    options: OptionsField = None,
    output: str | None = None,
    tools: Sequence[str] = (),
    max_rounds: int = 10,
    tool_timeout_s: float = 300.0,
    max_cost_usd: float | None = None,
    budget: PolluxBudget | None = None,
) -> ResultEnvelope:
    """Ask one prompt in a conversation, which any later run can continue by its name.

    Args:
        prompt: The prompt.
        provider: The PolluxProvider that answers.
        conversation: The name of the conversation to continue or begin. If empty, one begins under a new name, which
            the envelope and the page of the run show.
        sources: The files, addresses and texts that the prompt is about. Later prompts may refer to them.
        options: How to answer this prompt.
        output: A file that the answer is also written to: .jsonl or .csv or, ending in a slash, a folder; on this
            machine, or an address such as s3://bucket/answers.csv.
        tools: Python functions that the model may call, as import strings: my_package.tools:get_weather.
        max_rounds: How many times the model may call tools before it answers.
        tool_timeout_s: How long one tool call may take, in seconds.
        max_cost_usd: The most that the answers to this prompt may cost. A call is made only if it is sure to fit.
        budget: A PolluxBudget that this run shares with others. A call must fit into both budgets.
    """
    return await answer_turn(
        prompt,
        provider,
        conversation,
        sources,
        options,
        tools=tools,
        max_rounds=max_rounds,
        tool_timeout_s=tool_timeout_s,
        max_cost_usd=max_cost_usd,
        budget=limits_of(budget),
        output=output,
    )


aconverse = async_form(converse)
