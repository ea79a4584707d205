"""Content: what is known of a file before it is sent, and every way in which a file can be wrong."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import fsspec
import pytest

from pollux_flows import ConfigurationError, Source, SourceError, run_many
from pollux_flows.files import content
from pollux_flows.files.content import Content
from pollux_flows.files.file_threads import Pulse
from pollux_flows.simulator import Simulator
from pollux_flows.state.content_cache import ContentCache, open_content_cache
from tests.loopback import MakeConfig

PDF = b"%PDF-1.7\nsome pages"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


async def examine(source: Source, cache: ContentCache | None = None) -> Content:
    """One file at a time."""
    (found,) = await content.examine([source], cache)
    return found


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


def write(path: Path, data: bytes, age_s: float = 60.0) -> Source:
    """A file that nobody has touched for a while."""
    path.write_bytes(data)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return Source.from_file(path)


@pytest.mark.parametrize(
    ("name", "data", "mime_type"),
    [
        ("report.pdf", PDF, "application/pdf"),
        ("report", PDF, "application/pdf"),
        ("report.txt", PDF, "application/pdf"),
        ("photo.jpg", PNG, "image/png"),
        ("photo", PNG, "image/png"),
        ("notes.txt", b"Just words.", "text/plain"),
        ("notes.pdf", b"Just words.", "text/plain"),
        ("notes", "Grüße".encode(), "text/plain"),
        ("page.html", b"<!DOCTYPE html><html></html>", "text/html"),
        ("data.json", b'{"a": 1}', "application/json"),
        ("table.csv", b"a,b\n1,2\n", "text/csv"),
        ("film.mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video/mp4"),
        ("sound.wav", b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav"),
        (
            "letter.docx",
            b"PK\x03\x04\x14\0\x06\0",
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        ),
        ("letter.rtf", b"{\\rtf1\\ansi hello}", "application/rtf"),
        ("what", b"\0\1\2\3\4", "application/octet-stream"),
    ],
)
async def test_the_content_says_what_a_file_is(tmp_path: Path, name: str, data: bytes, mime_type: str) -> None:
    """Where the name says nothing, or lies, the content decides; the name chooses among what it may be."""
    assert (await examine(write(tmp_path / name, data))).mime_type == mime_type


async def test_a_stated_type_is_taken_as_it_is(tmp_path: Path) -> None:
    """Whoever says what a file is has the last word."""
    (tmp_path / "notes.txt").write_bytes(b"# Title")
    source = Source.from_file(tmp_path / "notes.txt", mime_type="text/markdown")
    assert (await examine(source)).mime_type == "text/markdown"
    assert (await examine(Source.model_validate_json(source.model_dump_json()))).mime_type == "text/markdown"


async def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hash is remembered by path, size and time; a changed one is read."""
    source = write(tmp_path / "report.pdf", PDF)
    first = await examine(source, open_content_cache())
    reads: list[str] = []
    original = content._read

    def counted(name: str, pulse: Pulse) -> Content:
        reads.append(name)
        return original(name, pulse)

    monkeypatch.setattr(content, "_read", counted)
    assert await examine(source, open_content_cache()) == first
    assert reads == []
    write(tmp_path / "report.pdf", PDF + b", more")
    assert (await examine(source, open_content_cache())).sha256 != first.sha256
    assert len(reads) == 1


async def test_a_file_written_just_now_is_not_remembered(tmp_path: Path) -> None:
    """Within one tick of its clock it may be written again and look the same."""
    source = write(tmp_path / "report.pdf", b"%PDF-1.7 one", age_s=0)
    first = await examine(source, open_content_cache())
    write(tmp_path / "report.pdf", b"%PDF-1.7 two", age_s=0)
    assert (await examine(source, open_content_cache())).sha256 != first.sha256


def test_a_missing_file_is_missed_when_the_source_is_made(tmp_path: Path) -> None:
    """As early as it can be known."""
    with pytest.raises(SourceError, match="no file"):
        Source.from_file(tmp_path / "gone.pdf")


async def test_a_file_that_is_missing_on_the_worker_says_exactly_that(tmp_path: Path) -> None:
    """A source that came from another machine names this one, and the way out."""
    elsewhere = Source(source_type="file", uri=str(tmp_path / "gone.pdf"))
    with pytest.raises(SourceError, match=r"no file .*gone\.pdf.* on this machine \(.+\).*s3://"):
        await examine(elsewhere)


async def test_a_directory_is_no_file(tmp_path: Path) -> None:
    """Neither here nor on the worker."""
    with pytest.raises(SourceError, match="is a directory"):
        Source.from_file(tmp_path)
    with pytest.raises(SourceError, match=r"directory.*one by one"):
        await examine(Source(source_type="file", uri=str(tmp_path)))


async def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """It is most likely somebody's mistake."""
    with pytest.raises(SourceError, match="empty"):
        await examine(write(tmp_path / "empty.pdf", b""))


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
async def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    """With the machine and what to do."""
    source = write(tmp_path / "secret.pdf", PDF)
    (tmp_path / "secret.pdf").chmod(0)
    with pytest.raises(SourceError, match="may not be read"):
        await examine(source)


