"""Files: what reaches the provider is what is in the file, once, and nothing is left behind."""

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
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A POLLUX_HOME of its own for each test."""
    home = tmp_path / "pollux"
    monkeypatch.setenv("POLLUX_HOME", str(home))
    return home


@pytest.fixture
def pdf(tmp_path: Path) -> Source:
    (tmp_path / "report.pdf").write_bytes(PDF)
    return Source.from_file(tmp_path / "report.pdf")


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def alive(sim: Simulator) -> list[Any]:
    return [file for file in sim.files if file.state == "active"]


def uploads(sim: Simulator) -> int:
    return len(sim.files)


def kinds(path: Path) -> dict[str, Source]:
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


# What arrives, by provider: uploaded with these bytes, inside the request, or not at all.
ARRIVES: dict[ProviderName, dict[str, str]] = {
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
async def test_the_bytes_that_arrive_are_the_files(
    provider: ProviderName, name: str, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """Uploaded or inlined, byte by byte; what a provider does not take is refused before anything is sent."""
    source = kinds(tmp_path)[name]
    content = (tmp_path / name).read_bytes()
    if ARRIVES[provider][name] == "no":
        with pytest.raises(ConfigurationError, match=r"accepts no|support"):
            await run("What is it?", source=source, config=config(provider))
        assert sim.requests == []
        return
    envelope = await run("What is it?", source=source, config=config(provider))
    assert envelope.status == "ok"
    asked = next(request for request in sim.requests if request.operation == "generate")
    match ARRIVES[provider][name]:
        case "upload":
            assert [file.sha256 for file in sim.files] == [hashlib.sha256(content).hexdigest()]
            assert [file.mime_type for file in sim.files] == [source.mime_type]
        case "text":
            assert content.decode() in strings(asked.body)
            assert uploads(sim) == 0
        case "data":
            (url,) = [text for text in strings(asked.body) if text.startswith("data:")]
            assert base64.b64decode(url.partition(",")[2]) == content
            assert url.startswith(f"data:{source.mime_type};base64,")


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in strings(item)]


@on_sdks
async def test_twenty_prompts_over_three_files_are_three_uploads(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """And the same again is none."""
    sources = []
    for index in range(3):
        (tmp_path / f"{index}.pdf").write_bytes(PDF + bytes([index]))
        sources.append(Source.from_file(tmp_path / f"{index}.pdf"))
    prompts = [f"Question {index}?" for index in range(20)]
    envelope = await run_many(prompts, sources=sources, config=config(provider))
    assert (envelope.status, uploads(sim)) == ("ok", 3)
    assert (await run_many(prompts, sources=sources, config=config(provider))).status == "ok"
    assert uploads(sim) == 3


@on_sdks
async def test_the_same_content_under_another_name_is_the_same_file(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path, pdf: Source
) -> None:
    """A copy is not uploaded again; a changed one is."""
    (tmp_path / "copy.pdf").write_bytes(PDF)
    await run_many(["One?"], sources=[pdf, Source.from_file(tmp_path / "copy.pdf")], config=config(provider))
    assert uploads(sim) == 1
    (tmp_path / "copy.pdf").write_bytes(PDF + b"changed")
    await run_many(["One?"], sources=[pdf, Source.from_file(tmp_path / "copy.pdf")], config=config(provider))
    assert uploads(sim) == 2


@on_sdks
async def test_files_are_deleted_at_once_where_the_run_keeps_none(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """`keep_files_s=0`: the last owner is done, so the file goes."""
    await run("What is it?", source=pdf, config=config(provider, keep_files_s=0.0))
    assert (uploads(sim), alive(sim)) == (1, [])


@on_sdks
async def test_files_are_deleted_after_a_failed_run_too(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """However it ended, nothing is left behind."""
    sim.fail(Fault(status=401), times=None)
    with pytest.raises(APIError):
        await run("What is it?", source=pdf, config=config(provider, keep_files_s=0.0))
    assert (uploads(sim), alive(sim)) == (1, [])


@on_sdks
async def test_a_file_that_the_provider_has_forgotten_is_uploaded_again(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The run goes on as if nothing had been."""
    await run("What is it?", source=pdf, config=config(provider))
    for file in sim.files:
        file.deleted_at = sim.clock()
    envelope = await run_many(["What is it?", "And why?"], sources=[pdf], config=config(provider))
    assert (envelope.status, uploads(sim), len(alive(sim))) == ("ok", 2, 1)


