"""Plan: the calls of a request, each with its identity. Equal requests have equal plans, on any machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Sequence
from typing import Final

from pydantic import AliasChoices, ConfigDict, Field

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

# Up to this many calls have a part each, to be inspected one by one; more calls are divided into a few parts.
_SINGLE: Final = 32
_CHUNKS: Final = 10
_LONGEST_TITLE: Final = 80


class PlannedCall(Document):
    """One call: a prompt, and the identity that its answer is found by."""

    index: int
    prompt: str | None
    source: int | None = None  # the one source it is about; None for all of them
    sources: list[int] | None = Field(
        default=None,
        exclude_if=lambda sources: sources is None,
        description="The sources it is about, where each call has its own; None elsewhere.",
    )
    identity: str
    request: str = Field(default="", description="The identity of its request, which it shares with other calls.")
    occurrence: int = Field(default=0, description="How many identical calls the plan has before this one.")


class Plan(Document):
    """All calls of a request, and the options and sources that they share."""

    model_config = ConfigDict(serialize_by_alias=True)

    target: Target
    options: Options
    sources: list[Source]
    contents: list[Content | None] = Field(description="The type, size and hash of each source that is a file.")
    calls: list[PlannedCall]
    sharing: int = Field(description="How many calls the complete plan makes about the same sources.")
    broadcast_over: int = Field(
        default=1,
        exclude_if=lambda sources: sources == 1,
        description="The number of sources that the complete plan asks about separately.",
    )
    # Stored as `said`, and left out if empty, as older versions did not have this field.
    history: Conversation = Field(
        default=Conversation(),
        validation_alias=AliasChoices("said", "history"),
        serialization_alias="said",
        exclude_if=lambda history: history.is_empty,
        description="The prior turns. The sources that were attached to them are the last of `sources`.",
    )

    cache_request: CacheRequest | None = Field(
        default=None,
        exclude_if=lambda request: request is None,
        description="How to make the cache of these calls: that of options.cache or, without one, one that holds the "
        "plan's own sources, system instruction and tools.",
    )
    cache_choice: CacheChoice | None = Field(
        default=None, exclude_if=lambda choice: choice is None, description='The decision of cache="auto".'
    )

    @property
    def total(self) -> int:
        """The number of calls of the complete plan, of which this may be a part."""
        return self.sharing * self.broadcast_over

    @property
    def own_sources(self) -> int:
        """The number of sources that the prompts are about; the others were attached to prior turns."""
        return len(self.sources) - len(self.history.attached)

    def sources_of(self, call: PlannedCall) -> Sequence[int]:
        """Return the indexes of the sources that are sent with a call, including those of prior turns."""
        if call.sources is not None:
            return call.sources
        return range(len(self.sources)) if call.source is None else [call.source]

    @property
    def facts(self) -> RunFacts:
        """The facts that are needed, besides the answers, to list them later."""
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
        title = " ".join(f"{first.index + 1}. {about}{first.prompt or '(sources only)'}".split())
        return title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…"

    def about(self, source: int) -> Plan:
        """Return a plan of the calls about one source."""
        calls = [call for call in self.calls if call.source == source]
        only = {"sources": [self.sources[source]], "contents": [self.contents[source]]}
        return self.model_copy(update={**only, "calls": calls, "cache_request": self.find_cache_request(source)})

    def find_cache_request(self, source: int | None) -> CacheRequest | None:
        """Return the request for the cache of the calls about a source (None: about all), if they have a cache."""
        request = self.cache_request
        if request is None or source is None or self.options.cache is not None or self.own_sources <= 1:
            return request
        if self.cache_choice is None or source not in self.cache_choice.sources:
            return None
        return request.model_copy(update={"sources": [self.sources[source]]})

    def change_caching(
        self, choice: CacheChoice, *, request: CacheRequest | None = None, options: Options | None = None
    ) -> Plan:
        """Return the plan with different caching. The identities of its calls do not change."""
        changed = {"cache_choice": choice, "cache_request": request, "options": options or self.options}
        return self.model_construct(**{**dict(self), **changed})

    def parts(self, calls_per_part: int | None = None, *, without: Container[int] = ()) -> list[Plan]:
        """Divide the calls, except those of the indexes `without`, into parts: one per call, or ten for many calls."""
        calls = [call for call in self.calls if call.index not in without]
        size = calls_per_part or (1 if len(calls) <= _SINGLE else -(-len(calls) // _CHUNKS))
        # Everything was validated when this plan was made: validating it for each part would take a second.
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
    """Plan one call per prompt, in the order of the prompts, and with `each_source` for each source in turn.

    `contents` comes from `read_sources`, as a file is identified by its content and not by its name. A `cache_request`
    changes how the calls are made, but not their identities. `numbers` are the indexes of the calls; by default they
    are counted from 0.
    """
    sources = request.every_source
    contents = list(contents) if contents is not None else [None] * len(sources)
    identities = [
        source_identity(source, request.target.provider, (content.sha256, content.mime_type) if content else None)
        for source, content in zip(sources, contents, strict=True)
    ]
    own, attached = identities[: len(request.sources)], identities[len(request.sources) :]
    history = conversation_identity(request.history.turns, attached, request.history.response_id)
    if cache_request is None:  # otherwise it is created again
        _check_cache_alive(request.options)
    calls: list[PlannedCall] = []
    seen: Counter[tuple[str, str | None]] = Counter()
    for source in range(len(request.sources)) if request.each_source else (None,):
        about = own if source is None else [own[source]]
        shared = request_identity(request.target, request.options, about, history)
        for index, prompt in enumerate(request.prompts):
            its = None if request.sources_by_prompt is None else request.sources_by_prompt[index]
            if its is not None:
                shared = request_identity(request.target, request.options, [own[each] for each in its], history)
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
        history=request.history,
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
