"""Content: reads and hashes the files of sources, as streams and off the event loop."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import io
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final, TypeVar, cast

from pydantic import Field

from pollux_flows.address import redact_location
from pollux_flows.document import Record
from pollux_flows.errors import PolluxError, SourceError, raise_if_error
from pollux_flows.files import mime
from pollux_flows.files.file_threads import THREADS, Pulse, run_and_wait, run_on_thread
from pollux_flows.files.place import PIECE, BinaryFile, is_stream, open_binary, pieces, version
from pollux_flows.source import Source
from pollux_flows.state.content_cache import ContentCache, open_content_cache
from pollux_flows.state.identity import digest

T = TypeVar("T")

# Raise it when the same bytes are to be interpreted differently: cached contents are then ignored.
_READING: Final = 2
_log: Final = logging.getLogger("pollux_flows")


class Content(Record):
    """The hash, size and type of a file's content, which do not depend on its name."""

    sha256: str = Field(description="The hash of the content.")
    size_bytes: int = Field(description="The length of the content.")
    mime_type: str = Field(description="The type of the file, from its content if its name has none or a wrong one.")
    utf8: bool | None = Field(default=None, description="Whether the content is valid UTF-8; None if not checked.")


async def examine(
    sources: Sequence[Source], cache: ContentCache | None = None, *, limit_s: float = math.inf
) -> list[Content]:
    """Return the content of each file; a file is read once, or not at all if this version of it is cached.

    Reading one file may take `limit_s`.
    """
    names = list(dict.fromkeys(str(source.uri) for source in sources))
    keys = dict(zip(names, await _map_on_threads(_key, names, limit_s), strict=True)) if cache else {}
    memory = _Memory(cache, keys)
    known = await memory.load()
    unread = [name for name in names if name not in known]
    fresh = dict(zip(unread, await _map_on_threads(_read, unread, limit_s), strict=True))
    await memory.save(fresh)
    found = known | fresh
    contents = [found[str(source.uri)] for source in sources]
    return [
        content.model_copy(update={"mime_type": source.mime_type}) if source.trust_mime_type else content
        for source, content in zip(sources, contents, strict=True)
    ]


async def forget(source: Source) -> None:
    """Delete the cached content of this version of the file, which was found to be wrong."""
    try:
        if key := await run_on_thread(partial(_key, str(source.uri)), str(source.uri)):
            await open_content_cache().delete(key)
    except PolluxError as error:
        _log.warning("The cached content of %s could not be deleted: %s", source.identifier, error)


class HashingReader(io.BufferedIOBase):
    """The file of an upload, whose reads fail rather than hang.

    It hashes the bytes read from it, to compare those that were sent with those that were examined.
    """

    size_bytes: int | None = None
    """The required length. An earlier end raises an EOFError, as google-genai would never stop sending."""

    def __init__(self, file: BinaryFile, name: str) -> None:
        self._file, self._name = file, name
        self._hash = hashlib.sha256()
        self._position = 0
        # A buffer, as SDKs read in small steps, and each read of the file itself takes a thread.
        self._ahead = memoryview(b"")
        self._hangs = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self.closed:
            raise ValueError("read of a closed file")
        left = math.inf if size is None or size < 0 else size
        found = []
        while left and (part := self._take(left)):
            found.append(part)
            left -= len(part)
        data = b"".join(found)
        self._hash.update(data)
        self._position += len(data)
        if not data and size != 0 and self._position < (self.size_bytes or 0):
            raise EOFError("The file has become shorter.")
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence == io.SEEK_CUR:
            offset, whence = self._position + offset, io.SEEK_SET
        self._position, self._ahead = self._file.seek(offset, whence), memoryview(b"")
        if self._position == 0:  # a caller that seeks to find the length returns here before it reads
            self._hash = hashlib.sha256()
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed and not self._hangs:  # closing a file that hangs in a read would hang as well
            self._file.close()
        super().close()

    def has_read_all_of(self, content: Content) -> bool:
        """Return whether the bytes that were read since the start equal this content."""
        return self._hash.hexdigest() == content.sha256

    def _take(self, most: float) -> memoryview:
        """Return at most `most` of the next bytes; none at the end."""
        if not self._ahead:
            self._hangs = True
            self._ahead = memoryview(run_and_wait(lambda _: self._file.read(PIECE), self._name))
            self._hangs = False
        count = int(min(most, len(self._ahead)))
        part, self._ahead = self._ahead[:count], self._ahead[count:]
        return part


async def open_file(source: Source) -> HashingReader:
    """Open the file of a source, for the caller to read and close. A web file is downloaded first."""
    name = str(source.uri)
    return HashingReader(await run_on_thread(partial(_open_rewindable, name), name), name)


async def load(source: Source, content: Content, *, limit_s: float = math.inf) -> bytes:
    """Return the bytes of a file that is sent inside a request. Its size was checked before."""
    data = await run_on_thread(partial(_load, str(source.uri), content), str(source.uri), limit_s=limit_s)
    if data is None:
        await forget(source)
        raise changed_error(source)
    return data


