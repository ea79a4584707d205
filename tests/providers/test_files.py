"""File sources: the provider receives the bytes of the file, once, and no copy is left behind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import (
    APIError,
    CacheError,
    ConfigurationError,
    Options,
    Source,
    SourceError,
    create_cache,
    run,
    run_many,
)
from pollux_flows.config import ProviderName
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.store import open_store
from tests.executing import execute_plan
from tests.loopback import SDKS, MakeConfig, every_provider

ROOT = Path(__file__).parents[2]
PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 10
MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\1" * 4000
TEXT = "Grüße aus der Datei.\n" * 50

on_sdks = pytest.mark.parametrize("provider", SDKS)


@pytest.fixture(autouse=True)
def pollux_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set POLLUX_HOME to a new folder for each test."""
    home = tmp_path / "pollux"
    monkeypatch.setenv("POLLUX_HOME", str(home))
    return home


@pytest.fixture
def pdf(tmp_path: Path) -> Source:
    (tmp_path / "report.pdf").write_bytes(PDF)
    return Source.from_file(tmp_path / "report.pdf")


def read_all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def list_active_files(sim: Simulator) -> list[Any]:
    return [file for file in sim.files if file.state == "active"]


def count_uploads(sim: Simulator) -> int:
    return len(sim.files)


def write_files_of_each_kind(path: Path) -> dict[str, Source]:
    contents = {
        "report.pdf": PDF,
        "photo.png": PNG,
        "film.mp4": MP4,
        "notes.txt": TEXT.encode(),
        "table.csv": b"a,b\n1,2\n",
    }
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return {name: Source.from_file(path / name) for name in contents}


# How each provider receives a file: uploaded, as text or data inside the request, or not at all.
TRANSPORT: dict[ProviderName, dict[str, str]] = {
    "gemini": dict.fromkeys(["report.pdf", "photo.png", "film.mp4", "notes.txt", "table.csv"], "upload"),
    "openai": {
        "report.pdf": "upload",
        "photo.png": "upload",
        "film.mp4": "no",
        "notes.txt": "text",
        "table.csv": "text",
    },
    "anthropic": {
        "report.pdf": "upload",
        "photo.png": "upload",
        "film.mp4": "no",
        "notes.txt": "upload",
        "table.csv": "text",
    },
    "openrouter": {"report.pdf": "data", "photo.png": "data", "film.mp4": "no", "notes.txt": "no", "table.csv": "no"},
    "local": dict.fromkeys(["report.pdf", "photo.png", "film.mp4", "notes.txt", "table.csv"], "no"),
}


@pytest.mark.parametrize("name", ["report.pdf", "photo.png", "film.mp4", "notes.txt", "table.csv"])
@every_provider
async def test_a_file_arrives_unchanged_or_is_refused_unsent(
    provider: ProviderName, name: str, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    source = write_files_of_each_kind(tmp_path)[name]
    content = (tmp_path / name).read_bytes()
    if TRANSPORT[provider][name] == "no":
        with pytest.raises(ConfigurationError, match=r"accepts no|support"):
            await run("What is it?", source=source, config=config(provider))
        assert sim.requests == []
        return
    envelope = await run("What is it?", source=source, config=config(provider))
    assert envelope.status == "ok"
    request = next(request for request in sim.requests if request.operation == "generate")
    match TRANSPORT[provider][name]:
        case "upload":
            assert [file.sha256 for file in sim.files] == [hashlib.sha256(content).hexdigest()]
            assert [file.mime_type for file in sim.files] == [source.mime_type]
        case "text":
            assert content.decode() in collect_strings(request.body)
            assert count_uploads(sim) == 0
        case "data":
            (url,) = [text for text in collect_strings(request.body) if text.startswith("data:")]
            assert base64.b64decode(url.partition(",")[2]) == content
            assert url.startswith(f"data:{source.mime_type};base64,")


def collect_strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in collect_strings(item)]


