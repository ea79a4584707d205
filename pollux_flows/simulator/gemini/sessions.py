"""Resumable uploads to Gemini that are in progress."""

from __future__ import annotations

from dataclasses import dataclass, field

from pollux_flows.simulator.spool import Mark, Spool

#: A killed process never ends its upload: beyond this many, the oldest are removed.
MAX_SESSIONS = 1_000


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
    acknowledged: Mark = field(init=False)

    def __post_init__(self) -> None:
        self.acknowledged = self.spool.mark()
