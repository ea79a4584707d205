"""Ledger: a file is uploaded once for all its owners, also if some of them are cancelled."""

from __future__ import annotations

import asyncio

import pytest

from pollux_flows.state.ledger import Ledger, Uploaded, UploadKey
from pollux_flows.state.store import Store
from tests.state.places import DAY, KEY, Clock, Provider, delete_due_files, open_store_at

# --- One upload for all owners ------------------------------------------------------------------------------------


async def test_a_file_is_uploaded_once(ledger: Ledger, provider: Provider, address: str, clock: Clock) -> None:
    """All coroutines and runs get the same file."""
    first = await asyncio.gather(*(ledger.acquire(KEY, f"run {index % 3}", provider.upload) for index in range(60)))
    later = await Ledger(open_store_at(address), clock).acquire(KEY, "later", provider.upload)
    assert {each.file_id for each in [*first, later]} == {"file-1"}
    assert later == first[0]
    assert len(provider.markers) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"provider": "gemini"},
        {"base_url": "http://elsewhere"},
        {"account": "b"},
        {"sha256": "0dd"},
        {"mime_type": "text/html"},
    ],
)
async def test_another_key_is_another_file(ledger: Ledger, provider: Provider, other: dict[str, str]) -> None:
    await ledger.acquire(KEY, "run", provider.upload)
    await ledger.acquire(KEY.model_copy(update=other), "run", provider.upload)
    assert len(provider.markers) == 2


def test_every_field_of_an_upload_key_is_in_its_name() -> None:
    """A new field must leave the names of entries with its default unchanged."""
    assert set(UploadKey.model_fields) == {"provider", "base_url", "account", "sha256", "mime_type"}
    assert KEY.name == "upload/55560b831fa4e1c238a3eed6108e8e2f1638a70c08a7562d36ab2e4c513e7120"


async def test_the_intent_is_recorded_before_the_upload(ledger: Ledger, store: Store, clock: Clock) -> None:
    recorded = None

    async def upload(marker: str) -> Uploaded:
        nonlocal recorded
        recorded = (await store.get(KEY.name) or {}) | {"asked": marker}
        return Uploaded(file_id="f")

    await ledger.acquire(KEY, "run", upload)
    assert recorded is not None
    assert recorded["marker"] == recorded["asked"]
    assert recorded["since"] == clock()
    assert "uploaded" not in recorded


