"""The stored responses of OpenAI, for `previous_response_id`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

# A simulator in a worker lives as long as the worker: beyond this many, the oldest responses are removed.
KEEP = 10_000


@dataclass(frozen=True, slots=True)
class Remembered:
    """The parts of a stored response that a next turn needs."""

    context_tokens: int
    #: Calls that wait for their output: call id to tool name.
    open_calls: Mapping[str, str]
    #: Every call of the conversation so far, answered or not.
    all_calls: frozenset[str] = frozenset()


class ResponseMemory:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._responses: OrderedDict[str, Remembered] = OrderedDict()

    def store(self, response_id: str, response: Remembered) -> None:
        with self._lock:
            self._responses[response_id] = response
            if len(self._responses) > KEEP:
                self._responses.popitem(last=False)

    def get(self, response_id: str) -> Remembered | None:
        with self._lock:
            return self._responses.get(response_id)

    def clear(self) -> None:
        with self._lock:
            self._responses.clear()
