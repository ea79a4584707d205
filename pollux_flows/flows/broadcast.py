"""broadcast: the same prompts about each of many sources."""

from collections.abc import Sequence

from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.flows.answering import answer_each
from pollux_flows.flows.forms import async_form, sync_form
from pollux_flows.options import Options
from pollux_flows.result import ResultEnvelope
from pollux_flows.source import Source


@sync_form("broadcast")
async def broadcast(
    prompts: Sequence[str], sources: Sequence[Source], provider: PolluxProvider, options: Options | None = None
) -> list[ResultEnvelope]:
    """Ask the same things about each source by itself: one envelope a source, in order."""
    return await answer_each(prompts, provider, sources, options)


@async_form("broadcast")
async def abroadcast(
    prompts: Sequence[str], sources: Sequence[Source], provider: PolluxProvider, options: Options | None = None
) -> list[ResultEnvelope]:
    """Ask the same things about each source by itself: one envelope a source, in order. To be awaited."""
    return await answer_each(prompts, provider, sources, options)
