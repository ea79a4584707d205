"""The responses that OpenAI stores, for `previous_response_id`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Beyond this many, the oldest responses are removed.
MAX_RESPONSES = 10_000


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """The parts of a stored response that a next turn needs."""

    context_tokens: int
    #: Calls that wait for their output: call id to tool name.
    open_calls: Mapping[str, str]
    #: Every call of the conversation so far, answered or not.
    all_calls: frozenset[str] = frozenset()
