"""Opening: the files of a table, through the gate of what a run may read.

Each reader works at its own place in a file. A file on the web can only be read forward, so its bytes are copied to a
temporary file, once for the readers of a process.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from pollux_flows import access
from pollux_flows.address import check_no_credentials, is_path, local_path, shown_file
from pollux_flows.errors import SourceError
from pollux_flows.file_system import find_file_system
from pollux_flows.files import place
from pollux_flows.plain import canonical
from pollux_flows.tables.copies import Copies, Copy

_BUFFER: Final = 1 << 18
_copies: Final[Copies[None]] = Copies(most=2)


class _Bytes(io.RawIOBase):
    """An opened file as Python's own buffered readers, and pyarrow, want it."""

    def __init__(self, file: place.Opened) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def opened(address: str, *, table: str) -> Iterator[IO[bytes]]:
    """Open a file of a table for random access; its errors are SourceErrors."""
    with _trusting(address, table):
        file: Any = _copy(address) if place.is_stream(address) else _Bytes(place.opened(address))
    with closing(io.BufferedReader(file, _BUFFER)) as reader:
        yield reader


def stamp(address: str, *, table: str) -> str:
    """Return a text that changes when the file does."""
    with _trusting(address, table):
        return str(canonical(place.stamp(address)))


def absolute(table: str) -> str:
    """Return the address of a table for a process in any directory, with a slash behind a folder's."""
    check_no_credentials(table, path=is_path(table))
    place.explain_errors(table, partial(access.check_source, table))  # before it shows whether it is a folder
    if not is_path(table):
        return table
    path = os.path.abspath(local_path(table))  # noqa: PTH100 (a slash at its end, and links, stay)
    return f"{path}/" if table.endswith("/") or Path(path).is_dir() else path


def parquet_files(folder: str, *, table: str) -> list[str]:
    """Return the addresses of the parquet files in a folder, sorted."""
    with _trusting(folder, table):
        place.explain_errors(folder, partial(access.check_source, folder))
        names = place.explain_errors(folder, partial(_names_in, folder))
    found = sorted(name for name in names if name.lower().endswith(".parquet") and name[0] not in "._")
    if not found:
        raise SourceError(
            f"{shown_file(folder)!r} has no .parquet files.", hint="Name a folder of them, or a table's own file."
        )
    return [f"{folder}{name}" for name in found]


def _names_in(folder: str) -> list[str]:
    if is_path(folder):
        return os.listdir(local_path(folder))  # noqa: PTH208 (names are wanted)
    if place.is_stream(folder):
        raise SourceError(f"{shown_file(folder)!r}: a folder on the web cannot be listed.", hint="Name its files.")
    files, path = find_file_system(folder)
    return [name.rstrip("/").rpartition("/")[2] for name in files.ls(path, detail=False)]


@contextmanager
def _trusting(address: str, table: str) -> Iterator[None]:
    """Let a run read the files of a table that its deployment itself names."""
    restrictions = access.current_restrictions()
    if restrictions is None or table not in restrictions.sources:
        yield
        return
    with access.apply_restrictions(replace(restrictions, sources=restrictions.sources | {address})):
        yield


def _copy(address: str) -> io.RawIOBase:
    """Open a copy of a file on the web. An earlier copy is used while the server reports the same version."""
    version = place.stamp(address)
    fill = partial(_download, address)
    copy = _copies.load(canonical([address, version]), fill) if len(version) > 1 else Copy(fill)
    return copy.opened()


def _download(address: str, copy: IO[bytes]) -> None:
    with closing(place.opened(address)) as file:
        while piece := file.read(place.PIECE):
            copy.write(piece)
