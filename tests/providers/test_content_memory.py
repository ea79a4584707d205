"""The content cache is optional: without it files are read again. Only uploads need the state, for the ledger."""

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
    """Return files that were last modified a minute ago."""
    then = time.time() - 60
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / name).write_bytes(PDF + name.encode())
        os.utime(tmp_path / name, (then, then))
    return [Source.from_file(tmp_path / name) for name in ("a.pdf", "b.pdf")]


def put_a_file_in_its_place(home: Path, _: pytest.MonkeyPatch) -> None:
    home.touch()


def fill_the_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def raise_disk_full(*_: Any, **__: Any) -> None:
        raise disk_full_error(home)

    monkeypatch.setattr(DiskStore, "put_many", raise_disk_full)
    monkeypatch.setattr(DiskStore, "swap", raise_disk_full)
    monkeypatch.setattr(DiskStore, "add", raise_disk_full)
    monkeypatch.setattr(DiskStore, "put", raise_disk_full)
    monkeypatch.setattr(ContentCache, "put_many", raise_disk_full)


def damage_databases(home: Path, _: pytest.MonkeyPatch) -> None:
    for folder in ("state", "contents"):
        (home / folder).mkdir(parents=True)
        (home / folder / "cache.db").write_bytes(b"no database" * 1000)


def count_cached() -> int:
    with Cache(str(open_content_cache().folder)) as cache:
        return len(cache)


@pytest.fixture(params=[put_a_file_in_its_place, fill_the_disk, damage_databases])
def unusable_home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set POLLUX_HOME to a place where nothing can be stored."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    break_home: Callable[[Path, pytest.MonkeyPatch], None] = request.param
    break_home(tmp_path / "pollux", monkeypatch)


@pytest.mark.usefixtures("unusable_home")
async def test_files_are_read_without_a_usable_cache(
    sources: list[Source], config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning names the reason, and the files are read again in each run."""
    caplog.set_level(logging.WARNING, logger="pollux_flows")
    assert None not in await read_sources(make_request(["What?"], target=config("openrouter").target, sources=sources))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("The contents of files are not cached, so they will be read again: ")
    assert "POLLUX_HOME" in warning or "Remove that folder" in warning


@pytest.mark.usefixtures("unusable_home")
async def test_an_upload_without_a_usable_state_is_refused(
    sources: list[Source], config: MakeConfig, sim: Simulator
) -> None:
    """Without a ledger entry the file could be left behind, or uploaded again and again."""
    with pytest.raises(ConfigurationError, match=r"State cannot be stored|disk is full|is damaged"):
        await run("What is it?", source=sources[0], config=config("openai"))
    assert sim.files == []


@pytest.mark.usefixtures("unusable_home")
async def test_forget_does_not_fail_without_a_cache(sources: list[Source]) -> None:
    """The caller of `forget` has an error of its own to raise."""
    await forget(sources[0])


async def test_each_file_is_cached_once_by_name_and_version(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    first = await examine([*sources, *sources], open_content_cache())
    assert first[:2] == first[2:]
    assert count_cached() == 2
    monkeypatch.setattr("pollux_flows.files.content._read", None)
    assert await examine(sources, open_content_cache()) == first[:2]


async def test_a_new_reading_version_reads_cached_files_again(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later version of this project may read more from the bytes than an earlier one."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    await examine(sources, open_content_cache())
    monkeypatch.setattr("pollux_flows.files.content._READING", 10**6)
    await examine(sources, open_content_cache())
    assert count_cached() == 4
