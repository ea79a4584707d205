"""Orphans: whatever an upload that went wrong may have left at the provider is found and removed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import APIError, Config, RetryPolicy, Source, SourceError, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.files.content import HashingReader
from pollux_flows.pipeline.cleanup import delete_due
from pollux_flows.providers.base import UpstreamError
from pollux_flows.providers.session import open_session
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.state.leases import LEASE_S
from pollux_flows.state.ledger import Ledger
from pollux_flows.state.store import open_store
from tests.loopback import ONCE, SDKS, MakeConfig

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40

on_sdks = pytest.mark.parametrize("provider", SDKS)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


@pytest.fixture
def pdf(tmp_path: Path) -> Source:
    (tmp_path / "report.pdf").write_bytes(PDF)
    return Source.from_file(tmp_path / "report.pdf")


def there(sim: Simulator) -> list[StoredFile]:
    """The files that the provider still has, usable or not."""
    return [file for file in sim.files if file.is_there]


def storing(provider: ProviderName) -> str:
    """The operation whose answer says that the file is stored."""
    return "file.upload_chunk" if provider == "gemini" else "file.create"


def searches(sim: Simulator) -> int:
    return len([request for request in sim.requests if request.operation == "file.list"])


async def swept(settings: Config, later_s: float = 0.0) -> list[str]:
    """What a sweep removes that comes so much later."""
    ledger = Ledger(open_store(), clock=lambda: time.time() + later_s)
    async with open_session(settings) as session:
        return await delete_due(session, ledger)


# --- Gemini looks through what it was sent ------------------------------------------------------------------------


@pytest.fixture
def processing(sim: Simulator) -> Any:
    sim.processing_s = 0.3
    yield
    sim.processing_s = 0.0


@pytest.mark.usefixtures("processing")
@pytest.mark.parametrize("fault", [Fault(status=503), Fault(status=429), Fault(kind="drop")])
async def test_a_look_at_the_processing_that_fails_is_repeated_without_another_upload(
    fault: Fault, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The file has been sent already: only the question how far it is was lost."""
    sim.fail(fault, operation="file.get", times=2)
    envelope = await run("What is it?", source=pdf, config=config("gemini"))
    assert (envelope.status, len(sim.files), len(there(sim))) == ("ok", 1, 1)


