"""Ledger: failed uploads, and uploaders that lose their lease."""

from __future__ import annotations

import asyncio

import pytest

from pollux_flows.errors import APIError, ConfigurationError, RateLimitError, SourceError
from pollux_flows.state.ledger import Ledger, Uploaded
from pollux_flows.state.store import Store
from tests.state.places import KEY, Clock, Provider, delete_due_files

# --- Failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        APIError("Too large.", hint="Split it.", retryable=False, status_code=413, provider="openai", phase="upload"),
        RateLimitError("Slow down.", retryable=True, status_code=429, retry_after_s=7.0),
        SourceError("It changed while it was read.", hint="Run again."),
    ],
)
async def test_a_failed_upload_fails_for_all_waiters(
    ledger: Ledger, provider: Provider, error: Exception, clock: Clock
) -> None:
    """No waiter uploads again; a later run does."""
    provider.errors = [error]
    provider.gate = asyncio.Event()
    waiting = [asyncio.ensure_future(ledger.acquire(KEY, f"run {index}", provider.upload)) for index in range(10)]
    await provider.wait_for_uploads()
    clock.now += 1
    provider.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in results] == [type(error)] * 10
    assert {str(each) for each in results} == {str(error)}
    assert all(vars(each) == vars(error) for each in results if isinstance(each, Exception))
    assert len(provider.markers) == 1
    assert (await ledger.acquire(KEY, "later", provider.upload)).file_id == "file-2"


async def test_a_run_does_not_repeat_an_upload_after_a_final_failure(ledger: Ledger, provider: Provider) -> None:
    """After its release, the run may upload again."""
    provider.errors = [APIError("No.", retryable=False), APIError("No.", retryable=False)]
    for _ in range(3):
        with pytest.raises(APIError, match="No"):
            await ledger.acquire(KEY, "run", provider.upload)
    assert len(provider.markers) == 1
    with pytest.raises(APIError, match="No"):
        await ledger.acquire(KEY, "other", provider.upload)
    assert len(provider.markers) == 2
    await ledger.release("other")
    assert (await ledger.acquire(KEY, "other", provider.upload)).file_id == "file-3"


async def test_a_run_repeats_an_upload_after_a_retryable_failure(ledger: Ledger, provider: Provider) -> None:
    provider.errors = [APIError("Busy.", retryable=True)]
    with pytest.raises(APIError, match="Busy"):
        await ledger.acquire(KEY, "run", provider.upload)
    assert (await ledger.acquire(KEY, "run", provider.upload)).file_id == "file-2"


