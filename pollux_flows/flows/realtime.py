"""realtime: one prompt, answered now."""

from collections.abc import Sequence

from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.flows.answering import answer
from pollux_flows.flows.forms import async_form, sync_form
from pollux_flows.options import Options
from pollux_flows.result import ResultEnvelope
from pollux_flows.source import Source


@sync_form("realtime")
async def realtime(
    prompt: str, provider: PolluxProvider, sources: Sequence[Source] = (), options: Options | None = None
) -> ResultEnvelope:
    """Ask one thing, about some sources or none."""
    return await answer("realtime", [prompt], provider, sources, options)


@async_form("realtime")
async def arealtime(
    prompt: str, provider: PolluxProvider, sources: Sequence[Source] = (), options: Options | None = None
) -> ResultEnvelope:
    """Ask one thing, about some sources or none. To be awaited."""
    return await answer("realtime", [prompt], provider, sources, options)
