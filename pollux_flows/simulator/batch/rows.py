"""The requests of a batch, in a bounded amount of memory, however many they are."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from pollux_flows.simulator.spool import Spool


class Rows:
    """Lines in a spool, each of which can be found by its number."""

    def __init__(self) -> None:
        self.spool = Spool()
        self._starts = array("Q", [0])

    def add(self, line: bytes) -> None:
        self.spool.write(line)
        self._starts.append(self.spool.size)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, place: int) -> bytes:
        start, end = self._starts[place : place + 2]
        return self.spool.read(start, end - start)

    def __iter__(self) -> Iterator[bytes]:
        return (self[place] for place in range(len(self)))
