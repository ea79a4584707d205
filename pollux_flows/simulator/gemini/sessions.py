"""Resumable uploads to Gemini that are in progress."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from pollux_flows.simulator.spool import Mark, Spool

# A killed process never ends its upload: beyond this many, the oldest are removed.
KEEP = 1_000


@dataclass(eq=False)
class Session:
    """One resumable upload. Its id is a secret: requests with its address need no API key."""

    id: str
    account: str
    version: str
    #: `files/…`, as the client chose it; None: the service chooses.
    name: str | None
    display_name: str
    mime_type: str
    #: The announced number of bytes.
    size: int
    fails: bool
    spool: Spool = field(default_factory=Spool)
    #: The acknowledged part. A chunk that met a fault is not part of the file.
    arrived: Mark = field(init=False)

    def __post_init__(self) -> None:
        self.arrived = self.spool.mark()


class UploadSessions:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def begin(self, session: Session) -> None:
        with self._lock:
            self._sessions[session.id] = session
            forgotten = self._sessions.popitem(last=False)[1] if len(self._sessions) > KEEP else None
        if forgotten is not None:
            forgotten.spool.close()

    def get(self, session_id: str) -> Session | None:
        with self._lock:
            return self._sessions.get(session_id)

    def end(self, session: Session) -> None:
        with self._lock:
            self._sessions.pop(session.id, None)

    def clear(self) -> None:
        with self._lock:
            for session in self._sessions.values():
                session.spool.close()
            self._sessions.clear()
