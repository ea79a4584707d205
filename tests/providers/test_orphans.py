"""Orphans: files that a failed upload may have left at the provider are found and deleted."""

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
def pollux_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


@pytest.fixture
def pdf(tmp_path: Path) -> Source:
    (tmp_path / "report.pdf").write_bytes(PDF)
    return Source.from_file(tmp_path / "report.pdf")


def list_existing_files(sim: Simulator) -> list[StoredFile]:
    """Return the files that still exist at the provider, usable or not."""
    return [file for file in sim.files if file.is_there]


def get_upload_operation(provider: ProviderName) -> str:
    """Return the operation whose response says that the file is stored."""
    return "file.upload_chunk" if provider == "gemini" else "file.create"


def count_searches(sim: Simulator) -> int:
    return len([request for request in sim.requests if request.operation == "file.list"])


async def sweep_later(settings: Config, later_s: float = 0.0) -> list[str]:
    """Sweep as if `later_s` seconds had passed, and return the ids of the deleted files."""
    ledger = Ledger(open_store(), clock=lambda: time.time() + later_s)
    async with open_session(settings) as session:
        return await delete_due(session, ledger)


# --- Gemini processes uploaded files ------------------------------------------------------------------------------


@pytest.fixture
def slow_processing(sim: Simulator) -> Any:
    sim.processing_s = 0.3
    yield
    sim.processing_s = 0.0


