"""Output: the answers of a run in a file that the caller names, with a manifest of numbers beside it.

The file extension chooses the format. The file appears once it is complete, and until then an earlier one stays.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, Literal, get_args
from uuid import uuid4

import fsspec
from pydantic import Field

from pollux_flows import access
from pollux_flows.address import check_no_credentials, is_path, local_path, protocol, redact_address, redact_text
from pollux_flows.answer_rows import AnswerRow, csv_header, csv_lines, json_lines
from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError, PolluxError, SourceError
from pollux_flows.file_system import find_file_system

Bucket = Literal["succeeded", "failed", "expired", "cancelled", "invalid_output", "missing"]
"""The result of a prompt. Each prompt of an output counts in exactly one bucket."""

BUCKETS: Final[tuple[Bucket, ...]] = get_args(Bucket)

_CSV: Final = ".csv"
# A file of another type could be one that a program executes or reads as its settings.
_ENDINGS: Final = (".jsonl", ".ndjson", _CSV)
_ADVICE: Final = ".jsonl for lines of JSON, with .csv for a table, or with a slash for a folder"
_READ_ONLY: Final = {"http", "https", "github"}
_ABANDONED_S: Final = 60.0
# These show an object only once it is closed. A local or remote disk shows a file from its first byte.
_OBJECT_STORES: Final = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}


class Manifest(Record):
    """The numbers of results in an output, which add up to the number of prompts."""

    submitted: int
    succeeded: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    invalid_output: int = Field(default=0, description="Answered, but not in the requested shape.")
    missing: int = Field(default=0, description="The provider gave no result. It may have billed them all the same.")
    cost_usd: float | None = Field(default=None, description="At batch prices, for a deferred job; None if unknown.")
    cost_unknown: str | None = None
    usage: dict[str, int] = Field(default_factory=dict)
    oddities: list[str] = Field(default_factory=list, description="Problems with all results together.")
    output: str | None = Field(default=None, description="The file with a row per prompt.")
    collected_at: float

    @property
    def has_all_answers(self) -> bool:
        """True if every prompt succeeded."""
        return self.succeeded == self.submitted

    @property
    def counts(self) -> dict[Bucket, int]:
        """The number of prompts in each bucket that is not empty."""
        return {bucket: count for bucket in BUCKETS if (count := getattr(self, bucket))}


class _AnyManifest(Record):
    """The field that all manifests share, those of answers and those of tables: the output that they belong to."""

    output: str | None = None


def resolve_output(output: str, endings: Sequence[str] = _ENDINGS, *, advice: str = _ADVICE) -> str:
    """Return `output` as an absolute path or address. Raises a ConfigurationError if it cannot be used.

    Called before anything is asked or submitted. The name of a file must have one of these `endings`; `advice` says
    what each is for.
    """
    if not output.strip():
        raise ConfigurationError("output is blank.", hint="Write a path or an address, or leave it out.")
    is_folder, is_guarded = output.endswith("/"), access.guards_output(output)
    try:
        check_no_credentials(output, path=is_path(output))
        if ":" in output:  # otherwise a mere name would be read as a protocol
            access.check_protocols(output)
        _check_protocol(output)
        if not is_folder:
            _check_ending(output, endings, advice, is_guarded=is_guarded)
        fs, path = fsspec.core.url_to_fs(output)
    except SourceError as error:
        raise ConfigurationError(f"output cannot be used: {error.message}", hint=error.hint) from None
    except (ValueError, ImportError) as error:
        raise ConfigurationError(
            f"output cannot be {redact_address(output)!r}: {error}",
            hint="Write a path, or an address such as s3://bucket/answers.jsonl, whose package is installed.",
        ) from None
    if is_guarded:
        path = os.path.realpath(path) if is_local(fs) else path
        access.check_output(output, path if is_local(fs) else None)
        if not is_folder:
            check_replaceable(path if is_local(fs) else output)
    if not is_local(fs):
        return output
    return f"{path}/" if is_folder else str(path)  # a collector may run in another directory


def output_path(output: str, name: str) -> str:
    """Return the file for answers: `output` itself or, if that is a folder, a file of this name in it."""
    return f"{output}{name}.jsonl" if output.endswith("/") else output


def check_writable(path: str) -> None:
    """Raise a ConfigurationError if no file can be created at `path`. An empty one is created beside it and removed."""
    try:
        _create_and_remove(path.removesuffix("/"))
    except Exception as error:  # noqa: BLE001 (each file system has errors of its own)
        raise ConfigurationError(
            f"output {redact_address(path)!r} cannot be written to: {describe_error(error)}.",
            hint="Free space, give this process write access, or name another place. Nothing was asked.",
        ) from None


def describe_error(error: Exception) -> str:
    """Return the kind and the reason of a file system's error, without a full stop."""
    return f"{type(error).__name__}: {redact_text(str(error)).rstrip('.')}"


