"""Memory: what was read before is a convenience. Without it all goes on, but for uploads, which need the ledger."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diskcache import Cache

from pollux_flows import ConfigurationError, Source, run
from pollux_flows.files.content import examine, forget
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.simulator import Simulator
from pollux_flows.state.content_cache import ContentCache, open_content_cache
from pollux_flows.state.disk import DiskStore
from pollux_flows.state.home import disk_full_error
from tests.loopback import MakeConfig

PDF = b"%PDF-1.7\nsome pages"


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Files that nobody has touched for a while."""
    then = time.time() - 60
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / name).write_bytes(PDF + name.encode())
        os.utime(tmp_path / name, (then, then))
    return [Source.from_file(tmp_path / name) for name in ("a.pdf", "b.pdf")]


def is_a_file(home: Path, _: pytest.MonkeyPatch) -> None:
    home.touch()


def is_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_room(*_: Any, **__: Any) -> None:
        raise disk_full_error(home)

    monkeypatch.setattr(DiskStore, "put_many", no_room)
    monkeypatch.setattr(DiskStore, "swap", no_room)
    monkeypatch.setattr(DiskStore, "add", no_room)
    monkeypatch.setattr(DiskStore, "put", no_room)
    monkeypatch.setattr(ContentCache, "put_many", no_room)


def is_damaged(home: Path, _: pytest.MonkeyPatch) -> None:
    for folder in ("state", "contents"):
        (home / folder).mkdir(parents=True)
        (home / folder / "cache.db").write_bytes(b"no database" * 1000)


def count_cached() -> int:
    with Cache(str(open_content_cache().folder)) as cache:
        return len(cache)


@pytest.fixture(params=[is_a_file, is_full, is_damaged])
def unusable(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A POLLUX_HOME where nothing can be kept."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    make: Callable[[Path, pytest.MonkeyPatch], None] = request.param
    make(tmp_path / "pollux", monkeypatch)


@pytest.mark.usefixtures("unusable")
async def test_what_cannot_be_remembered_is_read(
    sources: list[Source], config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time, and one warning says why."""
    caplog.set_level(logging.WARNING, logger="pollux_flows")
    assert None not in await read_sources(make_request(["What?"], target=config("openrouter").target, sources=sources))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("The contents of files are not cached, so they will be read again: ")
    assert "POLLUX_HOME" in warning or "Remove that folder" in warning


@pytest.mark.usefixtures("unusable")
async def test_an_upload_does_and_says_so(sources: list[Source], config: MakeConfig, sim: Simulator) -> None:
    """A file that nobody wrote down could be left behind, or uploaded again and again."""
    with pytest.raises(ConfigurationError, match=r"State cannot be stored|disk is full|is damaged"):
        await run("What is it?", source=sources[0], config=config("openai"))
    assert sim.files == []


@pytest.mark.usefixtures("unusable")
async def test_forgetting_fails_quietly(sources: list[Source]) -> None:
    """Who forgets has something worse to tell."""
    await forget(sources[0])


async def test_files_are_remembered_by_name_and_version(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, however often it is given."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    first = await examine([*sources, *sources], open_content_cache())
    assert first[:2] == first[2:]
    assert count_cached() == 2
    monkeypatch.setattr("pollux_flows.files.content._read", None)
    assert await examine(sources, open_content_cache()) == first[:2]


async def test_another_way_of_reading_reads_again(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an older version saw in the same bytes may not be what this one sees."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    await examine(sources, open_content_cache())
    monkeypatch.setattr("pollux_flows.files.content._READING", 10**6)
    await examine(sources, open_content_cache())
    assert count_cached() == 4
