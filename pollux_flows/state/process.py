"""Process: identifies this process, so that others on the same machine can check whether it is alive."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def this_process() -> list[str]:
    """Return the machine, the process id and the start time of this process, as process ids are reused."""
    pid = os.getpid()  # not cached: a fork has another
    return [_machine(), str(pid), _start_time(pid) or ""]


def is_dead(process: list[str]) -> bool:
    """Return whether that process has certainly ended; always False for processes on other machines."""
    machine, pid, started = process
    # Outside Linux there is no start time to compare, and a check by process id could end the process (Windows).
    return bool(started) and machine == _machine() and _start_time(int(pid)) not in {started, None}


@cache
def _machine() -> str:
    """Return the name of this boot of the machine and of the container, if any, within which process ids are unique."""
    namespace = ""
    with suppress(OSError):
        namespace = str((_PROC / "self/ns/pid").readlink())
    return f"{platform.node()} {boot_id()} {namespace}"


@cache
def boot_id() -> str:
    """Return a name of this boot of the machine; empty if the system has none."""
    with suppress(OSError):
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return ""


def _start_time(pid: int) -> str | None:
    """Return the start time in ticks since boot; empty if there is no such process, None if it is unknown."""
    try:
        status = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "" if (_PROC / "self").exists() else None
    except OSError:
        return None
    # After the name in brackets, which may contain any character, the state is field 1 and the start time field 20.
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
