"""Faults and plans that wait for the requests they apply to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass
class _Entry(Generic[Item]):
    item: Item
    left: int | None


class PendingQueue(Generic[Item]):
    """Items that each apply to a number of requests, oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[_Entry[Item]] = []

    def add(self, item: Item, times: int | None) -> None:
        """Queue an item for its next `times` uses; None: for all from now on."""
        if times is not None and times < 1:
            raise ValueError("times is at least 1, or None for ever")
        with self._lock:
            self._entries.append(_Entry(item, times))

    def take(self, applies: Callable[[Item], bool]) -> Item | None:
        """Return the first item that applies, and count it as used once."""
        with self._lock:
            for entry in self._entries:
                if applies(entry.item):
                    if entry.left is not None:
                        entry.left -= 1
                        if entry.left == 0:
                            self._entries.remove(entry)
                    return entry.item
        return None

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
