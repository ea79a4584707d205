"""Places: open files on this machine, on the web, or on any file system that fsspec supports."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Final, Protocol, TypeVar, cast

from pollux_flows import access
from pollux_flows.address import local_path, protocol, redact_location, redact_text
from pollux_flows.errors import PolluxError, SourceError
from pollux_flows.file_system import find_file_system
from pollux_flows.files.file_threads import Pulse

T = TypeVar("T")

PIECE: Final = 1 << 20
_WEB: Final = {"http", "https"}
# A more recent file may be written again within one tick of its file system's clock, and look unchanged.
_SETTLED_S: Final = 2.0
# On remote file systems, ticks are longer and clocks differ.
_SETTLED_ELSEWHERE_S: Final = 60.0
# The fields by which file systems report a version of a file. A file without any is read each time.
_TAGS: Final = ("ETag", "etag", "generation", "md5Hash")
_TIMES: Final = ("mtime", "LastModified", "last_modified", "last-modified", "last_write_time", "updated")


class BinaryFile(Protocol):
    """An open binary file on any file system."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...

    def close(self) -> None: ...


def open_binary(name: str) -> BinaryFile:
    """Open a file for reading, for the caller to close. Its errors are SourceErrors."""
    return _File(name, explain_errors(name, partial(_open, name)))


def is_stream(name: str) -> bool:
    """Return whether the file can only be read forward, with an unknown length."""
    return protocol(name) in _WEB


def pieces(name: str, pulse: Pulse) -> Iterator[bytes]:
    """Iterate over the file's bytes, piece by piece."""
    pulse.beat(name)
    with closing(open_binary(name)) as file:
        while piece := file.read(PIECE):
            pulse.beat(name)
            yield piece


def version(name: str) -> Any:
    """Return a value that changes when the file does; None if there is none, or if the file was just written."""
    explain_errors(name, partial(access.check_source, name))
    if protocol(name) == "file":
        status = _status(name)
        settled = time.time() - status.st_mtime > _SETTLED_S
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino] if settled else None
    info = _info_if_possible(name)
    written = [_seconds(info[field]) for field in _TIMES if info.get(field) is not None]
    settled = all(at is not None and time.time() - at > _SETTLED_ELSEWHERE_S for at in written)
    found = _size_and_tags(info)
    return found if len(found) > 1 and settled else None


def stamp(name: str) -> dict[str, Any]:
    """Return the size of a file and its time or tag, if any, which are equal on all machines that share the file.

    A change within one tick of the file system's clock goes unnoticed.
    """
    explain_errors(name, partial(access.check_source, name))
    if protocol(name) == "file":
        status = _status(name)
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return _size_and_tags(_info_if_possible(name))


def _info_if_possible(name: str) -> dict[str, Any]:
    try:
        return explain_errors(name, lambda: _info(name))
    except SourceError:
        return {}  # the error is raised when the file is read


def _size_and_tags(info: dict[str, Any]) -> dict[str, Any]:
    tags = {field: str(info[field]) for field in (*_TAGS, *_TIMES) if info.get(field) is not None}
    return {"size": info.get("size", info.get("content-length")), **tags}


class _File:
    """A file of any file system, whose errors are SourceErrors."""

    def __init__(self, name: str, file: BinaryFile) -> None:
        self._name, self._file = name, file

    def read(self, size: int, /) -> bytes:
        return explain_errors(self._name, lambda: self._file.read(size))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return explain_errors(self._name, lambda: self._file.seek(offset, whence))

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def explain_errors(name: str, work: Callable[[], T]) -> T:
    """Return the result of `work`. Any error of the file system becomes a SourceError."""
    try:
        return work()
    except PolluxError:
        raise
    except Exception as error:  # noqa: BLE001 (file systems raise errors of many types)
        refusal = _refusal(name, error)
    # Raised outside the handler, as the original error may contain the full address, and must not be the context.
    raise refusal


def _refusal(name: str, error: Exception) -> SourceError:
    what, reason = redact_location(name), redact_text(str(error)).rstrip(".") or "no reason given"
    match error:
        case ImportError():
            return SourceError(f"{protocol(name)}:// cannot be read here: {reason}.", hint=_missing_package(name))
        case FileNotFoundError():
            return SourceError(f"There is nothing at {what!r}.", hint="Check the address.")
        case IsADirectoryError():
            return SourceError(f"{what!r} is a directory.", hint="Pass its files one by one.")
        case PermissionError():
            return SourceError(
                f"{what!r} may not be read: {reason}.",
                hint="Check the credentials on this machine; a signed address may have expired.",
            )
        case _:
            return SourceError(
                f"{what!r} cannot be read: {type(error).__name__}: {reason}.",
                hint="Check the address and its credentials.",
            )


def _open(name: str) -> BinaryFile:
    access.check_source(name)
    if protocol(name) == "file":
        _status(name)
        with ExitStack() as stack:
            # Without a buffer, as a read that hangs would hold the buffer's lock forever.
            local = stack.enter_context(Path(local_path(name)).open("rb", buffering=0))
            access.check_opened(name, local.fileno())
            stack.pop_all()  # now the caller closes it
        return cast(BinaryFile, local)
    if is_stream(name):
        from pollux_flows.files import web

        return web.open_web_file(name)
    files, path = find_file_system(name)
    file: BinaryFile = files.open(path, "rb", block_size=PIECE)
    return file


def _info(name: str) -> dict[str, Any]:
    if is_stream(name):
        from pollux_flows.files import web

        return web.headers(name)
    files, path = find_file_system(name)
    info: dict[str, Any] = files.info(path)
    return info


def _seconds(when: Any) -> float | None:
    """Return a file system's timestamp as seconds since 1970; None if it cannot be read."""
    if isinstance(when, str):
        when = _date(when)
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return float(when) if isinstance(when, int | float) else None


def _date(text: str) -> datetime | None:
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return read(text)
        except ValueError:
            continue
    return None


def _status(name: str) -> os.stat_result:
    """Return a local file's status. Errors name the machine, as a flow may run on a different one."""
    here, what = f"on this machine ({platform.node()})", redact_location(name)
    path = Path(local_path(name))
    try:
        status, missing = path.stat(), ""
    except (OSError, ValueError) as error:
        status, missing = None, str(getattr(error, "strerror", None) or error)
    if status is None and _is_link(path):
        raise SourceError(f"{what!r} is a broken link {here}.", hint="Correct the link.")
    if status is None:
        raise SourceError(
            f"There is no file {what!r} to read {here}: {missing}.",
            hint="The flow may run on another machine: put the file where every worker can read it, such as s3://…, "
            "and pass that address.",
        )
    if S_ISDIR(status.st_mode):
        raise SourceError(f"{what!r} is a directory.", hint="Pass its files one by one.")
    if not S_ISREG(status.st_mode):
        raise SourceError(f"{what!r} is not a regular file.", hint="Write its content into a file, and pass that.")
    if not os.access(path, os.R_OK):
        raise SourceError(
            f"{what!r} may not be read {here}.", hint="Grant read permission to the user that runs the flow."
        )
    return status


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except (OSError, ValueError):
        return False


def _missing_package(name: str) -> str:
    extra = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure",
             "http": "http", "https": "http"}.get(protocol(name).rpartition("::")[2])  # fmt: skip
    return f"Install it with: pip install 'pollux-flows[{extra}]'" if extra else "Install the package it names."
