"""Plan: the calls a request comes to, each with its identity. The same request gives the same plan, anywhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Sequence
from typing import Final

from pydantic import Field

from pollux_flows.config import Target
from pollux_flows.document import Document
from pollux_flows.errors import ExpiredCacheError
from pollux_flows.files.content import Content
from pollux_flows.options import Options
from pollux_flows.pipeline.caches import CacheChoice, CacheRequest
from pollux_flows.pipeline.conversation import Conversation
from pollux_flows.pipeline.request import Request
from pollux_flows.source import Source
from pollux_flows.state.identity import call_identity, conversation_identity, request_identity, source_identity
from pollux_flows.state.index import RunFacts

# A part for each call, up to so many that a person looks at them one by one; beyond, a few large ones.
_SINGLE: Final = 32
_CHUNKS: Final = 10
_LONGEST_TITLE: Final = 80


class PlannedCall(Document):
    """One call: a prompt, and the name its answer is found by."""

    index: int
    prompt: str | None
    source: int | None = None  # the one source it is about; None for all of them
    sources: list[int] | None = Field(
        default=None,
        exclude_if=lambda sources: sources is None,
        description="The sources it is about, where each call has its own; None elsewhere.",
    )
    identity: str
    request: str = Field(default="", description="The identity of what it shares with the other calls of its request.")
    occurrence: int = Field(default=0, description="How many identical calls the plan has before this one.")


class Plan(Document):
    """All calls of a request. What they share is written once."""

    target: Target
    options: Options
    sources: list[Source]
    contents: list[Content | None] = Field(description="What is known of each source that is a file.")
    calls: list[PlannedCall]
    sharing: int = Field(description="How many calls the complete plan makes about the same sources.")
    broadcast_over: int = Field(
        default=1,
        exclude_if=lambda sources: sources == 1,
        description="How many sources the complete plan asks about, each by itself.",
    )
    said: Conversation = Field(
        default=Conversation(),
        exclude_if=lambda said: said.is_empty,
        description="What was said before. What was attached to it ends `sources`.",
    )

    cache_request: CacheRequest | None = Field(
        default=None,
        exclude_if=lambda request: request is None,
        description="How to make the cache of these calls: that of options.cache or, without one, one that holds the "
        "plan's own sources, system instruction and tools.",
    )
    cache_choice: CacheChoice | None = Field(
        default=None, exclude_if=lambda choice: choice is None, description='What cache="auto" came to.'
    )

    @property
    def total(self) -> int:
        """How many calls the complete plan makes, of which this may be a part."""
        return self.sharing * self.broadcast_over

    @property
    def own_sources(self) -> int:
        """How many of the sources the prompts are about; the others were attached to the turns before."""
        return len(self.sources) - len(self.said.attached)

    def sources_of(self, call: PlannedCall) -> Sequence[int]:
        """Return the sources that are sent with a call, those of earlier turns included."""
        if call.sources is not None:
            return call.sources
        return range(len(self.sources)) if call.source is None else [call.source]

    @property
    def facts(self) -> RunFacts:
        """The facts that a list of the answers needs beside them."""
        is_each = any(call.source is not None for call in self.calls)
        names = [source.identifier for source in self.sources] if is_each else None
        return RunFacts(self.options.response_json_schema(), names)

    @property
    def title(self) -> str:
        """A title for people: the prompt of a single call, or the numbers of several."""
        if not self.calls:
            return "no calls"
        first, last = self.calls[0], self.calls[-1]
        if first is not last:
            return f"{len(self.calls)} calls, {first.index + 1} to {last.index + 1}"
        about = "" if first.source is None else f"{self.sources[first.source].identifier} · "
        said = " ".join(f"{first.index + 1}. {about}{first.prompt or '(sources only)'}".split())
        return said if len(said) <= _LONGEST_TITLE else f"{said[: _LONGEST_TITLE - 1]}…"

    def about(self, source: int) -> Plan:
        """The calls about one source, as a plan of their own."""
        calls = [call for call in self.calls if call.source == source]
        only = {"sources": [self.sources[source]], "contents": [self.contents[source]]}
        return self.model_copy(update={**only, "calls": calls, "cache_request": self.find_cache_request(source)})

    def find_cache_request(self, source: int | None) -> CacheRequest | None:
        """Return how to make the cache for calls about that source (None: about all of them), if they have one."""
        request = self.cache_request
        if request is None or source is None or self.options.cache is not None or self.own_sources <= 1:
            return request
        if self.cache_choice is None or source not in self.cache_choice.sources:
            return None
        return request.model_copy(update={"sources": [self.sources[source]]})

    def change_caching(
        self, choice: CacheChoice, *, request: CacheRequest | None = None, options: Options | None = None
    ) -> Plan:
        """Return the plan with another way of caching. The identities of its calls stay."""
        changed = {"cache_choice": choice, "cache_request": request, "options": options or self.options}
        return self.model_construct(**{**dict(self), **changed})

    def parts(self, calls_per_part: int | None = None, *, without: Container[int] = ()) -> list[Plan]:
        """The calls, but for those without which it is to be, in parts: one each while they are few, else ten."""
        calls = [call for call in self.calls if call.index not in without]
        size = calls_per_part or (1 if len(calls) <= _SINGLE else -(-len(calls) // _CHUNKS))
        # Everything was looked at when this plan was made: looking at it again for each part would take a second.
        return [
            self.model_construct(**{**dict(self), "calls": calls[start : start + size]})
            for start in range(0, len(calls), size)
        ]


def make_plan(
    request: Request,
    contents: Sequence[Content | None] | None = None,
    *,
    cache_request: CacheRequest | None = None,
    numbers: Sequence[int] | None = None,
) -> Plan:
    """One call per prompt, in prompt order; for each source in turn, where each is asked about by itself.

    `contents` is what `read_sources` found: a file is what is in it, not what it is called. A `cache_request` changes
    how the calls are made, and none of their identities. `numbers` are the indexes of the calls, if not counted from 0.
    """
    sources = request.every_source
    contents = list(contents) if contents is not None else [None] * len(sources)
    named = [
        source_identity(source, request.target.provider, (content.sha256, content.mime_type) if content else None)
        for source, content in zip(sources, contents, strict=True)
    ]
    own, attached = named[: len(request.sources)], named[len(request.sources) :]
    said = conversation_identity(request.said.turns, attached, request.said.response_id)
    if cache_request is None:  # else it is made again
        _check_cache_alive(request.options)
    calls: list[PlannedCall] = []
    seen: Counter[tuple[str, str | None]] = Counter()
    for source in range(len(request.sources)) if request.each_source else (None,):
        about = own if source is None else [own[source]]
        shared = request_identity(request.target, request.options, about, said)
        for index, prompt in enumerate(request.prompts):
            its = None if request.sources_by_prompt is None else request.sources_by_prompt[index]
            if its is not None:
                shared = request_identity(request.target, request.options, [own[each] for each in its], said)
            occurrence = seen[shared, prompt]
            seen[shared, prompt] += 1
            calls.append(
                PlannedCall(
                    index=len(calls) if numbers is None else numbers[len(calls)],
                    prompt=prompt,
                    source=source,
                    sources=its,
                    identity=call_identity(shared, prompt, occurrence),
                    request=shared,
                    occurrence=occurrence,
                )
            )
    return Plan(
        target=request.target,
        options=request.options,
        sources=sources,
        contents=contents,
        calls=calls,
        sharing=len(request.prompts),
        broadcast_over=len(request.sources) if request.each_source else 1,
        said=request.said,
        cache_request=cache_request,
    )


def _check_cache_alive(options: Options) -> None:
    handle = options.cache_handle
    if handle is not None and handle.expires_at <= time.time():
        ago = time.time() - handle.expires_at
        raise ExpiredCacheError(
            f"The cache handle {handle.name} expired {ago:.0f} seconds ago.",
            hint="Make another with create_cache, with a longer ttl_seconds.",
            retryable=False,
            provider=handle.provider,
            phase="cache",
        )
