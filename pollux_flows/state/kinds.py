"""Kinds of records, recognised by their keys, and which of them may be removed."""

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
# Without most other kinds, what is at a provider would never be deleted or collected. A conversation is for people.
_REMOVABLE: Final = {"answer", "pointer", "run", "slot", "taker", "index", "claim", "hash", "turn", "budget"}


def kind_of(key: str) -> str:
    """Return the kind of the record with this key; "unknown" for one of another version."""
    if key.startswith("run/") and (match := _RUN.fullmatch(key)):
        return "answer" if match[2] else "run"
    return _KINDS.get(key.partition("/")[0], "unknown")


def run_of(key: str) -> str | None:
    """Return the run that a record belongs to, as the digest of its name; None for records of no run."""
    match = _RUN.fullmatch(key)
    return match[1] if match else None


def is_removable(key: str) -> bool:
    """Return whether a record with this key may be removed; at worst, an answer is then paid for again."""
    return kind_of(key) in _REMOVABLE
