"""Files in other file systems: what goes wrong while they are read, and when they are believed to be unchanged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import Source, SourceError, run
from pollux_flows.config import ProviderName
from pollux_flows.files.content import Content, changed_error, examine, forget, load, open_file
from pollux_flows.simulator import Simulator
from pollux_flows.state.content_cache import open_content_cache
from tests.loopback import SDKS, MakeConfig
from tests.providers.shelf import Shelf
from tests.test_address import all_said

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 20_000
ODD_ERRORS = [
    OSError("connection reset by s3://key:hunter2@bucket/a.pdf?sig=hunter2"),
    PermissionError("token expired"),
    ValueError("unexpected block"),
    RuntimeError(),
]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


async def look(source: Source) -> Content:
    (found,) = await examine([source], open_content_cache())
    return found


@pytest.mark.parametrize("error", ODD_ERRORS, ids=lambda error: type(error).__name__)
async def test_what_fails_in_the_middle_is_said_in_words(shelf: Shelf, error: Exception) -> None:
    """Whatever kind of error it is, with the file's name and without what is secret."""
    source = shelf.put("march.pdf", PDF)
    shelf.fails, shelf.after = error, 2_000_000
    for read in (look(source), load(source, Content(sha256="", size_bytes=len(PDF), mime_type="application/pdf"))):
        with pytest.raises(SourceError, match=r"'shelf://march\.pdf' (cannot|may not) be read: ") as caught:
            await read
        assert "hunter2" not in all_said(caught.value)


@pytest.mark.parametrize("provider", SDKS)
async def test_what_fails_in_the_middle_of_an_upload_is_the_files_error(
    provider: ProviderName,
    config: MakeConfig,
    sim: Simulator,
    shelf: Shelf,
) -> None:
    """The provider did nothing wrong, and is not asked again and again."""
    source = shelf.put("march.pdf", PDF)
    shelf.fails, shelf.after, shelf.at_open = OSError("the disk is broken"), 2_000_000, 2
    with pytest.raises(SourceError, match=r"'shelf://march\.pdf' cannot be read: OSError: the disk is broken"):
        await run("What is it?", source=source, config=config(provider))
    assert shelf.opened == 2
    assert [request for request in sim.requests if request.operation == "generate"] == []


async def test_a_local_disk_that_fails_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for what lies on this machine."""
    from pollux_flows.files import place

    (tmp_path / "a.pdf").write_bytes(PDF)
    monkeypatch.setattr(place, "_open", lambda _: Path("/proc/self/mem").open("rb", 0))  # noqa: SIM115
    with pytest.raises(SourceError, match=r"a\.pdf' cannot be read: OSError: .*Input/output error"):
        await look(Source.from_file(tmp_path / "a.pdf"))


async def test_a_reader_goes_back_and_forth_in_what_lies_elsewhere(shelf: Shelf) -> None:
    """In any steps."""
    reader = await open_file(shelf.put("march.pdf", PDF))
    assert reader.seek(0, 2) == len(PDF)
    reader.seek(0)
    assert b"".join(iter(lambda: reader.read(70_000), b"")) == PDF
    assert reader.tell() == len(PDF)
    reader.close()


# --- What is believed ---------------------------------------------------------------------------------------

LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.mark.parametrize(
    "told",
    [
        {"ETag": '"1"'},
        {"generation": 17},
        {"mtime": LONG_AGO},
        {"mtime": LONG_AGO.replace(tzinfo=None)},
        {"mtime": LONG_AGO.timestamp()},
        {"mtime": int(LONG_AGO.timestamp())},
        {"updated": LONG_AGO.isoformat()},
        {"updated": LONG_AGO.isoformat().replace("+00:00", "Z")},
        {"LastModified": LONG_AGO, "ETag": '"1"'},
    ],
)
async def test_a_version_that_is_old_enough_is_believed(shelf: Shelf, told: dict[str, Any]) -> None:
    """In whatever form the file system tells it; another one is not."""
    source, shelf.told = shelf.put("march.pdf", PDF), told
    first = await look(source)
    assert await look(source) == first
    assert shelf.opened == 1
    shelf.told = {name: f"another {value}" for name, value in told.items()}
    await look(source)
    assert shelf.opened == 2


@pytest.mark.parametrize(
    "tell",
    [
        lambda _: {},
        lambda _: {"created": LONG_AGO},
        lambda now: {"mtime": now},
        lambda now: {"mtime": int(now.timestamp())},
        lambda now: {"mtime": now + timedelta(days=1)},
        lambda _: {"mtime": "some day"},
        lambda _: {"mtime": []},
        lambda now: {"LastModified": now, "ETag": '"1"'},
    ],
)
async def test_a_young_version_is_not_believed(shelf: Shelf, tell: Callable[[datetime], dict[str, Any]]) -> None:
    """Within a second of a coarse clock the file may change and look the same; nor is a time that nobody can read."""
    source, shelf.told = shelf.put("march.pdf", PDF), tell(datetime.now(UTC))
    first = await look(source)
    shelf.put("march.pdf", PDF[::-1])
    assert (await look(source)).sha256 != first.sha256


async def test_a_file_system_that_tells_nothing_is_read_all_the_same(
    shelf: Shelf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is wrong with it shows when it is read."""
    source = shelf.put("march.pdf", PDF)
    monkeypatch.setattr(shelf, "told", None)  # which info() cannot unpack
    assert (await look(source)).size_bytes == len(PDF)


async def test_what_was_found_changed_is_not_believed_again(shelf: Shelf) -> None:
    """The version did not tell, so what is remembered under it is forgotten."""
    source, shelf.told = shelf.put("march.pdf", PDF), {"ETag": '"the same for ever"'}
    first = await look(source)
    shelf.put("march.pdf", PDF[::-1])
    assert await look(source) == first
    with pytest.raises(SourceError, match="changed while it was being sent"):
        await load(source, first)
    assert (await look(source)).sha256 != first.sha256


async def test_forgetting_can_be_asked_for(shelf: Shelf) -> None:
    """By who noticed it during an upload."""
    source, shelf.told = shelf.put("march.pdf", PDF), {"ETag": '"the same for ever"'}
    await look(source)
    await look(source)
    assert shelf.opened == 1
    await forget(source)
    await look(source)
    assert shelf.opened == 2
    assert "changed" in str(changed_error(source))


async def test_a_file_that_grows_while_it_is_loaded_is_not_read_to_its_end(shelf: Shelf) -> None:
    """Nobody knows how long it will be, and it is to be held in memory."""
    source = shelf.put("march.pdf", PDF)
    first = await look(source)
    shelf.put("march.pdf", PDF * 20)
    shelf.fails, shelf.after, shelf.at_open = OSError("read too far"), len(PDF) * 10, 2
    with pytest.raises(SourceError, match="changed"):
        await load(source, first)