@on_sdks
async def test_each_file_is_uploaded_once_for_twenty_prompts(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """A second run of the prompts uploads nothing."""
    sources = []
    for index in range(3):
        (tmp_path / f"{index}.pdf").write_bytes(PDF + bytes([index]))
        sources.append(Source.from_file(tmp_path / f"{index}.pdf"))
    prompts = [f"Question {index}?" for index in range(20)]
    envelope = await run_many(prompts, sources=sources, config=config(provider))
    assert (envelope.status, count_uploads(sim)) == ("ok", 3)
    assert (await run_many(prompts, sources=sources, config=config(provider))).status == "ok"
    assert count_uploads(sim) == 3


@on_sdks
async def test_a_copy_of_a_file_is_not_uploaded_again(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path, pdf: Source
) -> None:
    """A copy with changed content is uploaded."""
    (tmp_path / "copy.pdf").write_bytes(PDF)
    await run_many(["One?"], sources=[pdf, Source.from_file(tmp_path / "copy.pdf")], config=config(provider))
    assert count_uploads(sim) == 1
    (tmp_path / "copy.pdf").write_bytes(PDF + b"changed")
    await run_many(["One?"], sources=[pdf, Source.from_file(tmp_path / "copy.pdf")], config=config(provider))
    assert count_uploads(sim) == 2


@on_sdks
async def test_files_are_deleted_at_the_end_of_a_run_with_keep_files_s_0(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The run was the last owner."""
    await run("What is it?", source=pdf, config=config(provider, keep_files_s=0.0))
    assert (count_uploads(sim), list_active_files(sim)) == (1, [])


@on_sdks
async def test_files_are_deleted_after_a_failed_run(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    sim.fail(Fault(status=401), times=None)
    with pytest.raises(APIError):
        await run("What is it?", source=pdf, config=config(provider, keep_files_s=0.0))
    assert (count_uploads(sim), list_active_files(sim)) == (1, [])


@on_sdks
async def test_a_file_that_the_provider_has_lost_is_uploaded_again(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    await run("What is it?", source=pdf, config=config(provider))
    for file in sim.files:
        file.deleted_at = sim.clock()
    envelope = await run_many(["What is it?", "And why?"], sources=[pdf], config=config(provider))
    assert (envelope.status, count_uploads(sim), len(list_active_files(sim))) == ("ok", 2, 1)


@on_sdks
async def test_accounts_do_not_share_files(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """Another key is another account, which cannot see the file."""
    await run("What is it?", source=pdf, config=config(provider))
    await run("What is it?", source=pdf, config=config(provider, api_key="sk-another-account"))
    assert count_uploads(sim) == 2


async def test_the_state_holds_no_api_key(config: MakeConfig, pdf: Source, pollux_home: Path) -> None:
    """An account is stored as a hash."""
    await run("What is it?", source=pdf, config=config("openai"))
    stored = read_all_bytes(pollux_home)
    assert stored
    assert b"sk-sentinel" not in stored


@on_sdks
async def test_an_interrupted_upload_is_repeated_and_its_copy_deleted(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The provider stored the file, and the response was lost."""
    operation = "file.upload_chunk" if provider == "gemini" else "file.create"
    sim.fail(Fault(kind="drop_after"), operation=operation, times=1)
    envelope = await run("What is it?", source=pdf, config=config(provider))
    assert envelope.status == "ok"
    assert len(list_active_files(sim)) == 1


@on_sdks
async def test_a_refused_upload_fails_the_run_with_the_providers_message(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """No generate request is sent."""
    sim.fail(Fault(status=413, message="that is too much"), operation="file.create", times=None)
    with pytest.raises(APIError, match="too much"):
        await run("What is it?", source=pdf, config=config(provider))
    assert [request for request in sim.requests if request.operation == "generate"] == []


async def test_a_video_is_used_once_gemini_has_processed_it(config: MakeConfig, sim: Simulator, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(MP4)
    sim.processing_s = 0.4
    try:
        envelope = await run("What is in it?", source=Source.from_file(tmp_path / "film.mp4"), config=config("gemini"))
    finally:
        sim.processing_s = 0.0
    assert envelope.status == "ok"


async def test_gemini_video_settings_are_sent(config: MakeConfig, sim: Simulator, tmp_path: Path) -> None:
    """Video settings apply to uploaded files and to YouTube."""
    (tmp_path / "film.mp4").write_bytes(MP4)
    film = Source.from_file(tmp_path / "film.mp4").with_gemini_video_settings(start_offset="10s", fps=2)
    tube = Source.from_youtube("https://www.youtube.com/watch?v=x").with_gemini_video_settings(end_offset="20s")
    await run_many(["What is in it?"], sources=[film, tube], config=config("gemini"))
    (request,) = [entry for entry in sim.requests if entry.operation == "generate"]
    settings = [part["videoMetadata"] for part in request.body["contents"][0]["parts"] if "videoMetadata" in part]
    assert settings == [{"start_offset": "10s", "fps": 2.0}, {"end_offset": "20s"}]


async def test_gemini_url_context_sends_the_address_and_the_tool(config: MakeConfig, sim: Simulator) -> None:
    page = Source.from_uri("https://example.com/page", mime_type="text/html").with_gemini_url_context()
    await run("What does it say?", source=page, config=config("gemini"))
    (request,) = sim.requests
    assert "https://example.com/page" in collect_strings(request.body["contents"])
    assert request.body["tools"] == [{"urlContext": {}}]


LINKS = {
    "pdf": Source.from_uri("https://example.com/a.pdf", mime_type="application/pdf"),
    "arxiv": Source.from_arxiv("2301.07041"),
    "image": Source.from_uri("https://example.com/a.png", mime_type="image/png"),
    "youtube": Source.from_youtube("https://www.youtube.com/watch?v=x"),
    "audio": Source.from_uri("https://example.com/a.mp3", mime_type="audio/mpeg"),
}
FETCHED: dict[ProviderName, set[str]] = {
    "gemini": {"pdf", "arxiv", "image", "youtube", "audio"},
    "openai": {"pdf", "arxiv", "image"},
    "anthropic": {"pdf", "arxiv", "image"},
    "openrouter": {"pdf", "arxiv", "image"},
    "local": set(),
}


@pytest.mark.parametrize("kind", LINKS)
@every_provider
async def test_an_address_is_sent_or_refused_unsent(
    provider: ProviderName, kind: str, config: MakeConfig, sim: Simulator
) -> None:
    source = LINKS[kind]
    if kind not in FETCHED[provider]:
        with pytest.raises(ConfigurationError):
            await run("What is it?", source=source, config=config(provider))
        assert sim.requests == []
        return
    assert (await run("What is it?", source=source, config=config(provider))).status == "ok"
    assert source.uri in collect_strings([request.body for request in sim.requests])


async def test_a_run_is_refused_before_its_first_upload(
    config: MakeConfig, sim: Simulator, tmp_path: Path, pdf: Source
) -> None:
    """The first file is valid, and a later source or an option is not."""
    (tmp_path / "film.mp4").write_bytes(MP4)
    with pytest.raises(ConfigurationError, match=r"video/mp4.*film\.mp4"):
        await run_many(["?"], sources=[pdf, Source.from_file(tmp_path / "film.mp4")], config=config("openai"))
    with pytest.raises(SourceError, match="no file"):
        await run_many(["?"], sources=[pdf, Source(source_type="file", uri="gone.pdf")], config=config("openai"))
    duplicate_model = Options(provider_options={"openai": {"model": "another"}})
    with pytest.raises(ConfigurationError, match="set already"):
        await run_many(["?"], sources=[pdf], config=config("openai"), options=duplicate_model)
    assert sim.requests == []


async def test_a_file_that_changes_before_its_upload_is_an_error(
    config: MakeConfig, sim: Simulator, tmp_path: Path, pdf: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes after it was examined: no generate request is sent, and no file is left."""
    from pollux_flows.files import content
    from pollux_flows.pipeline import upload_file

    original = content.open_file

    async def open_changed_file(source: Source) -> Any:
        (tmp_path / "report.pdf").write_bytes(PDF.replace(b"%PDF", b"%PDX"))
        return await original(source)

    monkeypatch.setattr(upload_file, "open_file", open_changed_file)
    with pytest.raises(SourceError, match="changed"):
        await run("What is it?", source=pdf, config=config("openai"))
    assert [request for request in sim.requests if request.operation == "generate"] == []
    assert list_active_files(sim) == []


async def test_a_file_of_any_fsspec_file_system_is_uploaded(config: MakeConfig, sim: Simulator) -> None:
    """A worker on another machine can open such an address."""
    import fsspec

    with fsspec.open("memory://reports/march.pdf", "wb") as file:
        file.write(PDF)
    await run("What is it?", source=Source.from_file("memory://reports/march.pdf"), config=config("gemini"))
    assert [file.sha256 for file in sim.files] == [hashlib.sha256(PDF).hexdigest()]


async def test_create_cache_uploads_its_files(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    handle = await create_cache([pdf], config=config("gemini"))
    assert count_uploads(sim) == 1
    envelope = await run("What is it?", config=config("gemini"), options=Options(cache=handle))
    assert envelope.metrics["cache_used"]


@pytest.mark.parametrize("others", [0, 2])
async def test_create_cache_uploads_lost_files_again(
    config: MakeConfig, sim: Simulator, tmp_path: Path, pdf: Source, *, others: int
) -> None:
    """Only the lost files are uploaded again; the others are reused."""
    for index in range(others):
        (tmp_path / f"{index}.pdf").write_bytes(PDF + bytes([index]))
    other_sources = [Source.from_file(tmp_path / f"{index}.pdf") for index in range(others)]
    await run_many(["What is it?"], sources=[pdf, *other_sources], config=config("gemini"))
    sim.files[0].deleted_at = sim.clock()
    lost = sim.files[0].sha256
    handle = await create_cache([pdf, *other_sources], config=config("gemini"))
    assert [file.sha256 for file in sim.files[1 + others :]] == [lost]
    assert (await run("Why?", config=config("gemini"), options=Options(cache=handle))).metrics["cache_used"]


async def test_a_cache_refused_for_another_reason_repeats_no_upload(
    config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The provider's message is raised."""
    sim.fail(Fault(status=400, message="too small"), operation="cache.create", times=None)
    with pytest.raises(CacheError, match="too small"):
        await create_cache([pdf], config=config("gemini"))
    assert count_uploads(sim) == 1
    assert len([request for request in sim.requests if request.operation == "cache.create"]) == 1


def test_two_concurrent_processes_upload_each_file_once(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path
) -> None:
    """One process uploads a file, and the other waits for it."""
    for index in range(3):
        (tmp_path / f"{index}.pdf").write_bytes(PDF + bytes([index]))
    program = textwrap.dedent("""
        import asyncio, sys
        from pollux_flows import Config, Source, run_many
        config = Config(provider="openai", model="gpt-4.1-mini", api_key="k", base_url=sys.argv[1])
        sources = [Source.from_file(f"{sys.argv[2]}/{index}.pdf") for index in range(3)]
        print(asyncio.run(run_many([f"Question {n}?" for n in range(20)], sources=sources, config=config)).status)
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, sim.base_url("openai", world[1]), str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=50)[0].strip() for process in processes] == ["ok", "ok"]
    assert count_uploads(sim) == 3


def test_a_mock_run_leaves_no_files_and_no_upload_records(tmp_path: Path, pdf: Source) -> None:
    """The files of an in-process simulator end with its process."""
    program = textwrap.dedent("""
        import asyncio, sys
        from pollux_flows import Config, Source, run
        config = Config(provider="openai", model="gpt-4.1-mini", use_mock=True)
        print(asyncio.run(run("What is it?", source=Source.from_file(sys.argv[1]), config=config)).status)
    """)
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", program, str(pdf.uri)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=True)
    assert ended.stdout.strip() == "ok"
    assert list((tmp_path / "tmp").iterdir()) == []
    assert asyncio.run(list_upload_records()) == []


async def list_upload_records() -> list[str]:
    return [name async for name in open_store().list_keys("upload/")]


def test_a_file_source_goes_through_json(pdf: Source) -> None:
    assert json.loads(pdf.model_dump_json())["uri"].endswith("report.pdf")
    assert Source.model_validate_json(pdf.model_dump_json()) == pdf


@on_sdks
async def test_a_hanging_file_deletion_costs_no_answer(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletion has a short time limit and is left to the next sweep."""
    monkeypatch.setattr("pollux_flows.providers.session._HOUSEKEEPING_S", 0.2)
    sim.fail(Fault(kind="hang"), operation="file.delete", times=None)
    envelope = await run("What is it?", source=pdf, config=config(provider, keep_files_s=0.0))
    assert envelope.status == "ok"


@on_sdks
async def test_a_failed_check_for_lost_files_costs_no_other_answer(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """After a 400 the run checks whether its files still exist; the provider's message is raised."""
    sim.fail(Fault(status=400, message="not this one"), contains="first")
    sim.fail(Fault(status=429), operation="file.get", times=None)
    settings = config(provider)
    request = make_request(["first", "second", "third"], target=settings.target, sources=[pdf])
    plan = make_plan(request, await read_sources(request))
    outcomes = await execute_plan(plan, settings)
    assert [outcome.answer is not None for outcome in outcomes] == [False, True, True]
    assert outcomes[0].failure is not None
    assert "not this one" in outcomes[0].failure.message


async def test_a_failed_release_of_files_costs_no_answer(
    config: MakeConfig, sim: Simulator, pdf: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releasing files is best effort."""

    async def fail_release(*_: Any, **__: Any) -> None:
        raise ConfigurationError("The store is full.")

    monkeypatch.setattr("pollux_flows.state.ledger.Ledger.release", fail_release)
    assert (await run("What is it?", source=pdf, config=config("openai"))).status == "ok"
    assert len(sim.files) == 1
