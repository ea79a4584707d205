"""Text sources are sent as UTF-8 without any change, or refused before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pollux_flows import Source, SourceError, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.files import content
from pollux_flows.files.content import Content, examine
from pollux_flows.files.file_threads import Pulse
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.simulator import Simulator
from pollux_flows.state.content_cache import open_content_cache
from tests.loopback import MakeConfig, sent

PDF = b"%PDF-1.7\nsome pages"


@pytest.fixture(autouse=True)
def pollux_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


WriteFile = Callable[[str, bytes], Source]


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    def write(name: str, data: bytes) -> Source:
        (tmp_path / name).write_bytes(data)
        return Source.from_file(tmp_path / name)

    return write


NOT_UTF_8 = {
    "latin-1.csv": b"a,b\n" * 4000 + "Grüße".encode("latin-1"),
    "utf-16.csv": "a,b\nGrüße".encode("utf-16"),
    "late.csv": b"a,b\n" * 1_000_000 + b"\xff",
    "cut off.csv": b"a,b\n" * 4000 + "ü".encode()[:1],
}


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("name", NOT_UTF_8)
async def test_text_that_is_not_utf_8_is_refused_before_anything_is_sent(
    provider: ProviderName, name: str, write_file: WriteFile, config: MakeConfig, sim: Simulator
) -> None:
    """Invalid bytes may be anywhere in the file, and a good file may precede it."""
    sources = [write_file("report.pdf", PDF), write_file(name, NOT_UTF_8[name])]
    with pytest.raises(SourceError, match=r"\.csv' would be sent as text, and is not UTF-8\. Save it as UTF-8"):
        await run_many(["?"], sources=sources, config=config(provider))
    assert sim.requests == []


async def test_cached_text_that_is_not_utf_8_is_refused_unread(
    write_file: WriteFile, config: MakeConfig, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content cache stores whether a file is UTF-8."""
    monkeypatch.setattr("pollux_flows.files.place._SETTLED_S", -1.0)
    source = write_file("latin-1.csv", NOT_UTF_8["latin-1.csv"])
    for _ in range(2):
        with pytest.raises(SourceError, match="not UTF-8"):
            await run("?", source=source, config=config("openai"))
        monkeypatch.setattr(content, "_read", None)  # so that a second read would fail
    assert sim.requests == []


async def test_a_cache_entry_without_the_utf8_field_is_read_again(
    write_file: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The incomplete entry is replaced."""
    monkeypatch.setattr("pollux_flows.files.place._SETTLED_S", -1.0)
    source, cache = write_file("latin-1.csv", NOT_UTF_8["latin-1.csv"]), open_content_cache()
    (first,) = await examine([source], cache)
    key = content._key(str(source.uri), Pulse())
    assert key is not None
    record = (await cache.get_many([key]))[key]
    del record["utf8"]
    await cache.put_many({key: {**record, "sha256": "of something else"}})
    assert Content.model_validate(record).utf8 is None
    assert await examine([source], cache) == [first]
    assert (await cache.get_many([key]))[key]["utf8"] is False


async def test_a_character_split_between_two_pieces_is_valid(
    write_file: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pollux_flows.files.place.PIECE", 3)
    (found,) = await examine([write_file("greek.txt", "αβγδε😀".encode())])
    assert found.utf8 is True


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("text", ["\ufeffa,b\n1,2\n", "a\r\nb\n\x0b", "Grüße 😀"])
async def test_text_is_sent_unchanged(
    provider: ProviderName, text: str, write_file: WriteFile, config: MakeConfig, sim: Simulator
) -> None:
    """A byte order mark and line ends are sent too, so the text matches the file's hash."""
    source = write_file("table.csv", text.encode())
    await run("What?", source=source, config=config(provider))
    assert json.dumps(text) in json.dumps(sent(sim))


async def test_uploaded_text_may_have_any_encoding(write_file: WriteFile, config: MakeConfig, sim: Simulator) -> None:
    """Only text that becomes part of a JSON document has to be UTF-8."""
    source = write_file("latin-1.csv", NOT_UTF_8["latin-1.csv"])
    request = make_request(["?"], target=config("gemini").target, sources=[source])
    (known,) = await read_sources(request)
    assert known is not None
    assert known.utf8 is False
    await run("What?", source=source, config=config("gemini"))
    assert [file.sha256 for file in sim.files] == [known.sha256]
