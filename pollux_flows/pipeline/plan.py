"""Plan: the calls a request comes to, each with its identity. The same request gives the same plan, anywhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from pollux_flows.config import Target
from pollux_flows.document import Document
from pollux_flows.errors import ConfigurationError
from pollux_flows.options import Options
from pollux_flows.pipeline.request import Request
from pollux_flows.providers.content import Content
from pollux_flows.source import Source
from pollux_flows.state.identity import call_identity, request_identity, source_identity


class PlannedCall(Document):
    """One call: a prompt, and the name its answer is found by."""

    index: int
    prompt: str | None
    source: int | None = None  # the one source it is about; None for all of them
    identity: str


class Plan(Document):
    """All calls of a request. What they share is written once."""

    target: Target
    options: Options
    sources: list[Source]
    contents: list[Content | None] = Field(description="What is known of each source that is a file.")
    calls: list[PlannedCall]

    @property
    def size(self) -> str:
        """How much it is, for people."""
        return f"{len(self.calls)} call{'' if len(self.calls) == 1 else 's'}"

    def part(self, source: int) -> Plan:
        """The calls about one source, as a plan of their own."""
        calls = [call for call in self.calls if call.source == source]
        about = {"sources": [self.sources[source]], "contents": [self.contents[source]]}
        return self.model_copy(update={**about, "calls": calls})


def make_plan(request: Request, contents: Sequence[Content | None] | None = None) -> Plan:
    """One call per prompt, in prompt order; for each source in turn, where each is asked about by itself.

    `contents` is what `read_sources` found: a file is what is in it, not what it is called.
    """
    contents = list(contents) if contents is not None else [None] * len(request.sources)
    named = [
        source_identity(source, request.target.provider, (content.sha256, content.mime_type) if content else None)
        for source, content in zip(request.sources, contents, strict=True)
    ]
    _check_cache_alive(request.options)
    calls: list[PlannedCall] = []
    for source in range(len(request.sources)) if request.each_source else (None,):
        about = named if source is None else [named[source]]
        shared = request_identity(request.target, request.options, about)
        seen: Counter[str | None] = Counter()
        for prompt in request.prompts:
            identity = call_identity(shared, prompt, seen[prompt])
            calls.append(PlannedCall(index=len(calls), prompt=prompt, source=source, identity=identity))
            seen[prompt] += 1
    return Plan(target=request.target, options=request.options, sources=request.sources, contents=contents, calls=calls)


def _check_cache_alive(options: Options) -> None:
    if options.cache is not None and options.cache.expires_at <= time.time():
        ago = time.time() - options.cache.expires_at
        raise ConfigurationError(
            f"The cache handle {options.cache.name} expired {ago:.0f} seconds ago.",
            hint="Make another with create_cache, with a longer ttl_seconds.",
        )
