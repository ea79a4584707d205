"""Process: which one this is, in words that another process on the same machine can check."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def this_process() -> list[str]:
    """Where it runs, its number there, and when it began: numbers are given out again."""
    number = os.getpid()  # not kept: a fork has another
    return [_machine(), str(number), _began(number) or ""]


def is_dead(process: list[str]) -> bool:
    """Whether that process is known to be gone. Of another machine's, nobody here knows."""
    machine, number, began = process
    # Elsewhere than under Linux a process has no name that is given once only, and asking may end it (Windows).
    return bool(began) and machine == _machine() and _began(int(number)) not in {began, None}


@cache
def _machine() -> str:
    """The machine since it was started, and the part of it, a container perhaps, that shares process numbers."""
    namespace = ""
    with suppress(OSError):
        namespace = str((_PROC / "self/ns/pid").readlink())
    return f"{platform.node()} {boot_id()} {namespace}"


@cache
def boot_id() -> str:
    """A name of the machine since it was started; empty where the system gives none."""
    with suppress(OSError):
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return ""


def _began(number: int) -> str | None:
    """In ticks since the machine was started; empty where there is no such process, None where nobody can tell."""
    try:
        status = (_PROC / str(number) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "" if (_PROC / "self").exists() else None
    except OSError:
        return None
    # After the name, which may hold anything, and in brackets: the state first, and the start as the 20th.
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