def changed_error(source: Source) -> SourceError:
    """Return the error for a file that has changed since it was examined."""
    return SourceError(
        f"{source.identifier!r} changed while it was being sent.",
        hint="Run again once nothing writes to it. The part that was sent is not used.",
    )


def not_utf8_error(source: Source) -> SourceError:
    """Return the error for a file that is to be sent as text but is not UTF-8."""
    return SourceError(
        f"{source.identifier!r} would be sent as text, and is not UTF-8.",
        hint="Save it as UTF-8, or pass its real type with Source.from_file(…, mime_type=…).",
    )


class _Memory:
    """The cached contents of files, by version. Best effort: after an error, files are read again."""

    def __init__(self, cache: ContentCache | None, keys: Mapping[str, str | None]) -> None:
        self._cache = cache
        self._keys = {name: key for name, key in keys.items() if key is not None}

    async def load(self) -> dict[str, Content]:
        if self._cache is None:
            return {}
        try:
            records = await self._cache.get_many(self._keys.values())
            found = {name: Content.model_validate(records[key]) for name, key in self._keys.items() if key in records}
        except PolluxError as error:
            self._give_up(error)
            return {}
        return {name: content for name, content in found.items() if content.utf8 is not None}

    async def save(self, contents: Mapping[str, Content]) -> None:
        if self._cache is None:
            return
        # If a file was written to since its key was made, it has another key, and this record is never looked up.
        fresh = {self._keys[name]: content.model_dump() for name, content in contents.items() if name in self._keys}
        try:
            await self._cache.put_many(fresh)
        except PolluxError as error:
            self._give_up(error)

    def _give_up(self, error: PolluxError) -> None:
        self._cache = None
        _log.warning("The contents of files are not cached, so they will be read again: %s", error)


async def _map_on_threads(look: Callable[[str, Pulse], T], names: Sequence[str], limit_s: float) -> list[T]:
    """Return `look` of each name, in order, or raise the first error. Each thread processes many names in turn."""

    def of_share(share: Sequence[str], pulse: Pulse) -> list[T]:
        return [look(name, pulse) for name in share]

    size = max(1, -(-len(names) // THREADS))
    shares = [names[start : start + size] for start in range(0, len(names), size)]
    found = await asyncio.gather(
        *(run_on_thread(partial(of_share, share), share[0], limit_s=limit_s) for share in shares),
        return_exceptions=True,
    )
    return [each for share in found for each in raise_if_error(share)]


def _key(name: str, pulse: Pulse) -> str | None:
    """Return the key of a file's cached content; None if it is read each time."""
    pulse.beat(name)
    found = version(name)
    return found and f"hash/{digest('file', {'name': name, 'version': found, 'reading': _READING})}"


def _read(name: str, pulse: Pulse) -> Content:
    hashed, size, head = hashlib.sha256(), 0, b""
    decoder, utf8, blank = codecs.getincrementaldecoder("utf-8")(), True, True
    for piece in pieces(name, pulse):
        hashed.update(piece)
        size += len(piece)
        head += piece[: mime.HEAD - len(head)]
        utf8 = utf8 and _decodes(decoder, piece)
        blank = blank and not piece.strip()
    if blank:
        raise SourceError(
            f"{redact_location(name)!r} is empty.", hint="Leave it out, or check what should have written it."
        )
    return Content(
        sha256=hashed.hexdigest(),
        size_bytes=size,
        mime_type=mime.mime_type(name, head),
        utf8=utf8 and _decodes(decoder, b"", final=True),
    )


def _decodes(decoder: codecs.IncrementalDecoder, piece: bytes, *, final: bool = False) -> bool:
    try:
        decoder.decode(piece, final)
    except UnicodeDecodeError:
        return False
    return True


def _load(name: str, content: Content, pulse: Pulse) -> bytes | None:
    """Return the bytes of a file, or None if they are not those that were examined."""
    found: list[bytes] = []
    hashed, left = hashlib.sha256(), content.size_bytes
    for piece in pieces(name, pulse):
        found.append(piece)
        hashed.update(piece)
        left -= len(piece)
        if left < 0:
            return None  # the file is being written to, so it may have no end
    return b"".join(found) if hashed.hexdigest() == content.sha256 else None


def _open_rewindable(name: str, pulse: Pulse) -> BinaryFile:
    """Open a file that can seek; a stream is first copied into an unnamed temporary file."""
    pulse.beat(name)
    if not is_stream(name):
        return open_binary(name)
    try:
        with ExitStack() as stack:
            copy = stack.enter_context(tempfile.TemporaryFile())  # without a name, so that nothing is left behind
            for piece in pieces(name, pulse):
                copy.write(piece)
            copy.seek(0)
            stack.pop_all()  # now the caller closes it
    except OSError as error:  # errors of the file itself are SourceErrors
        raise SourceError(
            f"{redact_location(name)!r} could not be copied to {tempfile.gettempdir()} for its upload: {error}.",
            hint="Free space there, or set TMPDIR to another folder.",
        ) from None
    return cast(BinaryFile, copy)
