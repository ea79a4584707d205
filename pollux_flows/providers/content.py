"""Content: the bytes behind a source, wherever they live, read as a stream and off the event loop."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import io
import mimetypes
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, Final, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import Field

from pollux_flows.document import Record
from pollux_flows.errors import SourceError
from pollux_flows.source import Source
from pollux_flows.state.identity import digest
from pollux_flows.state.store import Store

T = TypeVar("T")

_CHUNK: Final = 1 << 20
# Enough to keep a disk, or a bucket, busy.
_THREADS: Final = 16
_HEAD: Final = 8192
# A file written this recently may be written again within the same tick of its clock, and look unchanged.
_SETTLED_S: Final = 2.0
_REMEMBERED_S: Final = 90 * 86400.0
# What a file system may tell about a version of a file. One that tells none of these is read each time.
_VERSIONS: Final = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated")
_OTHER_NAMES: Final = {"audio/wave": "audio/wav", "audio/x-wav": "audio/wav", "image/jpg": "image/jpeg"}
_TEXT_LIKE: Final = ("text/", "application/json", "application/xml", "application/x-", "application/yaml",
                     "application/javascript", "application/toml", "application/sql")  # fmt: skip


class Content(Record):
    """What is known of a file once it was read: equal for equal content, whatever its name."""

    sha256: str = Field(description="Its hash.")
    size_bytes: int = Field(description="Its length.")
    mime_type: str = Field(description="What it is, by its content where its name says nothing or lies.")


async def examine(sources: Sequence[Source], store: Store | None = None) -> list[Content]:
    """Read each of these files once, from end to end; not at all if the store remembers this very version of it."""
    names = [str(source.uri) for source in sources]
    keys = dict(zip(names, await _side_by_side(_memory_of, names), strict=True))
    known = await store.get_many(key for key in keys.values() if key) if store else {}
    contents = {name: Content.model_validate(known[key]) for name, key in keys.items() if key in known}
    unread = [name for name in keys if name not in contents]
    contents |= zip(unread, await _side_by_side(_read, unread), strict=True)
    if store:
        # A file that was written to since its key was made has another key by now: nobody will ask for this one.
        fresh = {key: contents[name].model_dump() for name in unread if (key := keys[name])}
        await store.put_many(fresh, ttl_s=_REMEMBERED_S)
    return [
        contents[name].model_copy(update={"mime_type": source.mime_type}) if source.trust_mime_type else contents[name]
        for name, source in zip(names, sources, strict=True)
    ]


class HashingReader(io.BufferedIOBase):
    """A file that hashes what is read from it, so that what was sent can be held against what was examined."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._raw.read(-1 if size is None else size)
        self._hash.update(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        position = self._raw.seek(offset, whence)
        if position == 0:  # whoever asked for the length comes back here before reading
            self._hash = hashlib.sha256()
        return position

    def tell(self) -> int:
        return self._raw.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def read_whole(self, content: Content) -> bool:
        """Whether what was read since the start is what was examined."""
        return self._hash.hexdigest() == content.sha256


def open_file(source: Source) -> HashingReader:
    """The file behind the source, to be read and closed by the caller, off the event loop."""
    return HashingReader(_open(str(source.uri)))


async def load(source: Source, content: Content) -> bytes:
    """The whole of a file that travels inside a request. Its size was checked before."""
    return await asyncio.to_thread(_load, source, content)


def changed(source: Source) -> SourceError:
    """The file is not what it was when it was examined."""
    return SourceError(
        f"{source.identifier!r} changed while it was being sent.",
        hint="Run again once nobody writes to it; what was sent of it is not used.",
    )


async def _side_by_side(look: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """What `look` says of each, in order; of several errors, the first. A thread takes many: each hand-over costs."""

    def of_share(share: Sequence[str]) -> list[T]:
        return [look(name) for name in share]

    size = max(1, -(-len(names) // _THREADS))
    shares = [names[start : start + size] for start in range(0, len(names), size)]
    found = await asyncio.gather(*(asyncio.to_thread(of_share, share) for share in shares), return_exceptions=True)
    return [each for share in found for each in _unless_raised(share)]


def _unless_raised(found: T | BaseException) -> T:
    if isinstance(found, BaseException):
        raise found
    return found


def _memory_of(name: str) -> str | None:
    """The name that a file's content is remembered by; None where it is read each time."""
    version = _version(name)
    return None if version is None else f"hash/{digest('file', {'name': name, 'version': version})}"


def _load(source: Source, content: Content) -> bytes:
    with closing(open_file(source)) as file:
        data = file.read()
        if not file.read_whole(content):
            raise changed(source)
    return data


def _read(name: str) -> Content:
    hashed, size, head = hashlib.sha256(), 0, b""
    with closing(_open(name)) as file:
        while chunk := file.read(_CHUNK):
            head = head or chunk[:_HEAD]
            hashed.update(chunk)
            size += len(chunk)
    if size == 0:
        raise SourceError(f"{name!r} is empty.", hint="Leave it out, or check what should have written it.")
    return Content(sha256=hashed.hexdigest(), size_bytes=size, mime_type=_mime_type(name, head))


def _version(name: str) -> Any:
    """What changes when the file does; None where nothing tells, or where it is too young to tell."""
    protocol, _ = _location(name)
    if protocol == "file":
        status = _status(name)
        settled = time.time() - status.st_mtime > _SETTLED_S
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino] if settled else None
    info = _asked(name, lambda files, path: files.info(path))
    told = {field: str(info[field]) for field in _VERSIONS if info.get(field) is not None}
    return {"size": info.get("size"), **told} if told else None


def _open(name: str) -> BinaryIO:
    protocol, _ = _location(name)
    if protocol == "file":
        _status(name)
        return Path(_local_path(name)).open("rb")
    opened: BinaryIO = _asked(name, lambda files, path: files.open(path, "rb", block_size=_CHUNK))
    return opened


def _status(name: str) -> Any:
    """A local file's status, or an error that names the machine: a flow may run on another one."""
    here = f"on this machine ({platform.node()})"
    path = Path(_local_path(name))
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        if _is_link(path):
            raise SourceError(f"{name!r} is a link to what is not there, {here}.", hint="Mend the link.") from None
        said = error.strerror if isinstance(error, OSError) else error
        raise SourceError(
            f"There is no file {name!r} to read {here}: {said}.",
            hint="A flow may run elsewhere than where the path was written: put the file where every worker can "
            "read it, such as s3://…, and pass that.",
        ) from None
    if S_ISDIR(status.st_mode):
        raise SourceError(f"{name!r} is a directory.", hint="Pass its files one by one.")
    if not S_ISREG(status.st_mode):
        raise SourceError(f"{name!r} is no regular file.", hint="Write what it gives into a file, and pass that.")
    if not os.access(path, os.R_OK):
        raise SourceError(
            f"{name!r} may not be read {here}.", hint="Give the user that runs the flow leave to read it."
        )
    return status


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except (OSError, ValueError):
        return False


def _asked(name: str, question: Any) -> Any:
    """What the file system answers, or what went wrong in words."""
    import fsspec

    protocol, _ = _location(name)
    try:
        files, path = fsspec.core.url_to_fs(_local_path(name) if protocol == "file" else name)
        return question(files, path)
    except ImportError as error:
        raise SourceError(f"{protocol}:// cannot be read here: {error}.", hint=_missing_package(protocol)) from None
    except FileNotFoundError:
        raise SourceError(f"There is nothing at {name!r}.", hint="Check the address.") from None
    except PermissionError as error:
        raise SourceError(
            f"{name!r} may not be read: {error}.", hint="Check the credentials on this machine."
        ) from None
    except Exception as error:  # noqa: BLE001 (file systems bring errors of their own)
        raise SourceError(
            f"{name!r} cannot be read: {type(error).__name__}: {error}.", hint="Check the address and its credentials."
        ) from None


def _missing_package(protocol: str) -> str:
    extra = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure",
             "http": "http", "https": "http"}.get(protocol)  # fmt: skip
    return f"Install it with: pip install 'pollux-flows[{extra}]'" if extra else "Install the package it names."


def _location(name: str) -> tuple[str, str]:
    """The protocol and the rest. A path without one, or with a drive letter, is a local file."""
    protocol, separator, rest = name.partition("://")
    if not separator or len(protocol) <= 1 or "/" in protocol:
        return "file", name
    return ("file" if protocol == "local" else protocol), rest


def _local_path(name: str) -> str:
    if name.startswith("file://"):
        return unquote(name.removeprefix("file://"))
    return name.removeprefix("local://")


def _mime_type(name: str, head: bytes) -> str:
    """By content, with the name as its witness: the name decides among what the content may be."""
    named = mimetypes.guess_type(PurePosixPath(urlsplit(name).path or name).name)[0]
    if _is_text(head):
        # Text has no magic numbers worth believing; a name that says some kind of text says it best.
        return named if named and named.startswith(_TEXT_LIKE) else "text/plain"
    import puremagic

    try:
        found = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        found = []
    possible = [_OTHER_NAMES.get(match.mime_type, match.mime_type) for match in found if match.mime_type]
    if named in possible:
        return str(named)
    return possible[0] if possible else named or "application/octet-stream"


def _is_text(head: bytes) -> bool:
    if b"\0" in head or head.startswith((b"%PDF-", b"{\\rtf")):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # which minds no character cut in half at the end
    except UnicodeDecodeError:
        return False
    return True