@pytest.mark.usefixtures("slow_processing")
@pytest.mark.parametrize("fault", [Fault(status=503), Fault(status=429), Fault(kind="drop")])
async def test_a_failed_status_request_is_retried_without_another_upload(
    fault: Fault, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The file is at the provider; only the request for its processing state failed."""
    sim.fail(fault, operation="file.get", times=2)
    envelope = await run("What is it?", source=pdf, config=config("gemini"))
    assert (envelope.status, len(sim.files), len(list_existing_files(sim))) == ("ok", 1, 1)


@pytest.mark.usefixtures("slow_processing")
@pytest.mark.parametrize("status", [403, 429, 503])
async def test_a_file_whose_state_cannot_be_read_is_deleted(
    status: int, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The run fails, so no call will use the file."""
    sim.fail(Fault(status=status, message="not now"), operation="file.get", times=None)
    with pytest.raises(APIError, match="not now"):
        await run("What is it?", source=pdf, config=config("gemini"))
    assert (len(sim.files), list_existing_files(sim)) == (1, [])


async def test_a_file_that_cannot_be_processed_is_deleted(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    """Gemini's reason is raised, and the file is not uploaded again."""
    sim.fail(Fault(kind="processing_failed"), operation="file.create")
    with pytest.raises(APIError, match="could not be processed") as caught:
        await run("What is it?", source=pdf, config=config("gemini"))
    assert (caught.value.retryable, caught.value.outcome_unknown) == (False, False)
    assert (len(sim.files), list_existing_files(sim)) == (1, [])


async def test_a_file_that_cannot_be_processed_or_deleted_is_deleted_by_the_sweep(
    config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    sim.fail(Fault(kind="processing_failed"), operation="file.create")
    sim.fail(Fault(status=503), operation="file.delete")
    with pytest.raises(APIError, match="could not be processed"):
        await run("What is it?", source=pdf, config=config("gemini"))
    assert len(list_existing_files(sim)) == 1
    assert await sweep_later(config("gemini"), later_s=3600) == [sim.files[0].id]
    assert list_existing_files(sim) == []


# --- Uploads with an unknown outcome ------------------------------------------------------------------------------


def fail_after_storing(provider: ProviderName, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each upload store the file and then fail with this status, as behind a gateway that times out."""
    from importlib import import_module

    module = import_module(f"pollux_flows.providers.{provider}.files")
    upload: Callable[..., Awaitable[Any]] = module.upload

    async def store_and_fail(client: Any, file: Any) -> None:
        await upload(client, file)
        raise UpstreamError(status, {"error": {"message": "gateway timeout"}})

    monkeypatch.setattr(module, "upload", store_and_fail)


@pytest.mark.parametrize("status", [500, 503, 504])
@on_sdks
async def test_files_stored_in_spite_of_a_server_error_are_swept(
    provider: ProviderName,
    config: MakeConfig,
    sim: Simulator,
    pdf: Source,
    *,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each attempt stored a file; the sweep deletes all of them once no attempt can be in progress."""
    fail_after_storing(provider, status, monkeypatch)
    with pytest.raises(APIError, match="gateway timeout") as caught:
        await run("What is it?", source=pdf, config=config(provider))
    assert caught.value.outcome_unknown is False  # of an upload, which costs nothing
    assert len(list_existing_files(sim)) == 3
    assert len(await sweep_later(config(provider), later_s=LEASE_S + 1)) == 3
    assert list_existing_files(sim) == []


@on_sdks
async def test_the_file_of_an_earlier_attempt_is_swept_although_the_last_was_refused(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The first attempt stored the file and lost the response; the second was refused."""
    sim.fail(Fault(kind="drop_after"), operation=get_upload_operation(provider))
    sim.fail(Fault(status=400, message="not any more"), operation=get_upload_operation(provider))
    with pytest.raises(APIError, match="not any more"):
        await run("What is it?", source=pdf, config=config(provider))
    await sweep_later(config(provider), later_s=LEASE_S + 1)
    assert (len(sim.files), list_existing_files(sim)) == (1, [])


@on_sdks
async def test_after_refused_uploads_no_search_is_made(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """A refused attempt stored nothing."""
    sim.fail(Fault(status=429), operation=get_upload_operation(provider))
    sim.fail(Fault(status=400), operation=get_upload_operation(provider))
    with pytest.raises(APIError):
        await run("What is it?", source=pdf, config=config(provider))
    assert await sweep_later(config(provider), later_s=LEASE_S + 1) == []
    assert count_searches(sim) == 0


async def test_a_server_error_of_a_call_has_a_known_outcome(config: MakeConfig, sim: Simulator) -> None:
    """Only for uploads is the outcome of a 503 unknown; a call is not reported as possibly billed."""
    sim.fail(Fault(status=503), times=2)
    envelope = await run("p", config=config("openai"))
    assert envelope.diagnostics.get("warnings", []) == []
    sim.fail(Fault(status=503), times=None)
    with pytest.raises(APIError) as caught:
        await run("p", config=config("openai"))
    assert caught.value.outcome_unknown is False


@on_sdks
async def test_one_listing_finds_all_orphans(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other files of the account are not deleted."""
    sources = []
    for index in range(6):
        (tmp_path / f"{index}.pdf").write_bytes(PDF + bytes([index]))
        sources.append(Source.from_file(tmp_path / f"{index}.pdf"))
    await run("What is it?", source=sources[0], config=config(provider))
    fail_after_storing(provider, 504, monkeypatch)
    with pytest.raises(APIError, match="gateway timeout"):
        await run_many(["What are they?"], sources=sources, config=config(provider, retry=ONCE))
    await sweep_later(config(provider), later_s=LEASE_S + 1)
    assert (count_searches(sim), list_existing_files(sim)) == (1, sim.files[:1])


@on_sdks
async def test_a_copy_that_the_run_could_not_search_for_is_swept(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The file that the run used is not deleted."""
    sim.fail(Fault(kind="drop_after"), operation=get_upload_operation(provider))
    sim.fail(Fault(status=503), operation="file.list")
    assert (await run("What is it?", source=pdf, config=config(provider))).status == "ok"
    first, second = list_existing_files(sim)
    assert await sweep_later(config(provider), later_s=120) == [first.id]
    assert list_existing_files(sim) == [second]


async def test_a_copy_that_appears_after_the_run_is_found_by_the_sweep(
    config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The run and one sweep search for the copy; later sweeps do not."""
    sim.fail(Fault(kind="drop"), operation="file.create")
    assert (await run("What is it?", source=pdf, config=config("openai"))).status == "ok"
    (used_file,) = sim.files
    sim.file_store.add(replace(used_file, id="file-late", filename=used_file.filename.replace("-0002", "-0001")))
    assert await sweep_later(config("openai"), later_s=120) == ["file-late"]
    assert (count_searches(sim), list_existing_files(sim)) == (2, [used_file])
    assert await sweep_later(config("openai"), later_s=600) == []
    assert count_searches(sim) == 2


async def test_deleting_a_copy_does_not_delete_the_used_file(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    """With more than ten attempts, one attempt's name must not be a prefix of another's."""
    retry = RetryPolicy(max_attempts=12, initial_delay_s=0.001, max_delay_s=0.001)
    sim.fail(Fault(kind="drop_after"), operation="file.create", times=10)
    assert (await run("What is it?", source=pdf, config=config("openai", retry=retry))).status == "ok"
    assert (len(sim.files), list_existing_files(sim)) == (11, sim.files[-1:])


# --- Files that change during the upload --------------------------------------------------------------------------


@pytest.mark.parametrize("new_content", [PDF + b"more", PDF[:5000], b""], ids=["appended", "truncated", "emptied"])
@on_sdks
async def test_a_file_that_changes_during_its_upload_is_a_source_error(
    provider: ProviderName,
    config: MakeConfig,
    sim: Simulator,
    pdf: Source,
    *,
    new_content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No generate request is sent, and no file is left at the provider."""
    read = HashingReader.read

    def change_and_read(reader: HashingReader, size: int | None = -1, /) -> bytes:
        Path(str(pdf.uri)).write_bytes(new_content)
        return read(reader, size)

    monkeypatch.setattr(HashingReader, "read", change_and_read)
    with pytest.raises(SourceError, match="changed while it was being sent"):
        await run("What is it?", source=pdf, config=config(provider))
    assert [request for request in sim.requests if request.operation == "generate"] == []
    await sweep_later(config(provider), later_s=LEASE_S + 1)
    assert list_existing_files(sim) == []


@on_sdks
async def test_a_refusal_of_changed_content_is_a_source_error(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source, *, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is unchanged, and the provider's message about the content would mislead."""
    read = HashingReader.read

    def change_and_read(reader: HashingReader, size: int | None = -1, /) -> bytes:
        Path(str(pdf.uri)).write_bytes(PDF.swapcase())
        return read(reader, size)

    monkeypatch.setattr(HashingReader, "read", change_and_read)
    sim.fail(Fault(status=400, message="not a PDF"), operation=get_upload_operation(provider), times=None)
    with pytest.raises(SourceError, match="changed while it was being sent"):
        await run("What is it?", source=pdf, config=config(provider))


@on_sdks
async def test_a_refusal_of_an_unchanged_file_is_an_api_error(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    sim.fail(Fault(status=400, message="no such luck"), operation=get_upload_operation(provider))
    with pytest.raises(APIError, match="no such luck"):
        await run("What is it?", source=pdf, config=config(provider))
