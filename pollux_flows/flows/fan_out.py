"""fan_out: many prompts about the same sources."""

from collections.abc import Sequence

from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.flows.answering import answer
from pollux_flows.flows.forms import async_form, sync_form
from pollux_flows.options import Options
from pollux_flows.result import ResultEnvelope
from pollux_flows.source import Source


@sync_form("fan-out")
async def fan_out(
    prompts: Sequence[str], provider: PolluxProvider, sources: Sequence[Source] = (), options: Options | None = None
) -> ResultEnvelope:
    """Ask many things about the same sources."""
    return await answer("fan-out", prompts, provider, sources, options)


@async_form("fan-out")
async def afan_out(
    prompts: Sequence[str], provider: PolluxProvider, sources: Sequence[Source] = (), options: Options | None = None
) -> ResultEnvelope:
    """Ask many things about the same sources. To be awaited."""
    return await answer("fan-out", prompts, provider, sources, options)