def _create_and_remove(path: str) -> None:
    fs, place = fsspec.core.url_to_fs(path)
    if is_local(fs):
        NewFile(path).discard()
        return
    unfinished = _unfinished(place)
    fs.pipe_file(unfinished, b"")  # an object store reports a missing bucket or right only when a file is complete
    with suppress(Exception):  # not all who may write may remove
        fs.rm_file(unfinished)


async def write_output(
    path: str,
    pieces: AsyncIterator[Sequence[AnswerRow]],
    manifest: Manifest,
    *,
    what: str,
    hint: str,
    is_guarded: bool = False,
) -> None:
    """Write one row per prompt to `path`, and the manifest beside it. An existing file is replaced once all is written.

    If `is_guarded`, only a file with its manifest is replaced. The manifest is then written first, so that a retry of
    a killed attempt recognises the answers as its own. `what` and `hint` are for the error.
    """
    is_csv = path.lower().endswith(_CSV)
    lines = csv_lines if is_csv else json_lines
    try:
        if is_guarded:
            await asyncio.to_thread(check_replaceable, path)
            await asyncio.to_thread(write_manifest, path, manifest)
        file = await asyncio.to_thread(NewFile, path)
        try:
            if is_csv:
                file.write(csv_header().encode())
            async for rows in pieces:
                file.write((await asyncio.to_thread(lines, rows)).encode())
            await asyncio.to_thread(file.complete)
        except BaseException:
            file.discard()
            raise
        await asyncio.to_thread(write_manifest, path, manifest)
    except PolluxError:
        raise
    except Exception as error:  # noqa: BLE001 (each file system has errors of its own)
        raise ConfigurationError(
            f"{what} could not be written to {redact_address(path)}: {describe_error(error)}.", hint=hint
        ) from None


def _check_protocol(output: str) -> None:
    if protocol(output) in _READ_ONLY:
        raise ConfigurationError(
            f"output {redact_address(output)!r} cannot be written to: {protocol(output)} is read-only.",
            hint="Name a file, or an object such as s3://bucket/answers.jsonl.",
        )


def _check_ending(output: str, endings: Sequence[str], advice: str, *, is_guarded: bool) -> None:
    # A restricted run must not find out from an error whether a folder exists.
    if not is_guarded and is_path(output) and Path(local_path(output)).expanduser().is_dir():
        raise ConfigurationError(
            f"output {redact_address(output)!r} is a folder.", hint="Write a slash at its end, or name a file in it."
        )
    if not output.lower().endswith(tuple(endings)):
        raise ConfigurationError(
            f"output {redact_address(output)!r} ends with none of {', '.join(endings)}.", hint=f"End it with {advice}."
        )


def write_manifest(path: str, manifest: Record) -> None:
    """Write the manifest of the output at `path` beside it. Its field `output` must be that path."""
    file = NewFile(manifest_path(path))
    try:
        file.write(f"{manifest.model_dump_json(indent=2)}\n".encode())
        file.complete()
    except BaseException:
        file.discard()
        raise


def manifest_path(path: str) -> str:
    """Return the path of the manifest of an output, which is beside it."""
    return f"{path.removesuffix('/').removesuffix('.jsonl')}.manifest.json"


