"""Opening: open the files of a table, after checking that the run may read them.

Each reader has its own position in a file. A file on the web can only be read forward, so its bytes are copied to a
temporary file, once for all readers of a process.
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
from pollux_flows.address import check_no_credentials, is_path, local_path, redact_location
from pollux_flows.errors import SourceError
from pollux_flows.file_system import find_file_system
from pollux_flows.files import place
from pollux_flows.plain import canonical
from pollux_flows.tables.copies import Copies, Copy

_BUFFER: Final = 1 << 18
_copies: Final[Copies[None]] = Copies(most=2)


class _Bytes(io.RawIOBase):
    """An open file with the interface that Python's buffered readers, and pyarrow, need."""

    def __init__(self, file: place.BinaryFile) -> None:
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
def open_table_file(address: str, *, table: str) -> Iterator[IO[bytes]]:
    """Open a file of a table for random access. Its errors are SourceErrors."""
    with _trust_named_table(address, table):
        file: Any = _copy(address) if place.is_stream(address) else _Bytes(place.open_binary(address))
    with closing(io.BufferedReader(file, _BUFFER)) as reader:
        yield reader


def stamp(address: str, *, table: str) -> str:
    """Return a text that changes when the file changes."""
    with _trust_named_table(address, table):
        return str(canonical(place.stamp(address)))


def resolve_address(table: str) -> str:
    """Return the absolute path or the address of a table, with a slash at the end of a folder."""
    check_no_credentials(table, path=is_path(table))
    # First, as a restricted run must not find out whether the path is a folder.
    place.explain_errors(table, partial(access.check_source, table))
    if not is_path(table):
        return table
    path = os.path.abspath(local_path(table))  # noqa: PTH100 (a slash at its end, and links, stay)
    return f"{path}/" if table.endswith("/") or Path(path).is_dir() else path


def parquet_files(folder: str, *, table: str) -> list[str]:
    """Return the addresses of the parquet files in a folder, sorted."""
    with _trust_named_table(folder, table):
        place.explain_errors(folder, partial(access.check_source, folder))
        names = place.explain_errors(folder, partial(_names_in, folder))
    found = sorted(name for name in names if name.lower().endswith(".parquet") and name[0] not in "._")
    if not found:
        raise SourceError(
            f"{redact_location(folder)!r} has no .parquet files.",
            hint="Name a folder with such files, or a single file.",
        )
    return [f"{folder}{name}" for name in found]


def _names_in(folder: str) -> list[str]:
    if is_path(folder):
        return os.listdir(local_path(folder))  # noqa: PTH208 (names are wanted)
    if place.is_stream(folder):
        raise SourceError(f"{redact_location(folder)!r}: a folder on the web cannot be listed.", hint="Name its files.")
    files, path = find_file_system(folder)
    return [name.rstrip("/").rpartition("/")[2] for name in files.ls(path, detail=False)]


@contextmanager
def _trust_named_table(address: str, table: str) -> Iterator[None]:
    """Allow a restricted run to read the files of a table that its deployment itself names."""
    restrictions = access.current_restrictions()
    if restrictions is None or table not in restrictions.sources:
        yield
        return
    with access.apply_restrictions(replace(restrictions, sources=restrictions.sources | {address})):
        yield


def _copy(address: str) -> io.RawIOBase:
    """Open a copy of a file on the web. An earlier copy is reused while the server reports the same version."""
    version = place.stamp(address)
    fill = partial(_download, address)
    copy = _copies.load(canonical([address, version]), fill) if len(version) > 1 else Copy(fill)
    return copy.open_reader()


def _download(address: str, copy: IO[bytes]) -> None:
    with closing(place.open_binary(address)) as file:
        while piece := file.read(place.PIECE):
            copy.write(piece)
