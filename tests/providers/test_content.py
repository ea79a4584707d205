"""The content of files: the type, size and hash found before a file is sent, and the errors of unusable files."""

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


async def examine_one(source: Source, cache: ContentCache | None = None) -> Content:
    """Examine one source."""
    (found,) = await content.examine([source], cache)
    return found


@pytest.fixture(autouse=True)
def pollux_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


def write_file(path: Path, data: bytes, age_s: float = 60.0) -> Source:
    """Write a file that was last modified `age_s` seconds ago."""
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
async def test_the_mime_type_is_found_from_content_and_name(
    tmp_path: Path, name: str, data: bytes, mime_type: str
) -> None:
    """The content decides where the name has no known suffix or a wrong one; the name decides between similar types."""
    assert (await examine_one(write_file(tmp_path / name, data))).mime_type == mime_type


async def test_a_mime_type_that_the_caller_sets_is_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"# Title")
    source = Source.from_file(tmp_path / "notes.txt", mime_type="text/markdown")
    assert (await examine_one(source)).mime_type == "text/markdown"
    assert (await examine_one(Source.model_validate_json(source.model_dump_json()))).mime_type == "text/markdown"


async def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content cache finds its hash by path, size and modification time."""
    source = write_file(tmp_path / "report.pdf", PDF)
    first = await examine_one(source, open_content_cache())
    reads: list[str] = []
    original = content._read

    def read_counting(name: str, pulse: Pulse) -> Content:
        reads.append(name)
        return original(name, pulse)

    monkeypatch.setattr(content, "_read", read_counting)
    assert await examine_one(source, open_content_cache()) == first
    assert reads == []
    write_file(tmp_path / "report.pdf", PDF + b", more")
    assert (await examine_one(source, open_content_cache())).sha256 != first.sha256
    assert len(reads) == 1


async def test_a_file_modified_just_now_is_not_cached(tmp_path: Path) -> None:
    """Within one tick of the file system's clock a second write leaves the modification time unchanged."""
    source = write_file(tmp_path / "report.pdf", b"%PDF-1.7 one", age_s=0)
    first = await examine_one(source, open_content_cache())
    write_file(tmp_path / "report.pdf", b"%PDF-1.7 two", age_s=0)
    assert (await examine_one(source, open_content_cache())).sha256 != first.sha256


def test_a_source_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file"):
        Source.from_file(tmp_path / "gone.pdf")