async def test_a_failure_is_forgotten_after_a_while(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    """A run that was killed before its release may upload the file again after a while."""
    provider.errors = [APIError("No.", retryable=False)]
    with pytest.raises(APIError, match="No"):
        await ledger.acquire(KEY, "run", provider.upload)
    clock.now += 601
    assert (await ledger.acquire(KEY, "run", provider.upload)).file_id == "file-2"


async def test_the_text_of_a_foreign_error_is_not_saved(
    ledger: Ledger, provider: Provider, store: Store, clock: Clock
) -> None:
    """The text may contain a key, so other runs get only the class of the error."""
    provider.errors = [ValueError("Bearer sk-secret")]
    provider.gate = asyncio.Event()
    waiting = [asyncio.ensure_future(ledger.acquire(KEY, "run", provider.upload)) for _ in range(3)]
    await provider.wait_for_uploads()
    clock.now += 1
    provider.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert sorted(type(each).__name__ for each in results) == ["APIError", "APIError", "ValueError"]
    assert all("ValueError" in str(each) for each in results if isinstance(each, APIError))
    assert "secret" not in str([record async for _, record in store.scan("")])


@pytest.mark.parametrize(
    ("error", "looked_for"),
    [
        (APIError("No.", retryable=False, status_code=400), False),
        (APIError("Gone silent.", retryable=True, outcome_unknown=True), True),
        (OSError("The network is down."), True),
    ],
)
async def test_a_file_that_may_have_arrived_is_looked_for(
    ledger: Ledger, provider: Provider, clock: Clock, error: Exception, looked_for: bool
) -> None:
    provider.errors = [error]
    with pytest.raises(type(error)):
        await ledger.acquire(KEY, "run", provider.upload)
    clock.now += ledger.lease_s
    assert [due.marker for due in await ledger.list_due()] == (provider.markers if looked_for else [])


async def test_a_file_that_could_not_be_recorded_is_found_by_its_intent(
    ledger: Ledger, provider: Provider, store: Store, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:

    async def refuse(*_: object) -> bool:
        raise ConfigurationError("There is no room left.")

    async def upload(marker: str) -> Uploaded:
        uploaded = await provider.upload(marker)
        monkeypatch.setattr(store, "swap", refuse)
        return uploaded

    with pytest.raises(ConfigurationError, match="no room"):
        await ledger.acquire(KEY, "run", upload)
    monkeypatch.undo()
    assert await ledger.list_due() == []
    clock.now += ledger.lease_s
    assert [due.marker for due in await ledger.list_due()] == provider.markers


# --- Leftovers of attempts ----------------------------------------------------------------------------------------


async def test_a_leftover_of_an_attempt_is_due(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    """A leftover is known by its id or by its name, and may be due only later."""

    async def upload(marker: str) -> Uploaded:
        await ledger.add_leftover(KEY, f"{marker}-0001")
        await ledger.add_leftover(KEY, f"{marker}-0002", Uploaded(file_id="copy"))
        await ledger.add_leftover(KEY, f"{marker}-0003", after_s=60)
        return await provider.upload(marker)

    used = await ledger.acquire(KEY, "run", upload)
    first, second = await ledger.list_due()
    assert (first.marker, first.uploaded) == (f"{provider.markers[0]}-0001", None)
    assert second.uploaded is not None
    assert second.uploaded.file_id == "copy"
    assert await delete_due_files(ledger, [first, second]) == [first.marker, "copy"]
    assert await ledger.list_due() == []
    assert await ledger.acquire(KEY, "other", provider.upload) == used
    clock.now += 60
    assert [due.marker for due in await ledger.list_due()] == [f"{provider.markers[0]}-0003"]


async def test_one_search_finds_the_leftovers_of_all_attempts(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    """The names of leftovers begin with the marker of the upload."""
    provider.errors = [OSError("The network is down.")]

    async def upload(marker: str) -> Uploaded:
        await ledger.add_leftover(KEY, f"{marker}-0001")
        return await provider.upload(marker)

    with pytest.raises(OSError, match="down"):
        await ledger.acquire(KEY, "run", upload)
    clock.now += ledger.lease_s
    assert [due.marker for due in await ledger.list_due()] == provider.markers


async def test_the_limit_bounds_the_leases_of_uploads(ledger: Ledger, provider: Provider, store: Store) -> None:
    keys = [KEY.model_copy(update={"sha256": f"{index}"}) for index in range(20)]
    limit = asyncio.Semaphore(2)
    provider.gate = asyncio.Event()
    uploading = [asyncio.ensure_future(ledger.acquire(key, "run", provider.upload, limit=limit)) for key in keys]
    await provider.wait_for_uploads(2)
    await asyncio.sleep(0.05)
    assert len([key async for key, _ in store.scan("upload/")]) == 2
    provider.gate.set()
    await asyncio.gather(*uploading)
    assert len(provider.markers) == 20


async def test_a_waiter_does_not_count_against_the_limit(ledger: Ledger, provider: Provider) -> None:
    provider.gate = asyncio.Event()
    elsewhere = asyncio.ensure_future(ledger.acquire(KEY, "elsewhere", provider.upload))
    await provider.wait_for_uploads()
    limit = asyncio.Semaphore(1)
    waiting = asyncio.ensure_future(ledger.acquire(KEY, "run", provider.upload, limit=limit))
    await asyncio.sleep(0.05)
    other = KEY.model_copy(update={"sha256": "other"})
    quick = Provider(provider.clock)
    assert (await ledger.acquire(other, "run", quick.upload, limit=limit)).file_id == "file-1"
    assert not waiting.done()
    provider.gate.set()
    assert await waiting == await elsewhere


# --- Late uploaders (for killed processes, see test_ledger_processes.py) ------------------------------------------


async def test_a_late_uploader_uses_the_file_of_its_successor(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    """The file of the late uploader is deleted."""
    slow = Provider(clock, gate=asyncio.Event())
    late = asyncio.ensure_future(ledger.acquire(KEY, "late", slow.upload))
    await slow.wait_for_uploads()
    clock.now += ledger.lease_s + 1
    provider.markers.append("so that its files have other names")
    assert (await ledger.acquire(KEY, "quick", provider.upload)).file_id == "file-2"
    (orphan,) = await ledger.list_due()
    assert orphan.marker == slow.markers[0]
    assert slow.gate is not None
    slow.gate.set()
    assert (await late).file_id == "file-2"
    (due,) = await ledger.list_due()
    assert due.uploaded is not None
    assert (due.uploaded.file_id, due.marker) == ("file-1", slow.markers[0])
    assert await delete_due_files(ledger, [due]) == ["file-1"]
    assert (await ledger.acquire(KEY, "late", provider.upload)).file_id == "file-2"


async def test_a_file_that_arrives_after_a_sweep_is_deleted(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    provider.gate = asyncio.Event()
    late = asyncio.ensure_future(ledger.acquire(KEY, "late", provider.upload))
    await provider.wait_for_uploads()
    clock.now += ledger.lease_s + 1
    assert await delete_due_files(ledger, await ledger.list_due()) == provider.markers
    provider.gate.set()
    assert (await late).file_id == "file-2"  # there is no other file, so it uploads again
    assert [due.uploaded and due.uploaded.file_id for due in await ledger.list_due()] == ["file-1"]


async def test_a_waiter_times_out(ledger: Ledger, provider: Provider) -> None:
    provider.gate = asyncio.Event()
    first = asyncio.ensure_future(ledger.acquire(KEY, "first", provider.upload))
    await provider.wait_for_uploads()
    with pytest.raises(APIError, match="uploading the same file") as caught:
        await ledger.acquire(KEY, "other", provider.upload, patience_s=0.05)
    assert caught.value.retryable is True
    provider.gate.set()
    await first
