"""Read: read each file of a request once, and check that the provider accepts it, before anything is sent."""

from __future__ import annotations

from typing import Final

from pollux_flows.files.content import Content, examine, not_utf8_error
from pollux_flows.pipeline.conversation import check_unchanged
from pollux_flows.pipeline.request import Request
from pollux_flows.providers.registry import find_provider
from pollux_flows.state.content_cache import open_content_cache

LONGEST_S: Final = 600.0
"""The default time limit for reading one file, equal to the default of Config.timeout_s."""


async def read_sources(request: Request, *, limit_s: float = LONGEST_S) -> list[Content | None]:
    """Read the sources that are files, and return their contents; None for other sources. Each file may take `limit_s`.

    Raises an error for a source that cannot be sent.
    """
    sources = request.every_source
    files = [index for index, source in enumerate(sources) if source.source_type == "file"]
    contents: list[Content | None] = [None] * len(sources)
    if files:
        examined = await examine([sources[index] for index in files], open_content_cache(), limit_s=limit_s)
        for index, content in zip(files, examined, strict=True):
            contents[index] = content
    delivery = find_provider(request.target.provider).sources.delivery
    for source, known in zip(sources, contents, strict=True):
        if known is None:
            delivery(source, source.mime_type, source.size_bytes)
        elif delivery(source, known.mime_type, known.size_bytes) == "text" and not known.utf8:
            raise not_utf8_error(source)
    check_unchanged(request.history.attached, contents[len(request.sources) :])
    return contents
