"""Warm batches: a batch of one prompt is submitted first and writes the cache that the others read.

The rows of one Anthropic batch do not read the cache that others of the same batch write, so cache breakpoints in a
batch cost more than none. With `implicit_caching="warm"` the first prompt is a batch of its own, which caches the
shared sources for an hour; the rest is submitted when it has ended: 2 + 0.1 (N - 1) documents instead of N, at batch
prices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from pollux_flows import claude
from pollux_flows.deferred.job import Job
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.prefix import cached_nothing
from pollux_flows.result import Outcome

# From here on, 2 + 0.1 (N - 1) is less than N.
_LEAST_PROMPTS: Final = 3
# The smallest prefix that an unknown model may cache.
_LEAST_TOKENS: Final = 512
# A token nearly always has at least this many characters.
_CHARS_PER_TOKEN: Final = 2
# An hour, less the time that the provider needs to begin with the rest.
_READABLE_S: Final = 45 * 60.0


def goes_first(plan: Plan) -> bool:
    """Return True if the first prompt is to be a batch of its own."""
    if plan.options.implicit_caching != "warm" or len(plan.calls) < _LEAST_PROMPTS:
        return False
    return _most_tokens(plan) >= (claude.cache_minimum(plan.target.model) or _LEAST_TOKENS)


def caches_part(job: Job, number: int, now: float) -> bool:
    """Return True if the rows of this part use prompt caching: the first part writes, those that follow read."""
    if not any(part.follows for part in job.parts):
        return False
    first = job.parts[0]
    return number == 0 or (first.succeeded > 0 and now - (first.ended_at or 0.0) < _READABLE_S)


def warm_warnings(job: Job, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield warnings about prompt caching that was requested and had no effect."""
    if job.options.implicit_caching != "warm":
        return
    answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    if not any(part.follows for part in job.parts):
        yield (
            f"implicit_caching='warm' had no effect: it needs {_LEAST_PROMPTS} prompts or more, about "
            "sources that are long enough for the model to cache."
        )
    elif cached_nothing(outcomes):
        yield f"Nothing was cached (implicit_caching): what the prompts share is too short for {job.target.model}."
    elif answers and not any(answer.usage.get("cached_tokens") for answer in answers):
        yield (
            "No prompt read the cache that the first one wrote: the first failed, or the rest was submitted later "
            f"than {_READABLE_S / 60:.0f} minutes after it."
        )


def _most_tokens(plan: Plan) -> float:
    """Return the most tokens that the prompts can share; infinite with a document or an image."""
    chars: float = len(plan.options.system_instruction or "")
    for source, content in zip(plan.sources, plan.contents, strict=True):
        is_text = (content.mime_type if content else source.mime_type).startswith(("text/", "application/json"))
        size = content.size_bytes if content else len(source.text or "")
        chars += size if is_text else math.inf
    return chars / _CHARS_PER_TOKEN
