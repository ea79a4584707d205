"""Kinds: tells the kind of a record from its key, and whether it may be removed."""

from __future__ import annotations

import re
from typing import Final

_RUN: Final = re.compile(r"(?:run|slot|taker|index|adopted|turn|tool|budget)/([0-9a-f]{64})(?:/(.+))?", re.DOTALL)
_KINDS: Final = {
    "answer": "pointer",
    "slot": "slot",
    "adopted": "slot",
    "taker": "taker",
    "index": "index",
    "making": "claim",
    "asking": "claim",
    "conversing": "claim",
    "conversation": "conversation",
    "turn": "turn",
    "tool": "turn",
    "hash": "hash",
    "upload": "upload",
    "owner": "owner",
    "salt": "account",
    "store": "store",
    "job": "job",
    "asked": "job",
    "cache": "cache",
    "budget": "budget",
    "shared-budget": "shared budget",
}
# Without most of the other kinds, files at a provider would never be deleted, and batches never collected. A
# conversation has no copy elsewhere.
_REMOVABLE: Final = {"answer", "pointer", "run", "slot", "taker", "index", "claim", "hash", "turn", "budget"}


def kind_of(key: str) -> str:
    """Return the kind of the record with this key; "unknown" for a key of another version."""
    if key.startswith("run/") and (match := _RUN.fullmatch(key)):
        return "answer" if match[2] else "run"
    return _KINDS.get(key.partition("/")[0], "unknown")


def run_of(key: str) -> str | None:
    """Return the digest of the name of the run that a record belongs to; None if it belongs to no run."""
    match = _RUN.fullmatch(key)
    return match[1] if match else None


def is_removable(key: str) -> bool:
    """Return whether a record with this key may be removed. At worst, an answer is then paid for again."""
    return kind_of(key) in _REMOVABLE