async def test_a_broken_link_is_told_from_a_missing_file(tmp_path: Path) -> None:
    """What is there is a link to nothing."""
    (tmp_path / "link.pdf").symlink_to(tmp_path / "gone.pdf")
    with pytest.raises(SourceError, match="a broken link"):
        await examine(Source(source_type="file", uri=str(tmp_path / "link.pdf")))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
async def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    """Opening one would hang until somebody writes."""
    os.mkfifo(tmp_path / "pipe.pdf")
    with pytest.raises(SourceError, match="not a regular file"):
        await examine(Source(source_type="file", uri=str(tmp_path / "pipe.pdf")))


@pytest.mark.parametrize(
    "name", ["a b.pdf", "ünï©ode-日本.pdf", "per%20cent#?.pdf", "new\nline.pdf", "-dash.pdf", "quote'\".pdf"]
)
async def test_odd_characters_in_a_path_are_fine(tmp_path: Path, name: str, config: MakeConfig, sim: Simulator) -> None:
    """What the file system takes is read and sent."""
    source = write(tmp_path / name, PDF)
    assert (await run_many(["What?"], sources=[source], config=config("openai"))).status == "ok"
    assert len(sim.files) == 1


@pytest.mark.parametrize("address", ["https://user:hunter2@example.com/a.pdf", "s3://key:hunter2@bucket/a.pdf"])
def test_an_address_with_credentials_is_refused_without_repeating_them(address: str) -> None:
    """Addresses are stored and logged."""
    for make in (Source.from_file, Source.from_uri):
        with pytest.raises(SourceError, match="password") as caught:
            make(address)
        assert "hunter2" not in str(caught.value)


async def test_an_unknown_scheme_is_refused() -> None:
    """With its name."""
    with pytest.raises(SourceError, match="nonsense"):
        await examine(Source.from_file("nonsense://bucket/a.pdf"))


@pytest.mark.parametrize(("address", "extra"), [("s3://bucket/a.pdf", "s3"), ("gs://bucket/a.pdf", "gcs")])
async def test_a_missing_file_system_names_what_to_install(address: str, extra: str) -> None:
    """Optional file systems are extras of this package."""
    with pytest.raises(SourceError, match=rf"pollux-flows\[{extra}\]"):
        await examine(Source.from_file(address))


async def test_nothing_at_an_address_is_told() -> None:
    """The address is fine, the file is not there."""
    with pytest.raises(SourceError, match=r"nothing at 'memory://reports/gone\.pdf'"):
        await examine(Source.from_file("memory://reports/gone.pdf"))


async def test_ten_thousand_sources_are_read(tmp_path: Path, config: MakeConfig, sim: Simulator) -> None:
    """Side by side, within seconds, with few files open at once; all reach the request."""
    sources = []
    for index in range(10_000):
        path = tmp_path / f"{index}.md"
        path.write_text(f"Note {index}.")
        sources.append(Source.from_file(path))
    envelope = await run_many(["Which note is last?"], sources=sources, config=config("openai", timeout_s=60.0))
    assert envelope.status == "ok"
    assert len(sim.requests[0].body["input"][0]["content"]) == 10_001


async def test_too_large_a_file_is_refused_with_the_limit(tmp_path: Path, config: MakeConfig) -> None:
    """The limit, and the way out, before anything is read into memory or sent."""
    with (tmp_path / "big.png").open("wb") as file:
        file.write(PNG)
        file.truncate(21 * 1024 * 1024)
    with pytest.raises(ConfigurationError, match=r"22,020,096 bytes; OpenRouter takes at most 20,971,520.*Use a "):
        await run_many(["?"], sources=[Source.from_file(tmp_path / "big.png")], config=config("openrouter"))


async def test_text_that_is_not_utf_8_is_refused(tmp_path: Path, config: MakeConfig, sim: Simulator) -> None:
    """Rather than sent garbled."""
    source = write(tmp_path / "latin.csv", b"a,b\n" * 4000 + "Grüße".encode("latin-1"))
    with pytest.raises((SourceError, ConfigurationError)):
        await run_many(["?"], sources=[source], config=config("openai"))
    assert [request for request in sim.requests if request.operation == "generate"] == []


async def test_reading_a_large_file_does_not_stop_the_event_loop(tmp_path: Path) -> None:
    """While it is hashed, everything else goes on."""
    path = tmp_path / "big.bin"
    with path.open("wb") as file:
        file.write(b"\0\1")
        file.truncate(256 * 1024 * 1024)
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - before)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)  # it has begun
    await examine(Source.from_file(path))
    ticking.cancel()
    # Not the longest gap: on a busy machine that is the machine's.
    assert len(gaps) >= 10
    assert sorted(gaps)[len(gaps) // 2] < 0.1


def test_files_in_memory_are_written_by_the_same_names() -> None:
    """What fsspec calls a file is what a source calls it."""
    with fsspec.open("memory://reports/here.pdf", "wb") as file:
        file.write(PDF)
    assert asyncio.run(examine(Source.from_file("memory://reports/here.pdf"))).size_bytes == len(PDF)


async def test_a_file_of_blanks_is_empty(tmp_path: Path) -> None:
    """There is nothing in it to look at, and providers refuse it as text."""
    (tmp_path / "blank.md").write_bytes(b"  \n\n")
    with pytest.raises(SourceError, match=r"blank\.md' is empty"):
        await examine(Source.from_file(tmp_path / "blank.md"))
