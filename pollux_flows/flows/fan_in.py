"""fan_in: one prompt about many sources together."""

from collections.abc import Sequence

from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.flows.answering import answer
from pollux_flows.flows.forms import async_form, sync_form
from pollux_flows.options import Options
from pollux_flows.result import ResultEnvelope
from pollux_flows.source import Source


@sync_form("fan-in")
async def fan_in(
    prompt: str, sources: Sequence[Source], provider: PolluxProvider, options: Options | None = None
) -> ResultEnvelope:
    """Ask one thing about many sources together."""
    return await answer("fan-in", [prompt], provider, sources, options)


@async_form("fan-in")
async def afan_in(
    prompt: str, sources: Sequence[Source], provider: PolluxProvider, options: Options | None = None
) -> ResultEnvelope:
    """Ask one thing about many sources together. To be awaited."""
    return await answer("fan-in", [prompt], provider, sources, options)
