"""Keeps garbage collections short while a run is in progress.

Prefect loads 370,000 objects, and a full collection that traverses them stops all calls for a quarter of a second. So
the objects that exist when a run starts are frozen until it ends. Runs overlap, in threads or as sub-flows: the first
one freezes, the last one unfreezes.

The heap of a program that called gc.freeze() itself stays frozen. Python counts frozen objects one by one (up to
0.1 s), so they are counted once: a process that was found frozen counts as frozen from then on.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()
_runs = 0
_frozen_by_program = False


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Exclude the existing objects from garbage collections until all runs of this process have ended."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _runs, _frozen_by_program  # noqa: PLW0603 (the heap is one for the process)
    with _lock:
        if not _runs and not _frozen_by_program:
            if gc.get_freeze_count():
                _frozen_by_program = True
            else:
                gc.freeze()
        _runs += 1


def _leave() -> None:
    global _runs  # noqa: PLW0603 (the heap is one for the process)
    with _lock:
        _runs -= 1
        if not _runs and not _frozen_by_program:
            gc.unfreeze()
