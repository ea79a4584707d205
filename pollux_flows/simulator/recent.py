"""A bounded store of recent items by id, for a simulator that lives as long as its worker."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RecentItems(Generic[Item]):
    """The last `limit` items; `close` is called with those that are removed because there are more, or by `clear`."""

    def __init__(self, limit: int, close: Callable[[Item], None] = lambda _: None) -> None:
        self._limit, self._close = limit, close
        self._lock = threading.Lock()
        self._items: OrderedDict[str, Item] = OrderedDict()

    def add(self, item_id: str, item: Item) -> None:
        with self._lock:
            self._items[item_id] = item
            if len(self._items) > self._limit:
                self._close(self._items.popitem(last=False)[1])

    def get(self, item_id: str) -> Item | None:
        with self._lock:
            return self._items.get(item_id)

    def remove(self, item_id: str) -> None:
        with self._lock:
            self._items.pop(item_id, None)

    def clear(self) -> None:
        with self._lock:
            for item in self._items.values():
                self._close(item)
            self._items.clear()
