"""The log of requests to the simulator, in order of arrival."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Headers that may hold a key, which is never logged.
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "x-goog-api-key", "api-key", "cookie"})


@dataclass
class Logged:
    """One request, and its outcome."""

    provider: str
    operation: str
    method: str
    path: str
    headers: dict[str, str]
    #: The JSON body; for an upload, the form with the name, type, size and hash of the file instead of its bytes.
    body: Any = None
    #: The status of the response; None before it is sent, and always for a request that is dropped or hangs.
    status: int | None = None
    received_at: float = field(default_factory=time.monotonic)
    answered_at: float | None = None
    #: The kind of the fault that applied to the request, if any.
    fault: str | None = None
    #: The id of the file or batch that the request stored, as in `Simulator.files` and `Simulator.batches`.
    stored: str | None = None

    def record_response(self, status: int) -> None:
        self.status = status
        self.answered_at = time.monotonic()


class RequestLog:
    """The last `keep` requests; all of them when `keep` is None."""

    def __init__(self, keep: int | None = None) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Logged] = deque(maxlen=keep)

    def add(self, provider: str, operation: str, method: str, path: str, headers: Mapping[str, str]) -> Logged:
        logged = {name: value for name, value in headers.items() if name not in SECRET_HEADERS}
        entry = Logged(provider, operation, method, path, logged)
        with self._lock:
            self._entries.append(entry)
        return entry

    def entries(self) -> list[Logged]:
        with self._lock:
            return list(self._entries)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
