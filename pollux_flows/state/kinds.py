"""Kinds: what a record is about, by its name, and which may go."""

from __future__ import annotations

import re
from typing import Final, Literal

Kind = Literal[
    "answer",
    "pointer",
    "run",
    "slot",
    "taker",
    "index",
    "claim",
    "hash",
    "upload",
    "owner",
    "account",
    "job",
    "cache",
    "store",
    "unknown",
]

_RUN: Final = re.compile(r"(?:run|slot|taker|index|adopted)/([0-9a-f]{64})(?:/(.+))?", re.DOTALL)
_KINDS: Final[dict[str, Kind]] = {
    "answer": "pointer",
    "slot": "slot",
    "adopted": "slot",
    "taker": "taker",
    "index": "index",
    "making": "claim",
    "asking": "claim",
    "hash": "hash",
    "upload": "upload",
    "owner": "owner",
    "salt": "account",
    "store": "store",
    "job": "job",
    "asked": "job",
    "cache": "cache",
}
# The others say what is still at a provider, and whose it is: without them, nobody would delete or collect it.
_MAY_GO: Final[set[Kind]] = {"answer", "pointer", "run", "slot", "taker", "index", "claim", "hash"}


def kind_of(key: str) -> Kind:
    """What a record of this name is about."""
    if key.startswith("run/") and (match := _RUN.fullmatch(key)):
        return "answer" if match[2] else "run"
    return _KINDS.get(key.partition("/")[0], "unknown")


def run_of(key: str) -> str | None:
    """The run that a record belongs to, as a hash of its name."""
    match = _RUN.fullmatch(key)
    return match[1] if match else None


def may_go(key: str) -> bool:
    """Whether such a record can be done without, be it at a price."""
    return kind_of(key) in _MAY_GO
