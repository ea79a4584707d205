"""Spill: answers that the store does not take, in a file on this machine until it does.

They were paid for, and a run that fails has no result to keep them in. Whatever run begins here next hands them to the
store, before it looks for answers.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from pollux_flows.plain import canonical
from pollux_flows.state.bounds import kept_s
from pollux_flows.state.home import home
from pollux_flows.state.kinds import kind_of
from pollux_flows.state.store import Json, Store

_FOLDER: Final = "spill"
_SUFFIX: Final = ".jsonl"
_writing: Final = threading.Lock()
# One file a process: no other appends to it.
_name: Final = uuid4().hex


def spill(records: dict[str, Json]) -> Path | None:
    """Write these records to a file that survives this process. None where no disk takes it."""
    line = canonical({"records": records}) + "\n"
    for folder in _folders():
        with suppress(OSError), _writing:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / f"{_name}-{os.getpid()}{_SUFFIX}"
            with open(path, "a", opener=_owner_only) as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            return path
    return None


async def take_up(store: Store) -> int:
    """Hand what was spilled on this machine to the store, and return how many answers that were."""
    count = 0
    for path in [path for folder in _folders() if folder.is_dir() for path in sorted(folder.glob(f"*{_SUFFIX}"))]:
        records = _records_in(path)
        there = await store.get_many(records)
        # An answer that came later is not replaced by one that was spilled before it.
        missing = {key: record for key, record in records.items() if key not in there}
        if missing:
            await store.put_many(missing, kept_s())
        path.unlink(missing_ok=True)
        count += sum(kind_of(key) == "answer" for key in missing)
    return count


def _records_in(path: Path) -> dict[str, Json]:
    records: dict[str, Json] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            records |= json.loads(line)["records"]
        except (ValueError, KeyError, TypeError):
            warnings.warn(
                f"Line {number} of {path} is damaged: the answers in it are lost, and will be asked for again.",
                RuntimeWarning,
                stacklevel=2,
            )
    return records


def _folders() -> list[Path]:
    """In order of preference. The disk of the state may be the one that is full."""
    elsewhere = Path(tempfile.gettempdir()) / f"pollux-{_FOLDER}-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    return [home() / _FOLDER, elsewhere]


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
