"""The requests of a batch, in bounded memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import cached_property

from typing_extensions import override

from pollux_flows.simulator.spool import Spool


class Rows:
    """Lines in a spool, with random access by number."""

    def __init__(self) -> None:
        self.spool = Spool()
        self._starts = array("Q", [0])

    def add(self, line: bytes) -> None:
        self.spool.write(line + b"\n")
        self._starts.append(self.spool.size)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, place: int) -> bytes:
        start, end = self._starts[place : place + 2]
        return self.spool.read(start, end - start - 1)

    def __iter__(self) -> Iterator[bytes]:
        return (self[place] for place in range(len(self)))


class SavedRows(Rows):
    """Rows that another process has written. They are indexed at first access."""

    def __init__(self, spool: Spool, count: int) -> None:
        self.spool, self._count = spool, count

    @override
    def __len__(self) -> int:
        return self._count

    @cached_property
    def _starts(self) -> array[int]:  # type: ignore[override]
        starts = array("Q", [0])
        for line in self.spool.lines():
            starts.append(starts[-1] + len(line) + 1)
        return starts