def check_replaceable(output: str) -> None:
    """Raise a ConfigurationError for a link, and for an existing file whose manifest shows no run that wrote it."""
    fs, _ = find_file_system(output)
    places = [output, manifest_path(output)]
    if is_local(fs) and any(os.path.realpath(place) != place for place in places):
        raise ConfigurationError(
            f"output {redact_address(output)!r} is a link.", hint="Name the file that it points to."
        )
    try:
        if not any(fs.exists(place) for place in places):
            return
        written = _AnyManifest.model_validate_json(fs.cat_file(places[1])).output or ""
    except (FileNotFoundError, ConfigurationError):
        written = ""
    except Exception as error:  # noqa: BLE001 (each file system has errors of its own)
        raise unreadable_error(output, error) from None
    if output not in {written, os.path.realpath(written)}:
        raise ConfigurationError(
            f"output {redact_address(output)!r} exists already, and no run of this package wrote it.",
            hint="Name another file. The deployment's own parameters may name, and replace, any file.",
        )


def unreadable_error(output: str, error: Exception) -> ConfigurationError:
    """Return the error for an output of which this process cannot find out whether it exists, and who wrote it."""
    return ConfigurationError(
        f"output {redact_address(output)!r} may exist already, and cannot be read: {describe_error(error)}.",
        hint="Give this process read access, or name another place. Nothing was replaced.",
    )


class NewFile:
    """A file that appears under its name, in place of an earlier one, once it is complete."""

    def __init__(self, url: str) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(url)
        self._is_local = is_local(self._fs)
        self._written_as = self._path if protocol(url) in _OBJECT_STORES else _unfinished(self._path)
        if self._is_local:
            self._fs.makedirs(posixpath.dirname(self._path), exist_ok=True)
            remove_abandoned(self._path)
        self.file: IO[bytes] = self._fs.open(self._written_as, "wb")
        if self._is_local:
            lock_unfinished(self.file.fileno())

    def write(self, data: bytes) -> None:
        self.file.write(data)

    def complete(self) -> None:
        """Rename the file to its final name."""
        if self._is_local:
            self.file.flush()
            os.fsync(self.file.fileno())  # otherwise a crash of the machine could leave an empty file of that name
        self.file.close()
        if self._is_local:
            os.replace(self._written_as, self._path)  # noqa: PTH105 (a path of fsspec's)
        elif self._written_as != self._path:
            self._fs.mv(self._written_as, self._path)

    def discard(self) -> None:
        """Remove the unfinished file, best effort, so that the error that led here is the one to be raised."""
        if self._written_as == self._path:
            with suppress(Exception):
                self.file.discard()  # type: ignore[attr-defined]  # closing it would save it
            self.file.closed = True  # type: ignore[misc]  # or it would be closed in the garbage
            return
        with suppress(Exception):
            self.file.close()
        with suppress(Exception):
            self._fs.rm_file(self._written_as)


def _unfinished(path: str) -> str:
    """Return a name for a file that is to replace `path`; another one each time, as several writers may be at work."""
    return f"{path}.{uuid4().hex[:8]}.unfinished"


def lock_unfinished(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed. Return False if another writer has locked it."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def remove_abandoned(path: str) -> None:
    """Remove the unfinished files and folders of killed writers of this output."""
    pattern = re.compile(rf"{re.escape(Path(path).name)}\.[0-9a-f]{{8}}\.unfinished(\.earlier)?")
    with suppress(OSError):
        for entry in Path(path).parent.iterdir():
            # A new file may not be locked yet.
            if pattern.fullmatch(entry.name) and time.time() - entry.lstat().st_mtime > _ABANDONED_S:
                _remove_if_unlocked(entry)


def _remove_if_unlocked(entry: Path) -> None:
    descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if lock_unfinished(descriptor):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    finally:
        os.close(descriptor)


def is_local(fs: Any) -> bool:
    """Return whether this fsspec file system is the local one."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
