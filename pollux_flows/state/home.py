"""Home: the folder on this machine that contains the local state."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from pollux_flows.errors import ConfigurationError

VARIABLE: Final = "POLLUX_HOME"
_ELSEWHERE: Final = f"Set {VARIABLE} to a folder that this user may write to."


def home() -> Path:
    """Return `POLLUX_HOME`, or else `pollux` inside Prefect's home. The folder may not exist yet."""
    if own := os.environ.get(VARIABLE, "").strip():
        return _absolute(own)
    # Derived as Prefect does, without importing Prefect, which would take a second.
    return _absolute(os.environ.get("PREFECT_HOME", "").strip() or "~/.prefect") / "pollux"


def prepare_folder(folder: Path) -> Path:
    """Create `folder` if it is missing and return it, or raise a ConfigurationError with the reason it is unusable."""
    try:
        # Answers are confidential: other users of the machine may not read them.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise folder_error(folder, error) from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise folder_error(folder, PermissionError(errno.EACCES, "not writable"))
    return folder


def folder_error(folder: Path, error: OSError) -> ConfigurationError:
    """Return the error for a folder that the operating system does not let this process use."""
    match error.errno:
        case errno.EEXIST | errno.ENOTDIR:
            return ConfigurationError(
                f"State cannot be stored in {folder}: this path, or a part of it, is a file.", hint=_ELSEWHERE
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return ConfigurationError(f"State cannot be stored in {folder}: it cannot be written to.", hint=_ELSEWHERE)
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return disk_full_error(folder)
        case _:
            why = error.strerror or type(error).__name__
            return ConfigurationError(f"State cannot be stored in {folder}: {why}.", hint=_ELSEWHERE)


def disk_full_error(folder: Path) -> ConfigurationError:
    """Return the error for a disk without free space for the state."""
    return ConfigurationError(
        f"The disk is full: a record was not saved in {folder}.",
        hint="Free some space on that disk, and run again; earlier records are still there. With a few megabytes free,"
        f" pollux-flows state prune removes the oldest. Or {_ELSEWHERE[0].lower()}{_ELSEWHERE[1:]}",
    )


def _absolute(path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # the user has no home, or the working directory is gone
        raise ConfigurationError(f"The folder {path} cannot be found ({error}).", hint=_ELSEWHERE) from error