async def test_a_file_that_soon_expires_is_uploaded_again(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    """Each owner sets its own margin."""
    await ledger.acquire(KEY, "run", provider.upload)
    clock.now += 2 * DAY - 700
    assert (await ledger.acquire(KEY, "run", provider.upload)).file_id == "file-1"
    clock.now += 200
    assert (await ledger.acquire(KEY, "quick", provider.upload, margin_s=60)).file_id == "file-1"
    assert (await ledger.acquire(KEY, "run", provider.upload)).file_id == "file-2"
    assert (await ledger.acquire(KEY, "batch", provider.upload, margin_s=DAY)).file_id == "file-2"


async def test_waiters_use_the_uploaded_file_however_short_lived(ledger: Ledger, provider: Provider) -> None:
    """Another upload would not live longer."""
    provider.lifetime_s = 100
    files = await asyncio.gather(*(ledger.acquire(KEY, "run", provider.upload) for _ in range(10)))
    assert {each.file_id for each in files} == {"file-1"}


async def test_a_file_without_expiry_stays(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    provider.lifetime_s = None
    await ledger.acquire(KEY, "job", provider.upload, owner_s=None)
    clock.now += 1000 * DAY
    assert (await ledger.acquire(KEY, "job", provider.upload, owner_s=None)).file_id == "file-1"
    assert await ledger.list_due() == []


async def test_a_file_that_the_provider_lost_is_uploaded_again_once(ledger: Ledger, provider: Provider) -> None:
    old = await ledger.acquire(KEY, "run", provider.upload, keep_s=None)
    await ledger.forget(KEY, old.file_id)
    assert (await ledger.acquire(KEY, "run", provider.upload, keep_s=None)).file_id == "file-2"
    await ledger.forget(KEY, old.file_id)
    assert (await ledger.acquire(KEY, "run", provider.upload, keep_s=None)).file_id == "file-2"
    assert await ledger.release("run") == []


# --- Cancellation -------------------------------------------------------------------------------------------------


async def test_a_cancelled_waiter_does_not_affect_the_others(ledger: Ledger, provider: Provider) -> None:
    provider.gate = asyncio.Event()
    first = asyncio.ensure_future(ledger.acquire(KEY, "run", provider.upload))
    await provider.wait_for_uploads()
    others = [asyncio.ensure_future(ledger.acquire(KEY, "run", provider.upload)) for _ in range(10)]
    await asyncio.sleep(0.02)
    for each in others[:5]:
        each.cancel()
    provider.gate.set()
    assert {each.file_id for each in await asyncio.gather(first, *others[5:])} == {"file-1"}
    assert [each.cancelled() for each in others] == [True] * 5 + [False] * 5
    assert len(provider.markers) == 1


async def test_an_upload_goes_on_for_waiters_if_its_owner_is_cancelled(ledger: Ledger, provider: Provider) -> None:
    """The release of the cancelled owner does not delete the file."""
    provider.gate = asyncio.Event()
    first = asyncio.ensure_future(ledger.acquire(KEY, "first", provider.upload))
    await provider.wait_for_uploads()
    others = [asyncio.ensure_future(ledger.acquire(KEY, "other", provider.upload)) for _ in range(5)]
    await wait_for_owner(ledger, "other")
    first.cancel()
    await asyncio.sleep(0.02)
    provider.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await ledger.release("first") == []
    assert {each.file_id for each in await asyncio.gather(*others)} == {"file-1"}
    assert len(provider.markers) == 1


async def test_an_upload_ends_once_all_its_owners_are_cancelled(ledger: Ledger, provider: Provider) -> None:
    """A later sweep searches for the file that may have arrived."""
    provider.gate = asyncio.Event()
    first = asyncio.ensure_future(ledger.acquire(KEY, "first", provider.upload))
    await provider.wait_for_uploads()
    other = asyncio.ensure_future(ledger.acquire(KEY, "other", provider.upload))
    await wait_for_owner(ledger, "other")
    first.cancel()
    other.cancel()
    await asyncio.wait([other])
    await ledger.release("other")
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await first
    assert await ledger.list_due() == []
    provider.clock.now += ledger.lease_s
    (orphan,) = await ledger.list_due()
    assert (orphan.marker, orphan.uploaded, orphan.reason) == (provider.markers[0], None, "orphan")
    assert await delete_due_files(ledger, [orphan]) == [provider.markers[0]]
    assert await ledger.list_due() == []


async def test_an_upload_without_waiters_is_cancelled_with_its_owner(ledger: Ledger, provider: Provider) -> None:
    provider.gate = asyncio.Event()
    first = asyncio.ensure_future(ledger.acquire(KEY, "first", provider.upload))
    await provider.wait_for_uploads()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    provider.gate.set()
    assert (await ledger.acquire(KEY, "other", provider.upload)).file_id == "file-2"


async def wait_for_owner(ledger: Ledger, owner: str) -> None:
    """Wait until `owner` is recorded as an owner of the file."""
    async with asyncio.timeout(5):
        while owner not in (await ledger.store.get(KEY.name) or {}).get("owners", {}):  # noqa: ASYNC110 (a record sets no event)
            await asyncio.sleep(0.001)


async def test_an_uploaded_file_is_recorded_although_its_owner_is_cancelled(
    ledger: Ledger, provider: Provider, store: Store
) -> None:
    tasks: list[asyncio.Task[Uploaded]] = []

    async def upload(marker: str) -> Uploaded:
        uploaded = await provider.upload(marker)
        tasks[0].cancel()  # takes effect at the next await, which writes the record
        return uploaded

    tasks.append(asyncio.ensure_future(ledger.acquire(KEY, "run", upload)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert (await ledger.acquire(KEY, "other", provider.upload)).file_id == "file-1"
    assert len(provider.markers) == 1
    assert set((await store.get(KEY.name) or {})["owners"]) == {"run", "other"}
