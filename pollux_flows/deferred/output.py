"""Output: a job's answers as lines of JSON, where the caller wants them, and the numbers beside them."""

from __future__ import annotations

import asyncio
import json
import os
import posixpath
from collections.abc import Iterable
from typing import IO, Any, cast

import fsspec

from pollux_flows import access
from pollux_flows.address import check_no_credentials, is_path, shown
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.keep import Shelf, pieces
from pollux_flows.deferred.manifest import Manifest
from pollux_flows.deferred.results import Item
from pollux_flows.errors import ConfigurationError, SourceError


def output_of(output: str, name: str) -> str:
    """The file for a job's lines: `output` itself or, if that is a folder, one in it."""
    return f"{output}{name}.jsonl" if output.endswith("/") else output


async def write_output(shelf: Shelf, job: Job, output: str, manifest: Manifest) -> None:
    """Write a line a prompt to `output`, and the manifest beside it. What is there already is replaced, as a whole.

    Where `job.guards_output`, only a file with its manifest is replaced. That is then written first: a pass that is
    killed after the lines must find them to be its own.
    """
    path = output_of(output, job.name)
    try:
        if job.guards_output:
            await asyncio.to_thread(_check_replaceable, path)
            await _write_manifest(path, job, manifest)
        async with _written_to(path, job.name) as file:
            async for items in pieces(shelf, job):
                file.write(await asyncio.to_thread(_lines, items))
        await _write_manifest(path, job, manifest)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigurationError(
            f"The answers of {job.name} could not be written to {shown(path)}: {type(error).__name__}: {error}",
            hint="Make room, or give the worker the right to write there: it is tried again. Or cancel the job: its "
            "answers are kept all the same.",
        ) from None


def checked_output(output: str) -> str:
    """The place for the answers, whole; or a ConfigurationError, before anything is handed in."""
    if not output.strip():
        raise ConfigurationError("output is blank.", hint="Write a path or an address, or leave it out.")
    try:
        check_no_credentials(output, path=is_path(output))
        access.check_protocols(output)
        fs, path = fsspec.core.url_to_fs(output)
        if access.guards_output(output):
            path = os.path.realpath(path) if _is_local(fs) else path
            access.check_output(output, path if _is_local(fs) else None)
            if not output.endswith("/"):
                _check_replaceable(path if _is_local(fs) else output)
    except SourceError as error:
        raise ConfigurationError(f"output cannot be used: {error.message}", hint=error.hint) from None
    except (ValueError, ImportError) as error:
        raise ConfigurationError(
            f"output cannot be {shown(output)!r}: {error}",
            hint="Write a path, or an address such as s3://bucket/answers.jsonl, whose package is installed.",
        ) from None
    if not _is_local(fs):
        return output
    folder = output.endswith("/")
    if not folder and fs.isdir(path):
        raise ConfigurationError(
            f"output {path!r} is a folder.", hint="Write a slash at its end, or name a file in it."
        )
    return f"{path}/" if folder else str(path)  # whoever collects may be at home elsewhere


async def _write_manifest(path: str, job: Job, manifest: Manifest) -> None:
    async with _written_to(_manifest_of(path), job.name) as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")


def _manifest_of(path: str) -> str:
    return f"{path.removesuffix('.jsonl')}.manifest.json"


def _check_replaceable(output: str) -> None:
    """Refuse to write over a file that no job wrote, which is one without its manifest, or through a link."""
    fs, _ = fsspec.core.url_to_fs(output)
    places = [output, _manifest_of(output)]
    if _is_local(fs) and any(os.path.realpath(place) != place for place in places):
        raise ConfigurationError(f"output {shown(output)!r} is a link.", hint="Name the file that it leads to.")
    if not any(fs.exists(place) for place in places):
        return
    try:
        written = Manifest.model_validate_json(fs.cat_file(places[1])).output or ""
    except (FileNotFoundError, ConfigurationError):
        written = ""
    if output not in {written, os.path.realpath(written)}:
        raise ConfigurationError(
            f"output {shown(output)!r} is there already, and no job of this package wrote it.",
            hint="Name another file. The deployment's own parameters may name any, and replace what is there.",
        )


def line_of(item: Item) -> str:
    """One line of the output."""
    outcome, answer, problem = item.outcome, item.outcome.answer, item.outcome.problem
    said = {
        "index": outcome.index,
        "status": item.bucket,
        "answer": None if answer is None else answer.text,
        "structured": item.structured,
        "finish_reason": answer and answer.finish_reason,
        "usage": answer.usage if answer else {},
        "cost_usd": outcome.cost_usd,
        "error": problem.message if problem else item.warning,
    }
    return json.dumps(said, ensure_ascii=False)


class _written_to:  # noqa: N801 (used like a function)
    """A text file that is there only once it is whole."""

    def __init__(self, url: str, by: str) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(url)
        # An object store shows an object when it is closed; a disk shows a file from its first byte.
        self._local = _is_local(self._fs)
        self._writes = f"{self._path}.{by}.unfinished" if self._local else self._path

    async def __aenter__(self) -> IO[str]:
        if self._local and (folder := posixpath.dirname(self._path)):
            self._fs.makedirs(folder, exist_ok=True)
        self._file = cast(IO[str], self._fs.open(self._writes, "w", encoding="utf-8", newline="\n"))
        return self._file

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is not None and not self._local:
            cast(Any, self._file).detach().discard()  # to close it would be to keep it
            return
        self._file.close()
        if kind is None and self._local:
            self._fs.mv(self._writes, self._path)


def _is_local(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _lines(items: Iterable[Item]) -> str:
    return "".join(f"{line_of(item)}\n" for item in items)