async def test_a_file_missing_on_the_worker_names_the_machine(tmp_path: Path) -> None:
    """The source was made on another machine; the error suggests shared storage."""
    elsewhere = Source(source_type="file", uri=str(tmp_path / "gone.pdf"))
    with pytest.raises(SourceError, match=r"no file .*gone\.pdf.* on this machine \(.+\).*s3://"):
        await examine_one(elsewhere)


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory is refused when the source is made, and again when it is read on a worker."""
    with pytest.raises(SourceError, match="is a directory"):
        Source.from_file(tmp_path)
    with pytest.raises(SourceError, match=r"directory.*one by one"):
        await examine_one(Source(source_type="file", uri=str(tmp_path)))


async def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="empty"):
        await examine_one(write_file(tmp_path / "empty.pdf", b""))


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
async def test_a_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    source = write_file(tmp_path / "secret.pdf", PDF)
    (tmp_path / "secret.pdf").chmod(0)
    with pytest.raises(SourceError, match="may not be read"):
        await examine_one(source)


async def test_a_broken_link_has_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "link.pdf").symlink_to(tmp_path / "gone.pdf")
    with pytest.raises(SourceError, match="a broken link"):
        await examine_one(Source(source_type="file", uri=str(tmp_path / "link.pdf")))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
async def test_a_named_pipe_is_refused_unopened(tmp_path: Path) -> None:
    """Opening a pipe would block until another process writes to it."""
    os.mkfifo(tmp_path / "pipe.pdf")
    with pytest.raises(SourceError, match="not a regular file"):
        await examine_one(Source(source_type="file", uri=str(tmp_path / "pipe.pdf")))


@pytest.mark.parametrize(
    "name", ["a b.pdf", "ünï©ode-日本.pdf", "per%20cent#?.pdf", "new\nline.pdf", "-dash.pdf", "quote'\".pdf"]
)
async def test_paths_with_unusual_characters_are_read_and_sent(
    tmp_path: Path, name: str, config: MakeConfig, sim: Simulator
) -> None:
    source = write_file(tmp_path / name, PDF)
    assert (await run_many(["What?"], sources=[source], config=config("openai"))).status == "ok"
    assert len(sim.files) == 1


@pytest.mark.parametrize("address", ["https://user:hunter2@example.com/a.pdf", "s3://key:hunter2@bucket/a.pdf"])
def test_an_address_with_credentials_is_refused_without_repeating_them(address: str) -> None:
    """Addresses are stored and logged."""
    for make in (Source.from_file, Source.from_uri):
        with pytest.raises(SourceError, match="password") as caught:
            make(address)
        assert "hunter2" not in str(caught.value)


async def test_an_unknown_scheme_is_refused_by_name() -> None:
    with pytest.raises(SourceError, match="nonsense"):
        await examine_one(Source.from_file("nonsense://bucket/a.pdf"))


@pytest.mark.parametrize(("address", "extra"), [("s3://bucket/a.pdf", "s3"), ("gs://bucket/a.pdf", "gcs")])
async def test_a_missing_file_system_names_the_extra_to_install(address: str, extra: str) -> None:
    with pytest.raises(SourceError, match=rf"pollux-flows\[{extra}\]"):
        await examine_one(Source.from_file(address))


async def test_an_address_without_a_file_has_its_own_error() -> None:
    with pytest.raises(SourceError, match=r"nothing at 'memory://reports/gone\.pdf'"):
        await examine_one(Source.from_file("memory://reports/gone.pdf"))


async def test_ten_thousand_sources_reach_the_request(tmp_path: Path, config: MakeConfig, sim: Simulator) -> None:
    """The files are read concurrently, within seconds, with few of them open at a time."""
    sources = []
    for index in range(10_000):
        path = tmp_path / f"{index}.md"
        path.write_text(f"Note {index}.")
        sources.append(Source.from_file(path))
    envelope = await run_many(["Which note is last?"], sources=sources, config=config("openai", timeout_s=60.0))
    assert envelope.status == "ok"
    assert len(sim.requests[0].body["input"][0]["content"]) == 10_001


async def test_a_file_beyond_the_size_limit_is_refused_with_the_limit(tmp_path: Path, config: MakeConfig) -> None:
    """The file is refused before it is read into memory or sent, and the error suggests an alternative."""
    with (tmp_path / "big.png").open("wb") as file:
        file.write(PNG)
        file.truncate(21 * 1024 * 1024)
    with pytest.raises(ConfigurationError, match=r"22,020,096 bytes; OpenRouter takes at most 20,971,520.*Use a "):
        await run_many(["?"], sources=[Source.from_file(tmp_path / "big.png")], config=config("openrouter"))


async def test_text_that_is_not_utf_8_is_refused_unsent(tmp_path: Path, config: MakeConfig, sim: Simulator) -> None:
    source = write_file(tmp_path / "latin.csv", b"a,b\n" * 4000 + "Grüße".encode("latin-1"))
    with pytest.raises((SourceError, ConfigurationError)):
        await run_many(["?"], sources=[source], config=config("openai"))
    assert [request for request in sim.requests if request.operation == "generate"] == []


async def test_hashing_a_large_file_does_not_block_the_event_loop(tmp_path: Path) -> None:
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
    await asyncio.sleep(0)  # let it start
    await examine_one(Source.from_file(path))
    ticking.cancel()
    # The median, because on a busy machine the longest gap may have another cause.
    assert len(gaps) >= 10
    assert sorted(gaps)[len(gaps) // 2] < 0.1


def test_a_source_reads_a_file_that_fsspec_wrote_in_memory() -> None:
    with fsspec.open("memory://reports/here.pdf", "wb") as file:
        file.write(PDF)
    assert asyncio.run(examine_one(Source.from_file("memory://reports/here.pdf"))).size_bytes == len(PDF)


async def test_a_file_of_whitespace_counts_as_empty(tmp_path: Path) -> None:
    """Providers refuse such a file as text."""
    (tmp_path / "blank.md").write_bytes(b"  \n\n")
    with pytest.raises(SourceError, match=r"blank\.md' is empty"):
        await examine_one(Source.from_file(tmp_path / "blank.md"))
