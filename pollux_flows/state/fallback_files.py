"""Fallback files: save answers to files on this machine while the store does not accept them.

These answers were paid for, and a failed run has no result that contains them. The next run that begins on this
machine copies them to the store before it looks for saved answers.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from pollux_flows.plain import canonical
from pollux_flows.state.home import home
from pollux_flows.state.kinds import kind_of
from pollux_flows.state.retention import retention_s
from pollux_flows.state.store import Json, Store

_FOLDER: Final = "spill"


def write_fallback_file(records: dict[str, Json]) -> Path | None:
    """Write these records to a file that survives this process and return its path; None if no disk accepts it."""
    for folder in _folders():
        path = folder / f"{uuid4().hex}.json"
        part = path.with_suffix(".part")  # renamed once it is complete, so that no process reads a partial file
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(part, "x", opener=_open_for_owner) as file:
                file.write(canonical(records))
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
            return path
    return None


async def save_fallback_files(store: Store) -> int:
    """Save the records of all fallback files on this machine in the store; return the number of answers."""
    count = 0
    for path in [path for folder in _folders() if folder.is_dir() for path in folder.glob("*.json")]:
        try:
            records: dict[str, Json] = json.loads(path.read_text())
        except FileNotFoundError:  # another process has saved it
            continue
        except ValueError:
            warnings.warn(f"{path} is damaged. Its answer will be requested again.", RuntimeWarning, stacklevel=2)
            path.rename(path.with_suffix(".damaged"))
            continue
        stored = await store.get_many(records)
        # A later answer is not replaced.
        missing = {key: record for key, record in records.items() if key not in stored}
        if missing:
            await store.put_many(missing, retention_s())
        path.unlink(missing_ok=True)
        count += sum(kind_of(key) == "answer" for key in missing)
    return count


def _folders() -> list[Path]:
    """Return the folders for fallback files, best first. The second is often on another disk than the state."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return [home() / _FOLDER, Path(tempfile.gettempdir()) / f"pollux-{_FOLDER}-{user}"]


def _open_for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
