"""The output of a job: its answers as lines of JSON at a place that the caller names, with a manifest beside them."""

from __future__ import annotations

import asyncio
import json
import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import fsspec

from pollux_flows import access
from pollux_flows.address import check_no_credentials, is_path, shown
from pollux_flows.deferred.answers import Storage, read_pieces
from pollux_flows.deferred.job import Job, Manifest
from pollux_flows.deferred.results import Item
from pollux_flows.errors import ConfigurationError, SourceError


def output_path(output: str, name: str) -> str:
    """Return the file for a job's answers: `output` itself or, if that is a folder, a file in it."""
    return f"{output}{name}.jsonl" if output.endswith("/") else output


async def write_output(storage: Storage, job: Job, output: str, manifest: Manifest) -> None:
    """Write one line per prompt to `output`, and the manifest beside it. An existing file is replaced completely.

    If `job.guards_output`, only a file with its manifest is replaced. The manifest is then written first: a pass that
    follows a killed one must recognise the answers as its own.
    """
    path = output_path(output, job.name)
    try:
        if job.guards_output:
            await asyncio.to_thread(_check_replaceable, path)
            _write_manifest(path, job, manifest)
        with _replace_file(path, job.name) as file:
            async for items in read_pieces(storage, job):
                file.write(await asyncio.to_thread(_make_lines, items))
        _write_manifest(path, job, manifest)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigurationError(
            f"The answers of {job.name} could not be written to {shown(path)}: {type(error).__name__}: {error}",
            hint="Make room, or give the worker the right to write there: the next pass tries again. Or cancel "
            "the job: its answers are saved all the same.",
        ) from None


def resolve_output(output: str) -> str:
    """Return `output` as an absolute place, or raise a ConfigurationError, before anything is submitted."""
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
    return f"{path}/" if folder else str(path)  # a collector may run in another directory


def _write_manifest(path: str, job: Job, manifest: Manifest) -> None:
    with _replace_file(_manifest_path(path), job.name) as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")


def _manifest_path(path: str) -> str:
    return f"{path.removesuffix('.jsonl')}.manifest.json"


def _check_replaceable(output: str) -> None:
    """Raise a ConfigurationError for a link, and for a file without a manifest, which no job has written."""
    fs, _ = fsspec.core.url_to_fs(output)
    places = [output, _manifest_path(output)]
    if _is_local(fs) and any(os.path.realpath(place) != place for place in places):
        raise ConfigurationError(f"output {shown(output)!r} is a link.", hint="Name the file that it points to.")
    if not any(fs.exists(place) for place in places):
        return
    try:
        written = Manifest.model_validate_json(fs.cat_file(places[1])).output or ""
    except (FileNotFoundError, ConfigurationError):
        written = ""
    if output not in {written, os.path.realpath(written)}:
        raise ConfigurationError(
            f"output {shown(output)!r} exists already, and no job of this package wrote it.",
            hint="Name another file. The deployment's own parameters may name, and replace, any file.",
        )


def make_line(item: Item) -> str:
    """Return the output line of one prompt."""
    outcome, answer, problem = item.outcome, item.outcome.answer, item.outcome.problem
    line = {
        "index": outcome.index,
        "status": item.bucket,
        "answer": None if answer is None else answer.text,
        "structured": item.structured,
        "finish_reason": answer and answer.finish_reason,
        "usage": answer.usage if answer else {},
        "cost_usd": outcome.cost_usd,
        "error": problem.message if problem else item.warning,
    }
    return json.dumps(line, ensure_ascii=False)


@contextmanager
def _replace_file(url: str, by: str) -> Iterator[IO[str]]:
    """Open a text file that appears only once it is complete."""
    fs, path = fsspec.core.url_to_fs(url)
    is_local = _is_local(fs)
    # An object store shows an object when it is closed; a disk shows a file from its first byte.
    unfinished = f"{path}.{by}.unfinished" if is_local else path
    if is_local:
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
    file = cast(IO[str], fs.open(unfinished, "w", encoding="utf-8", newline="\n"))
    try:
        yield file
    except BaseException:
        if is_local:
            file.close()
        else:
            cast(Any, file).detach().discard()  # closing it would save it
        raise
    file.close()
    if is_local:
        fs.mv(unfinished, path)


def _is_local(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _make_lines(items: Iterable[Item]) -> str:
    return "".join(f"{make_line(item)}\n" for item in items)