@on_sdks
async def test_accounts_do_not_share_files(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """Another key is another account: it cannot see the first one's file."""
    await run("What is it?", source=pdf, config=config(provider))
    await run("What is it?", source=pdf, config=config(provider, api_key="sk-another-account"))
    assert uploads(sim) == 2


async def test_an_account_is_stored_as_a_hash_that_gives_no_key_away(
    config: MakeConfig, pdf: Source, state: Path
) -> None:
    """POLLUX_HOME holds no key."""
    await run("What is it?", source=pdf, config=config("openai"))
    stored = all_bytes(state)
    assert stored
    assert b"sk-sentinel" not in stored


@on_sdks
async def test_an_upload_that_broke_off_is_made_again_and_its_copy_goes(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The provider kept a file and lost the reply: one file is used, none is left over."""
    operation = "file.upload_chunk" if provider == "gemini" else "file.create"
    sim.fail(Fault(kind="drop_after"), operation=operation, times=1)
    envelope = await run("What is it?", source=pdf, config=config(provider))
    assert envelope.status == "ok"
    assert len(alive(sim)) == 1


@on_sdks
async def test_a_refused_upload_is_the_runs_error(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """In the provider's words, in the phase it happened in, and nothing is asked."""
    sim.fail(Fault(status=413, message="that is too much"), operation="file.create", times=None)
    with pytest.raises(APIError, match="too much"):
        await run("What is it?", source=pdf, config=config(provider))
    assert [request for request in sim.requests if request.operation == "generate"] == []


async def test_gemini_is_given_time_to_process_a_video(config: MakeConfig, sim: Simulator, tmp_path: Path) -> None:
    """The question waits until the file can be used."""
    (tmp_path / "film.mp4").write_bytes(MP4)
    sim.processing_s = 0.4
    try:
        envelope = await run("What is in it?", source=Source.from_file(tmp_path / "film.mp4"), config=config("gemini"))
    finally:
        sim.processing_s = 0.0
    assert envelope.status == "ok"


async def test_gemini_video_settings_reach_the_wire(config: MakeConfig, sim: Simulator, tmp_path: Path) -> None:
    """On an uploaded file and on YouTube alike."""
    (tmp_path / "film.mp4").write_bytes(MP4)
    film = Source.from_file(tmp_path / "film.mp4").with_gemini_video_settings(start_offset="10s", fps=2)
    tube = Source.from_youtube("https://www.youtube.com/watch?v=x").with_gemini_video_settings(end_offset="20s")
    await run_many(["What is in it?"], sources=[film, tube], config=config("gemini"))
    (asked,) = [request for request in sim.requests if request.operation == "generate"]
    settings = [part["videoMetadata"] for part in asked.body["contents"][0]["parts"] if "videoMetadata" in part]
    assert settings == [{"start_offset": "10s", "fps": 2.0}, {"end_offset": "20s"}]


async def test_gemini_opens_an_address_itself(config: MakeConfig, sim: Simulator) -> None:
    """URL context: the address as text, and the tool that opens it."""
    page = Source.from_uri("https://example.com/page", mime_type="text/html").with_gemini_url_context()
    await run("What does it say?", source=page, config=config("gemini"))
    (asked,) = sim.requests
    assert "https://example.com/page" in strings(asked.body["contents"])
    assert asked.body["tools"] == [{"urlContext": {}}]


LINKS = {
    "pdf": Source.from_uri("https://example.com/a.pdf", mime_type="application/pdf"),
    "arxiv": Source.from_arxiv("2301.07041"),
    "image": Source.from_uri("https://example.com/a.png", mime_type="image/png"),
    "youtube": Source.from_youtube("https://www.youtube.com/watch?v=x"),
    "audio": Source.from_uri("https://example.com/a.mp3", mime_type="audio/mpeg"),
}
FETCHES: dict[ProviderName, set[str]] = {
    "gemini": {"pdf", "arxiv", "image", "youtube", "audio"},
    "openai": {"pdf", "arxiv", "image"},
    "anthropic": {"pdf", "arxiv", "image"},
    "openrouter": {"pdf", "arxiv", "image"},
    "local": set(),
}


@pytest.mark.parametrize("kind", LINKS)
@every_provider
async def test_addresses_are_passed_on_or_refused(
    provider: ProviderName, kind: str, config: MakeConfig, sim: Simulator
) -> None:
    """What a provider fetches is sent as its address; what it does not is refused before anything is sent."""
    source = LINKS[kind]
    if kind not in FETCHES[provider]:
        with pytest.raises(ConfigurationError):
            await run("What is it?", source=source, config=config(provider))
        assert sim.requests == []
        return
    assert (await run("What is it?", source=source, config=config(provider))).status == "ok"
    assert source.uri in strings([request.body for request in sim.requests])


async def test_every_refusal_comes_before_the_first_upload(
    config: MakeConfig, sim: Simulator, tmp_path: Path, pdf: Source
) -> None:
    """The good file is not uploaded when the last source of the list cannot be sent."""
    (tmp_path / "film.mp4").write_bytes(MP4)
    with pytest.raises(ConfigurationError, match=r"video/mp4.*film\.mp4"):
        await run_many(["?"], sources=[pdf, Source.from_file(tmp_path / "film.mp4")], config=config("openai"))
    with pytest.raises(SourceError, match="no file"):
        await run_many(["?"], sources=[pdf, Source(source_type="file", uri="gone.pdf")], config=config("openai"))
    twice = Options(provider_options={"openai": {"model": "another"}})
    with pytest.raises(ConfigurationError, match="set already"):
        await run_many(["?"], sources=[pdf], config=config("openai"), options=twice)
    assert sim.requests == []


async def test_a_file_that_changes_on_its_way_is_noticed(
    config: MakeConfig, sim: Simulator, tmp_path: Path, pdf: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the upload somebody wrote to it: nothing is asked of the wrong content, nothing is left."""
    from pollux_flows.files import content
    from pollux_flows.pipeline import upload_file

    original = content.open_file

    async def meddled(source: Source) -> Any:
        (tmp_path / "report.pdf").write_bytes(PDF.replace(b"%PDF", b"%PDX"))
        return await original(source)

    monkeypatch.setattr(upload_file, "open_file", meddled)
    with pytest.raises(SourceError, match="changed"):
        await run("What is it?", source=pdf, config=config("openai"))
    assert [request for request in sim.requests if request.operation == "generate"] == []
    assert alive(sim) == []


async def test_a_file_may_live_anywhere_that_fsspec_reads(config: MakeConfig, sim: Simulator) -> None:
    """A worker on another machine opens the address, not the path of the machine that wrote it."""
    import fsspec

    with fsspec.open("memory://reports/march.pdf", "wb") as file:
        file.write(PDF)
    await run("What is it?", source=Source.from_file("memory://reports/march.pdf"), config=config("gemini"))
    assert [file.sha256 for file in sim.files] == [hashlib.sha256(PDF).hexdigest()]


async def test_a_cache_can_hold_files(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    """`create_cache` uploads what it is to keep."""
    handle = await create_cache([pdf], config=config("gemini"))
    assert uploads(sim) == 1
    envelope = await run("What is it?", config=config("gemini"), options=Options(cache=handle))
    assert envelope.metrics["cache_used"]


@pytest.mark.parametrize("others", [0, 2])
async def test_a_cache_is_made_of_files_that_the_provider_has_forgotten(
    config: MakeConfig, sim: Simulator, tmp_path: Path, pdf: Source, *, others: int
) -> None:
    """Those are uploaded again, and only those; the cache is created then."""
    for index in range(others):
        (tmp_path / f"{index}.pdf").write_bytes(PDF + bytes([index]))
    kept = [Source.from_file(tmp_path / f"{index}.pdf") for index in range(others)]
    await run_many(["What is it?"], sources=[pdf, *kept], config=config("gemini"))
    sim.files[0].deleted_at = sim.clock()
    lost = sim.files[0].sha256
    handle = await create_cache([pdf, *kept], config=config("gemini"))
    assert [file.sha256 for file in sim.files[1 + others :]] == [lost]
    assert (await run("Why?", config=config("gemini"), options=Options(cache=handle))).metrics["cache_used"]


async def test_a_cache_that_is_refused_for_another_reason_uploads_nothing_again(
    config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """What the provider said about it stands."""
    sim.fail(Fault(status=400, message="too small"), operation="cache.create", times=None)
    with pytest.raises(CacheError, match="too small"):
        await create_cache([pdf], config=config("gemini"))
    assert uploads(sim) == 1
    assert len([request for request in sim.requests if request.operation == "cache.create"]) == 1


def test_two_processes_at_once_upload_three_files_in_all(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path
) -> None:
    """Whoever is first uploads, the other waits for it."""
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
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=50)[0].strip() for process in both] == ["ok", "ok"]
    assert uploads(sim) == 3


def test_a_simulated_run_leaves_nothing_behind(tmp_path: Path, pdf: Source) -> None:
    """What its provider knew ends with the process, and so does what was written down about that."""
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
    assert asyncio.run(recorded()) == []


async def recorded() -> list[str]:
    return [name async for name in open_store().list_keys("upload/")]


def test_what_the_options_say_of_files_is_json(pdf: Source) -> None:
    """A file source is its name: no bytes, no handle."""
    assert json.loads(pdf.model_dump_json())["uri"].endswith("report.pdf")
    assert Source.model_validate_json(pdf.model_dump_json()) == pdf


@on_sdks
async def test_a_provider_that_hangs_at_housekeeping_costs_no_answer(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are paid for by then: deleting waits a moment, and is left to the sweep."""
    monkeypatch.setattr("pollux_flows.providers.session._HOUSEKEEPING_S", 0.2)
    sim.fail(Fault(kind="hang"), operation="file.delete", times=None)
    envelope = await run("What is it?", source=pdf, config=config(provider, keep_files_s=0.0))
    assert envelope.status == "ok"


@on_sdks
async def test_a_look_for_a_forgotten_file_that_fails_costs_no_sibling(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """What the provider said about the one call stands, and the others keep their answers."""
    sim.fail(Fault(status=400, message="not this one"), contains="first")
    sim.fail(Fault(status=429), operation="file.get", times=None)
    settings = config(provider)
    request = make_request(["first", "second", "third"], target=settings.target, sources=[pdf])
    plan = make_plan(request, await read_sources(request))
    outcomes = await execute_plan(plan, settings)
    assert [outcome.answer is not None for outcome in outcomes] == [False, True, True]
    assert outcomes[0].failure is not None
    assert "not this one" in outcomes[0].failure.message


async def test_a_ledger_that_cannot_be_read_afterwards_costs_no_answer(
    config: MakeConfig, sim: Simulator, pdf: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Giving files back is housekeeping."""

    async def broken(*_: Any, **__: Any) -> None:
        raise ConfigurationError("The store is full.")

    monkeypatch.setattr("pollux_flows.state.ledger.Ledger.release", broken)
    assert (await run("What is it?", source=pdf, config=config("openai"))).status == "ok"
    assert len(sim.files) == 1
