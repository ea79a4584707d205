"""What was asked of the simulator, in order of arrival."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: A key is never kept, whatever header a client chose to put it in.
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "x-goog-api-key", "api-key", "cookie"})


@dataclass
class Logged:
    """One request, and what became of it."""

    provider: str
    operation: str
    method: str
    path: str
    headers: dict[str, str]
    #: Its JSON; of an upload the form without the bytes: name, type, size and hash stand for them.
    body: Any = None
    #: The status of the answer; None while unanswered, and for ever when it was dropped or hangs.
    status: int | None = None
    received_at: float = field(default_factory=time.monotonic)
    answered_at: float | None = None
    #: The kind of fault that it met, if any.
    fault: str | None = None
    #: The id of the file or batch that it stored, as in `Simulator.files` and `Simulator.batches`.
    stored: str | None = None

    def answered(self, status: int) -> None:
        self.status = status
        self.answered_at = time.monotonic()


class RequestLog:
    """The last `keep` requests; all of them when `keep` is None."""

    def __init__(self, keep: int | None = None) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Logged] = deque(maxlen=keep)

    def add(self, provider: str, operation: str, method: str, path: str, headers: Mapping[str, str]) -> Logged:
        kept = {name: value for name, value in headers.items() if name not in SECRET_HEADERS}
        entry = Logged(provider, operation, method, path, kept)
        with self._lock:
            self._entries.append(entry)
        return entry

    def entries(self) -> list[Logged]:
        with self._lock:
            return list(self._entries)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
