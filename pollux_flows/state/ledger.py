"""Ledger: records every uploaded file, its owners, and the files that have to be deleted.

The ledger itself calls no provider: it decides which process uploads or deletes a file, and records the outcome.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import Any, Final
from uuid import uuid4

from pollux_flows.config import ProviderName
from pollux_flows.errors import APIError, ConfigurationError, PolluxError
from pollux_flows.state import leases
from pollux_flows.state.account import derive_account
from pollux_flows.state.identity import digest
from pollux_flows.state.leases import LEASE_S, Clock, Lease, LeaseLostError, run_to_completion
from pollux_flows.state.store import Json, Store
from pollux_flows.state.upload import Due, Entry, Leftover, Ownership, Uploaded, UploadKey

__all__ = ["Due", "Ledger", "Upload", "UploadKey", "Uploaded"]

Upload = Callable[[str], Awaitable[Uploaded]]
"""A function that uploads the file under a name that contains the marker, its argument."""

OWNER_S: Final = 3600.0
MARGIN_S: Final = 600.0
_DAY_S: Final = 86_400.0
NO_LIMIT: Final = nullcontext()


class Ledger:
    """The uploads recorded in a store, for all processes that share it.

    An `owner` is a run or a deferred job that needs files until it releases them. Each `acquire` and `renew` extends
    its ownership; an owner without either for `owner_s` counts as dead, unless that is None. A run that starts again
    after its release is a new owner, even with an unchanged name.
    """

    def __init__(self, store: Store, clock: Clock = time.time, *, lease_s: float = LEASE_S) -> None:
        self.store = store
        self.clock = clock
        self.lease_s = lease_s

    async def derive_account(self, key: str | None) -> str:
        """Return the name of an API key's account, from which the key cannot be recovered."""
        return await derive_account(self.store, key)

    async def acquire(
        self,
        key: UploadKey,
        owner: str,
        upload: Upload,
        *,
        margin_s: float = MARGIN_S,
        owner_s: float | None = OWNER_S,
        keep_s: float | None = 0.0,
        patience_s: float | None = None,
        limit: AbstractAsyncContextManager[object] = NO_LIMIT,
    ) -> Uploaded:
        """Make `owner` an owner of the file, and return the file, which the provider stores for `margin_s` more.

        If there is none, exactly one of the concurrent callers uploads the file, and the others wait, at most
        `patience_s` for each upload. If the upload fails, all of them fail; if the uploading process dies, another one
        uploads; if the upload is cancelled, it goes on while others wait for it. `keep_s` is for how long the file
        stays after the owner's release or death. `limit` is entered before the lease on the upload is acquired, so
        that a process that dies leaves few leases.
        """
        began = self.clock()
        seen: str | None = None  # the upload that this caller waited for
        while True:
            record = await self.store.get(key.name)
            now = self.clock()
            entry = self._entry(record, key)
            if (failure := entry.failure) is not None and (
                failure.marker == seen or failure.at > began or (failure.owner == owner and failure.is_final)
            ):
                raise failure.to_error()
            # A file that was uploaded since then is used even if it expires soon: a new one would, too.
            fresh = entry.marker == seen or entry.since >= began
            if entry.is_usable(now + (0.0 if fresh else margin_s)):
                if (file := await self._add_owner(entry, owner, owner_s, keep_s)) is not None:
                    return file
            elif leases.get_owner(record, now) is not None:
                seen = entry.marker
                # Recorded before the upload is done, so that an uploader that is cancelled finds the others.
                await self._add_owner(entry, owner, owner_s, keep_s)
                await self._wait(key, patience_s)
            else:
                await self._write_note(key, owner, owner_s)
                marker = f"pollux-{uuid4().hex}"
                async with limit:
                    if (lease := await self._acquire_upload(record, key, owner, marker)) is None:
                        continue  # another caller was faster: look again
                    uploading = self._upload(lease, key, marker, upload, (owner, owner_s, keep_s))
                    file = await self._finish_for_others(uploading, key, marker, owner)
                if file is not None:
                    return file

    async def forget(self, key: UploadKey, file_id: str) -> None:
        """Record that the provider no longer has this file: the next `acquire` uploads it again."""
        await self._change(key, lambda entry, _: entry.forget_file(file_id))

    async def add_leftover(
        self, key: UploadKey, name: str, uploaded: Uploaded | None = None, /, *, after_s: float = 0.0
    ) -> None:
        """Record an unused file of a failed attempt, or the name of a file that may exist, to be deleted."""
        at = self.clock() + after_s
        left = Leftover(marker=name, uploaded=uploaded, due_at=at, reason="idle" if uploaded else "orphan")
        await self._change(key, lambda entry, _: entry.add_leftover(left))

    async def renew(self, owner: str, *, owner_s: float | None = OWNER_S) -> None:
        """Extend the ownership of all files of this owner."""
        until = None if owner_s is None else self.clock() + owner_s

        def extend_ownership(entry: Entry, _: bool) -> Entry:
            ownership = entry.owners.get(owner)
            if ownership is None or ownership.until is None:  # a deferred job does not expire
                return entry
            return entry.add_owner(owner, until, ownership.keep_s)

        for key in await self._list_files(owner):
            entry = await self._change(key, extend_ownership)
            if owner in entry.owners:
                await self._write_note(key, owner, None if entry.owners[owner].until is None else owner_s)

    async def release(self, owner: str) -> list[Due]:
        """End the owner's use of all its files, and return the files to delete now.

        A file without an owner stays, for others to use, for the longest `keep_s` of its owners. 0 means not at all,
        None until the provider removes it.
        """
        keys = await self._list_files(owner)

        async def release_file(key: UploadKey) -> list[Due]:
            await self._change(key, lambda entry, _: entry.remove_owner(owner, self.clock()))
            return self._list_due_in(await self.store.get(key.name))

        dues = await asyncio.gather(*map(release_file, keys))
        await self.store.delete(*(_notes_prefix(owner) + key.name for key in keys))
        return [due for each in dues for due in each]

    async def list_due(
        self, provider: ProviderName | None = None, account: str | None = None, *, unreadable: list[str] | None = None
    ) -> list[Due]:
        """Return all files that are to be deleted now: idle files, possible orphans, and failed deletions.

        A record that cannot be read is skipped, and its problem added to `unreadable`.
        """
        dues: list[Due] = []
        async for name in self.store.list_keys("upload/"):
            try:
                if (record := await self.store.get(name)) is None:
                    continue
                entry = Entry.from_record(record)
            except ConfigurationError as error:
                if unreadable is not None:
                    unreadable.append(str(error))
                continue
            key = entry.key
            if entry.update_to(self.clock()) != entry:
                await self._change(key, _keep_unchanged)  # saves the update
            if provider in {None, key.provider} and account in {None, key.account}:
                dues += self._list_due_in(record)
        return dues

    async def begin_deletion(self, due: Due) -> bool:
        """Withdraw the file from use, and return whether this process must delete it."""
        begun = False

        def begin(entry: Entry, uploading: bool) -> Entry:
            nonlocal begun
            changed = entry.begin_deletion(due, self.clock(), uploading=uploading)
            begun = changed is not None
            return changed or entry

        await self._change(due.key, begin)
        return begun

    async def finish_deletion(self, due: Due) -> None:
        """Record that the file was deleted, or never existed."""
        await self._change(due.key, lambda entry, _: entry.finish_deletion(due.marker))

    async def postpone_deletion(self, due: Due, why: str) -> None:
        """Record a failed deletion, to be tried again later."""
        await self._change(due.key, lambda entry, _: entry.postpone_deletion(due.marker, why, self.clock()))

    # --- Uploads --------------------------------------------------------------------------------------------

    async def _add_owner(self, seen: Entry, owner: str, owner_s: float | None, keep_s: float | None) -> Uploaded | None:
        """Make `owner` an owner of the file that was seen, and return the file; None if it is gone."""
        now = self.clock()
        ownership = seen.owners.get(owner)
        if ownership is not None and ownership.until is None:
            owner_s = None  # a deferred job's ownership is not shortened by a run of the same name
        until = None if owner_s is None else now + owner_s
        # So of the prompts of one run, only the first one writes, and then one each half `owner_s`.
        if ownership is not None and ownership.keep_s == keep_s and _lasts_long_enough(ownership, now, owner_s):
            return seen.uploaded

        def add_owner(entry: Entry, _: bool) -> Entry:
            return entry.add_owner(owner, until, keep_s) if entry.marker == seen.marker else entry

        await self._write_note(seen.key, owner, owner_s)
        entry = await self._change(seen.key, add_owner)
        return seen.uploaded if entry.marker == seen.marker else None

    async def _wait(self, key: UploadKey, patience_s: float | None) -> None:
        try:
            await leases.wait_for_release(self.store, key.name, clock=self.clock, patience_s=patience_s)
        except TimeoutError:
            raise APIError(
                f"Another run has been uploading the same file for more than {patience_s} seconds.",
                hint="Run again when it is done.",
                retryable=True,
                provider=key.provider,
                phase="upload",
            ) from None

    async def _acquire_upload(self, seen: Json | None, key: UploadKey, owner: str, marker: str) -> Lease | None:
        """Acquire the lease to upload, and record the intent in the same write."""

        def intent(record: Json) -> Json | None:
            if record != leases.strip_lease(seen):
                return None
            return self._entry(record, key).start_upload(marker, self.clock()).to_record()

        return await leases.acquire_lease(self.store, key.name, owner, self.lease_s, clock=self.clock, intent=intent)

    async def _finish_for_others(
        self, uploading: Coroutine[Any, Any, Uploaded | None], key: UploadKey, marker: str, owner: str
    ) -> Uploaded | None:
        """Wait for the upload. If the caller is cancelled, cancel the upload once the file has no other owner."""
        task = asyncio.ensure_future(uploading)

        async def end() -> None:
            for pause in leases.backoff_pauses():
                if not (is_needed := await self._has_other_owner(key, marker, owner)):
                    task.cancel()
                await asyncio.wait([task], timeout=pause if is_needed else None)
                if task.done():
                    return

        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await run_to_completion(end())
            if not task.cancelled():
                task.exception()  # retrieved, as it is recorded for those that wait; here, the cancellation is raised
            raise

    async def _has_other_owner(self, key: UploadKey, marker: str, owner: str) -> bool:
        try:
            entry = self._entry(await self.store.get(key.name), key)
        except PolluxError:  # the store is unavailable
            return False
        return entry.marker == marker and bool(entry.owners.keys() - {owner})

    async def _upload(
        self, lease: Lease, key: UploadKey, marker: str, upload: Upload, owning: tuple[str, float | None, float | None]
    ) -> Uploaded | None:
        """Upload the file and record the outcome; None if another process has taken over meanwhile."""
        owner, owner_s, keep_s = owning
        try:
            async with lease.keep_alive():
                uploaded = await upload(marker)
        except asyncio.CancelledError:
            await run_to_completion(
                self._give_up(lease, key, lambda entry: entry.abandon_upload(self.clock() + self.lease_s))
            )
            raise
        except Exception as error:
            fail = partial(Entry.fail_upload, error=error, owner=owner, now=self.clock(), lease_s=self.lease_s)
            await run_to_completion(self._give_up(lease, key, fail))
            raise

        def finish(entry: Entry, _: bool = True) -> Entry:
            now = self.clock()
            done = entry.finish_upload(marker, uploaded, now)
            if done.marker != marker:
                return done
            return done.add_owner(owner, None if owner_s is None else now + owner_s, keep_s)

        async def save() -> Entry:
            try:
                return await self._finish(lease, key, finish)
            except LeaseLostError:
                return await self._change(key, finish)

        return uploaded if (await run_to_completion(save())).marker == marker else None

    async def _give_up(self, lease: Lease, key: UploadKey, change: Callable[[Entry], Entry]) -> None:
        # If the lease was lost, a successor has recorded the orphan; if the store is unavailable, the lease expires.
        # In both cases, the caller raises the error that ended the upload.
        with suppress(LeaseLostError, PolluxError):
            await self._finish(lease, key, change)

    # --- Entries --------------------------------------------------------------------------------------------

    def _entry(self, record: Json | None, key: UploadKey) -> Entry:
        return (
            Entry.from_record(record) if record is not None and leases.strip_lease(record) else Entry(key=key)
        ).update_to(self.clock())

    async def _change(self, key: UploadKey, change: Callable[[Entry, bool], Entry]) -> Entry:
        """Change the entry and return it; `change` also receives whether an upload is going on."""

        def change_entry(record: Json, uploading: bool) -> Json | None:
            return change(self._entry(record, key), uploading).to_record()

        return self._entry(
            await leases.change_record(self.store, key.name, change_entry, clock=self.clock, ttl_of=self._ttl_of), key
        )

    async def _finish(self, lease: Lease, key: UploadKey, change: Callable[[Entry], Entry]) -> Entry:
        """Change the entry, release the lease in the same write, and return the entry."""
        record = await lease.finish(lambda record: change(self._entry(record, key)).to_record(), ttl_of=self._ttl_of)
        return self._entry(record, key)

    def _ttl_of(self, record: Json) -> float | None:
        return Entry.from_record(record).ttl_s(self.clock())

    def _list_due_in(self, record: Json | None) -> list[Due]:
        if record is None:
            return []
        now = self.clock()
        return (
            Entry.from_record(record).update_to(now).list_due(now, uploading=leases.get_owner(record, now) is not None)
        )

    # --- Notes: list the files of an owner, so that its release need not read all entries -----------------------

    async def _write_note(self, key: UploadKey, owner: str, owner_s: float | None) -> None:
        ttl_s = None if owner_s is None else owner_s + _DAY_S
        await self.store.put(_notes_prefix(owner) + key.name, key.model_dump(mode="json"), ttl_s=ttl_s)

    async def _list_files(self, owner: str) -> list[UploadKey]:
        return [UploadKey.model_validate(record) async for _, record in self.store.scan(_notes_prefix(owner))]


def _notes_prefix(owner: str) -> str:
    return f"owner/{digest('owner', owner)}/"


def _lasts_long_enough(ownership: Ownership, now: float, owner_s: float | None) -> bool:
    return ownership.until is None or (owner_s is not None and ownership.until > now + owner_s / 2)


def _keep_unchanged(entry: Entry, _: bool) -> Entry:
    return entry