@pytest.mark.usefixtures("processing")
@pytest.mark.parametrize("status", [403, 429, 503])
async def test_a_file_of_which_nobody_can_tell_is_removed(
    status: int, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """It was uploaded once, and nobody will use it."""
    sim.fail(Fault(status=status, message="not now"), operation="file.get", times=None)
    with pytest.raises(APIError, match="not now"):
        await run("What is it?", source=pdf, config=config("gemini"))
    assert (len(sim.files), there(sim)) == (1, [])


async def test_a_file_that_cannot_be_processed_is_removed(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    """Gemini says why; the same file is not sent again, and does not stay."""
    sim.fail(Fault(kind="processing_failed"), operation="file.create")
    with pytest.raises(APIError, match="could not be processed") as told:
        await run("What is it?", source=pdf, config=config("gemini"))
    assert (told.value.retryable, told.value.outcome_unknown) == (False, False)
    assert (len(sim.files), there(sim)) == (1, [])


async def test_a_file_that_cannot_be_processed_nor_deleted_is_left_to_the_sweep(
    config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    sim.fail(Fault(kind="processing_failed"), operation="file.create")
    sim.fail(Fault(status=503), operation="file.delete")
    with pytest.raises(APIError, match="could not be processed"):
        await run("What is it?", source=pdf, config=config("gemini"))
    assert len(there(sim)) == 1
    assert await swept(config("gemini"), later_s=3600) == [sim.files[0].id]
    assert there(sim) == []


# --- Nobody knows whether it arrived ------------------------------------------------------------------------------


def stores_and_says(provider: ProviderName, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that gives up on a provider which goes on: the file is kept, the answer is an error."""
    from importlib import import_module

    module = import_module(f"pollux_flows.providers.{provider}.files")
    upload: Callable[..., Awaitable[Any]] = module.upload

    async def kept(client: Any, file: Any) -> None:
        await upload(client, file)
        raise UpstreamError(status, {"error": {"message": "gateway timeout"}})

    monkeypatch.setattr(module, "upload", kept)


@pytest.mark.parametrize("status", [500, 503, 504])
@on_sdks
async def test_what_a_server_error_may_have_left_is_looked_for(
    provider: ProviderName,
    config: MakeConfig,
    sim: Simulator,
    pdf: Source,
    *,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of the attempts was kept; once the last may have arrived, the sweep removes them all."""
    stores_and_says(provider, status, monkeypatch)
    with pytest.raises(APIError, match="gateway timeout") as told:
        await run("What is it?", source=pdf, config=config(provider))
    assert told.value.outcome_unknown is False  # of an upload: nothing that costs money was left unknown
    assert len(there(sim)) == 3
    assert len(await swept(config(provider), later_s=LEASE_S + 1)) == 3
    assert there(sim) == []


@on_sdks
async def test_an_attempt_that_may_have_arrived_is_looked_for_although_the_last_was_refused(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The first was kept, and its answer lost; the second met a plain no."""
    sim.fail(Fault(kind="drop_after"), operation=storing(provider))
    sim.fail(Fault(status=400, message="not any more"), operation=storing(provider))
    with pytest.raises(APIError, match="not any more"):
        await run("What is it?", source=pdf, config=config(provider))
    await swept(config(provider), later_s=LEASE_S + 1)
    assert (len(sim.files), there(sim)) == (1, [])


@on_sdks
async def test_after_a_plain_no_nothing_is_looked_for(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """What every attempt was refused left nothing."""
    sim.fail(Fault(status=429), operation=storing(provider))
    sim.fail(Fault(status=400), operation=storing(provider))
    with pytest.raises(APIError):
        await run("What is it?", source=pdf, config=config(provider))
    assert await swept(config(provider), later_s=LEASE_S + 1) == []
    assert searches(sim) == 0


async def test_a_server_error_of_a_call_is_no_unknown_outcome(config: MakeConfig, sim: Simulator) -> None:
    """That is said of uploads alone: nobody is told that a plain 503 may have been billed."""
    sim.fail(Fault(status=503), times=2)
    envelope = await run("p", config=config("openai"))
    assert envelope.diagnostics.get("warnings", []) == []
    sim.fail(Fault(status=503), times=None)
    with pytest.raises(APIError) as told:
        await run("p", config=config("openai"))
    assert told.value.outcome_unknown is False


@on_sdks
async def test_one_listing_finds_them_all(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many have been left behind; and whatever else the account has, stays."""
    sources = []
    for index in range(6):
        (tmp_path / f"{index}.pdf").write_bytes(PDF + bytes([index]))
        sources.append(Source.from_file(tmp_path / f"{index}.pdf"))
    await run("What is it?", source=sources[0], config=config(provider))
    stores_and_says(provider, 504, monkeypatch)
    with pytest.raises(APIError, match="gateway timeout"):
        await run_many(["What are they?"], sources=sources, config=config(provider, retry=ONCE))
    await swept(config(provider), later_s=LEASE_S + 1)
    assert (searches(sim), there(sim)) == (1, sim.files[:1])


@on_sdks
async def test_a_copy_that_could_not_be_looked_for_is_left_to_the_sweep(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The run has its answer; the sweep removes the copy, and not the file that was used."""
    sim.fail(Fault(kind="drop_after"), operation=storing(provider))
    sim.fail(Fault(status=503), operation="file.list")
    assert (await run("What is it?", source=pdf, config=config(provider))).status == "ok"
    first, second = there(sim)
    assert await swept(config(provider), later_s=120) == [first.id]
    assert there(sim) == [second]


async def test_a_copy_that_arrives_late_is_found_by_a_second_look(
    config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """At the end of the run it was not there yet. Then it is; and after one more look nobody looks any more."""
    sim.fail(Fault(kind="drop"), operation="file.create")
    assert (await run("What is it?", source=pdf, config=config("openai"))).status == "ok"
    (used,) = sim.files
    sim.file_store.add(replace(used, id="file-late", filename=used.filename.replace("-0002", "-0001")))
    assert await swept(config("openai"), later_s=120) == ["file-late"]
    assert (searches(sim), there(sim)) == (2, [used])
    assert await swept(config("openai"), later_s=600) == []
    assert searches(sim) == 2


async def test_a_copy_is_not_removed_with_the_file_that_is_used(
    config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """Ten attempts and more: the name of one is not the beginning of another's."""
    retry = RetryPolicy(max_attempts=12, initial_delay_s=0.001, max_delay_s=0.001)
    sim.fail(Fault(kind="drop_after"), operation="file.create", times=10)
    assert (await run("What is it?", source=pdf, config=config("openai", retry=retry))).status == "ok"
    assert (len(sim.files), there(sim)) == (11, sim.files[-1:])


# --- The file changes under way -----------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [PDF + b"more", PDF[:5000], b""], ids=["appended", "truncated", "emptied"])
@on_sdks
async def test_a_file_that_changes_during_its_upload_is_named(
    provider: ProviderName,
    config: MakeConfig,
    sim: Simulator,
    pdf: Source,
    *,
    left: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the SDK or the provider makes of it, the file is what was wrong; nothing is asked, nothing left."""
    read = HashingReader.read

    def meddled(reader: HashingReader, size: int | None = -1, /) -> bytes:
        Path(str(pdf.uri)).write_bytes(left)
        return read(reader, size)

    monkeypatch.setattr(HashingReader, "read", meddled)
    with pytest.raises(SourceError, match="changed while it was being sent"):
        await run("What is it?", source=pdf, config=config(provider))
    assert [request for request in sim.requests if request.operation == "generate"] == []
    await swept(config(provider), later_s=LEASE_S + 1)
    assert there(sim) == []


@on_sdks
async def test_a_refusal_of_what_was_written_meanwhile_is_the_files_fault(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source, *, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as long as it was, and something else: what the provider says about that helps nobody."""
    read = HashingReader.read

    def meddled(reader: HashingReader, size: int | None = -1, /) -> bytes:
        Path(str(pdf.uri)).write_bytes(PDF.swapcase())
        return read(reader, size)

    monkeypatch.setattr(HashingReader, "read", meddled)
    sim.fail(Fault(status=400, message="not a PDF"), operation=storing(provider), times=None)
    with pytest.raises(SourceError, match="changed while it was being sent"):
        await run("What is it?", source=pdf, config=config(provider))


@on_sdks
async def test_a_provider_that_fails_is_not_the_files_fault(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """A file that nobody has touched is not blamed, whether it was read or not."""
    sim.fail(Fault(status=400, message="no such luck"), operation=storing(provider))
    with pytest.raises(APIError, match="no such luck"):
        await run("What is it?", source=pdf, config=config(provider))
