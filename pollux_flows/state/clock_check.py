"""Clock check: decides when expired records may be removed, although the clock of a process may be wrong.

By a clock that is 100 days ahead, every answer has expired. So one look at the clock is not enough to remove a record:

- A look reads the wall clock, and the monotonic clock, which counts from the start of the machine and is never set.
- Two looks at least an hour apart confirm the wall clock. Records that had expired at the first may then be removed.
- If the wall clock has moved between two looks by a week more, or less, than the monotonic clock, it was set, or two
  processes disagree about the time. The wait then starts over, and a warning is logged.

The last look is saved in a file for all processes on the machine, as most of them end within the hour. Machines that
share the disk, and so the file, start over after a look of another machine. A process that runs for an hour needs no
file.

An expired record can be read until it is removed: a reader whose clock is wrong loses no answer. Pruning by command
does not wait. A Redis removes records by its own clock, not by that of a process.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

from pollux_flows.state.leases import Clock
from pollux_flows.state.process import boot_id

FILE: Final = "clock.json"
APART_S: Final = 3600.0
LARGEST_JUMP_S: Final = 7 * 86_400.0
_DAY_S: Final = 86_400.0
_log: Final = logging.getLogger("pollux_flows")


class _Look(NamedTuple):
    """One reading of both clocks, and the cutoff that earlier looks have confirmed."""

    wall: float
    monotonic: float
    cutoff: float | None = None


@cache
def machine_expiry(file: Path) -> Expiry:
    """Return the Expiry that saves its looks in `file`; there is one for each file in this process."""
    return Expiry(file)


class Expiry:
    """Decides which expired records may be removed. Processes share their looks through `file`, if there is one."""

    def __init__(
        self, file: Path | None = None, *, clock: Clock = time.time, monotonic: Clock = time.monotonic
    ) -> None:
        self._file, self._clock, self._monotonic = file, clock, monotonic
        self._last: _Look | None = None
        self._warned = False

    def cutoff(self) -> float | None:
        """Look at the clocks; return the time before which a record must have expired to be removed, or None."""
        look = _Look(wall=self._clock(), monotonic=self._monotonic())
        last = self._load()
        if last is None or look.monotonic < last.monotonic:
            self._save(look)
            return None
        passed_s = look.monotonic - last.monotonic
        jump_s = look.wall - last.wall - passed_s
        if abs(jump_s) > LARGEST_JUMP_S:
            self._warn(jump_s)
            self._save(look)
            return None
        if passed_s >= APART_S:
            last = look._replace(cutoff=min(look.wall, last.wall))
            self._save(last)
        return last.cutoff

    def has_passed(self, since: float | None, seconds: float) -> bool:
        """Return whether so many seconds have passed since that time, by a confirmed clock."""
        cutoff = self.cutoff()
        return since is not None and cutoff is not None and since < cutoff - seconds

    def _warn(self, jump_s: float) -> None:
        if not self._warned:
            self._warned = True
            way = "ahead" if jump_s > 0 else "back"
            _log.warning(
                "The clock has jumped %.0f days %s. No expired record is removed until it has run on for an hour. "
                "Check that this machine has the right time.",
                abs(jump_s) / _DAY_S,
                way,
            )

    def _load(self) -> _Look | None:
        if self._file is not None and boot_id():
            with suppress(OSError, ValueError):
                match json.loads(self._file.read_bytes()):
                    case {
                        "boot": boot, "wall": float() as wall, "monotonic": float() as monotonic,
                        "cutoff": float() | None as cutoff,
                    } if boot == boot_id():  # fmt: skip
                        return _Look(wall, monotonic, cutoff)
        return self._last

    def _save(self, look: _Look) -> None:
        self._last = look
        if self._file is None or not boot_id():
            return
        part = self._file.with_name(f"{self._file.name}.{uuid4().hex}")
        with suppress(OSError):  # then each process on this machine waits by itself
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                part.write_text(json.dumps({"boot": boot_id(), **look._asdict()}))
                part.replace(self._file)
            finally:
                part.unlink(missing_ok=True)
