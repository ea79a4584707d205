"""Files in other file systems: read errors, and when an unchanged version is trusted instead of read again."""

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
from tests.test_address import collect_text

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 20_000
ODD_ERRORS = [
    OSError("connection reset by s3://key:hunter2@bucket/a.pdf?sig=hunter2"),
    PermissionError("token expired"),
    ValueError("unexpected block"),
    RuntimeError(),
]


@pytest.fixture(autouse=True)
def pollux_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


async def examine_cached(source: Source) -> Content:
    """Examine the source with the content cache."""
    (found,) = await examine([source], open_content_cache())
    return found


@pytest.mark.parametrize("error", ODD_ERRORS, ids=lambda error: type(error).__name__)
async def test_a_read_error_names_the_file_and_no_secret(shelf: Shelf, error: Exception) -> None:
    """A read that breaks off after 2 MB raises SourceError, for every class of error."""
    source = shelf.put("march.pdf", PDF)
    shelf.error, shelf.readable_bytes = error, 2_000_000
    for read in (
        examine_cached(source),
        load(source, Content(sha256="", size_bytes=len(PDF), mime_type="application/pdf")),
    ):
        with pytest.raises(SourceError, match=r"'shelf://march\.pdf' (cannot|may not) be read: ") as caught:
            await read
        assert "hunter2" not in collect_text(caught.value)


@pytest.mark.parametrize("provider", SDKS)
async def test_a_read_error_during_an_upload_is_a_source_error(
    provider: ProviderName,
    config: MakeConfig,
    sim: Simulator,
    shelf: Shelf,
) -> None:
    """The upload is not retried, and no generate request is sent."""
    source = shelf.put("march.pdf", PDF)
    shelf.error, shelf.readable_bytes, shelf.failing_from = OSError("the disk is broken"), 2_000_000, 2
    with pytest.raises(SourceError, match=r"'shelf://march\.pdf' cannot be read: OSError: the disk is broken"):
        await run("What is it?", source=source, config=config(provider))
    assert shelf.open_count == 2
    assert [request for request in sim.requests if request.operation == "generate"] == []


async def test_a_read_error_of_a_local_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pollux_flows.files import place

    (tmp_path / "a.pdf").write_bytes(PDF)
    monkeypatch.setattr(place, "_open", lambda _: Path("/proc/self/mem").open("rb", 0))  # noqa: SIM115
    with pytest.raises(SourceError, match=r"a\.pdf' cannot be read: OSError: .*Input/output error"):
        await examine_cached(Source.from_file(tmp_path / "a.pdf"))


async def test_a_remote_file_can_be_sought_and_read_in_steps(shelf: Shelf) -> None:
    reader = await open_file(shelf.put("march.pdf", PDF))
    assert reader.seek(0, 2) == len(PDF)
    reader.seek(0)
    assert b"".join(iter(lambda: reader.read(70_000), b"")) == PDF
    assert reader.tell() == len(PDF)
    reader.close()


# --- When an earlier reading is trusted ---------------------------------------------------------------------

LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.mark.parametrize(
    "metadata",
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
async def test_an_old_version_is_trusted_without_reading(shelf: Shelf, metadata: dict[str, Any]) -> None:
    """The version may be an ETag, a generation or a time in any format; another version is read again."""
    source, shelf.metadata = shelf.put("march.pdf", PDF), metadata
    first = await examine_cached(source)
    assert await examine_cached(source) == first
    assert shelf.open_count == 1
    shelf.metadata = {name: f"another {value}" for name, value in metadata.items()}
    await examine_cached(source)
    assert shelf.open_count == 2


@pytest.mark.parametrize(
    "make_metadata",
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
async def test_a_recent_or_unreadable_version_is_not_trusted(
    shelf: Shelf, make_metadata: Callable[[datetime], dict[str, Any]]
) -> None:
    """Within one second of a coarse clock a file may change and keep its modification time."""
    source, shelf.metadata = shelf.put("march.pdf", PDF), make_metadata(datetime.now(UTC))
    first = await examine_cached(source)
    shelf.put("march.pdf", PDF[::-1])
    assert (await examine_cached(source)).sha256 != first.sha256


async def test_a_file_without_metadata_is_read(
    shelf: Shelf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error while the metadata is read does not prevent the file from being read."""
    source = shelf.put("march.pdf", PDF)
    monkeypatch.setattr(shelf, "metadata", None)  # which info() cannot unpack
    assert (await examine_cached(source)).size_bytes == len(PDF)


async def test_a_file_found_changed_is_forgotten(shelf: Shelf) -> None:
    """The version stayed the same although the content changed, so the entry in the content cache is removed."""
    source, shelf.metadata = shelf.put("march.pdf", PDF), {"ETag": '"the same for ever"'}
    first = await examine_cached(source)
    shelf.put("march.pdf", PDF[::-1])
    assert await examine_cached(source) == first
    with pytest.raises(SourceError, match="changed while it was being sent"):
        await load(source, first)
    assert (await examine_cached(source)).sha256 != first.sha256


async def test_forget_removes_a_file_from_the_content_cache(shelf: Shelf) -> None:
    """Uploads call `forget` when they notice a change."""
    source, shelf.metadata = shelf.put("march.pdf", PDF), {"ETag": '"the same for ever"'}
    await examine_cached(source)
    await examine_cached(source)
    assert shelf.open_count == 1
    await forget(source)
    await examine_cached(source)
    assert shelf.open_count == 2
    assert "changed" in str(changed_error(source))


async def test_a_file_that_grew_is_not_read_to_its_end(shelf: Shelf) -> None:
    """The new length is unknown, and the file would be held in memory."""
    source = shelf.put("march.pdf", PDF)
    first = await examine_cached(source)
    shelf.put("march.pdf", PDF * 20)
    shelf.error, shelf.readable_bytes, shelf.failing_from = OSError("read too far"), len(PDF) * 10, 2
    with pytest.raises(SourceError, match="changed"):
        await load(source, first)
