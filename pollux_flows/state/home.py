"""Home: the folder on this machine where the embedded state lives."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from pollux_flows.errors import ConfigurationError

VARIABLE: Final = "POLLUX_HOME"
_ELSEWHERE: Final = f"Set {VARIABLE} to a folder that this user may write to."


def home() -> Path:
    """`POLLUX_HOME`, or else `pollux` inside Prefect's home. Whether it can be used shows when it is used."""
    if own := os.environ.get(VARIABLE, "").strip():
        return _absolute(own)
    # Found the way Prefect finds it: importing Prefect for a path would cost a second.
    return _absolute(os.environ.get("PREFECT_HOME", "").strip() or "~/.prefect") / "pollux"


def prepared(folder: Path) -> Path:
    """`folder`, made if need be, or a ConfigurationError that says why it cannot be used."""
    try:
        # What is kept there are people's answers: nobody else on the machine has a business reading them.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise refused(folder, PermissionError(errno.EACCES, "not writable"))
    return folder


def refused(folder: Path, error: OSError) -> ConfigurationError:
    """Why the system lets nobody work in `folder`, in words."""
    match error.errno:
        case errno.EEXIST | errno.ENOTDIR:
            return ConfigurationError(f"State cannot be kept in {folder}: it is, or lies in, a file.", hint=_ELSEWHERE)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return ConfigurationError(f"State cannot be kept in {folder}: it cannot be written to.", hint=_ELSEWHERE)
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return full(folder)
        case _:
            why = error.strerror or type(error).__name__
            return ConfigurationError(f"State cannot be kept in {folder}: {why}.", hint=_ELSEWHERE)


def full(folder: Path) -> ConfigurationError:
    return ConfigurationError(
        f"There is no room left for the state in {folder}: this was not recorded.",
        hint="Make room on that disk, perhaps with pollux-flows state prune, and run again; what was recorded before is"
        f" kept. Or {_ELSEWHERE[0].lower()}{_ELSEWHERE[1:]}",
    )


def _absolute(path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # nobody's home is known, or the working directory is gone
        raise ConfigurationError(f"There is no telling where {path} is ({error}).", hint=_ELSEWHERE) from error
