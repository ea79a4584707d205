"""Ledger: every file that was uploaded, who uses it, and what has to be deleted.

It makes no call to a provider: it says whose turn it is, and is told what came of it.
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
from pollux_flows.state import claims
from pollux_flows.state.account import account
from pollux_flows.state.claims import LEASE_S, Claim, Clock, LeaseLostError, unbroken
from pollux_flows.state.identity import digest
from pollux_flows.state.process import this_process
from pollux_flows.state.store import Json, Store
from pollux_flows.state.upload import Due, Entry, Leftover, Uploaded, UploadKey

__all__ = ["Due", "Ledger", "Upload", "UploadKey", "Uploaded"]

Upload = Callable[[str], Awaitable[Uploaded]]
"""Uploads the file under a name that holds the marker it is given."""

OWNER_S: Final = 3600.0
MARGIN_S: Final = 600.0
_DAY_S: Final = 86_400.0
NO_TURN: Final = nullcontext()


class Ledger:
    """The uploads that a store knows of, for all who share it.

    An `owner` is a run, or a deferred job: whatever needs files and at some point is done with them. It is renewed by
    each `hold` and by `renew`; one that is not heard of for `owner_s` is taken for dead, unless that is None. A run
    that starts again after its release is a new one, also under the same name.
    """

    def __init__(self, store: Store, clock: Clock = time.time, *, lease_s: float = LEASE_S) -> None:
        self.store = store
        self.clock = clock
        self.lease_s = lease_s

    async def account(self, key: str | None) -> str:
        """Whose files they are: a name that cannot be turned back into the API key."""
        return await account(self.store, key)

    async def hold(
        self,
        key: UploadKey,
        owner: str,
        upload: Upload,
        *,
        margin_s: float = MARGIN_S,
        owner_s: float | None = OWNER_S,
        keep_s: float | None = 0.0,
        patience_s: float | None = None,
        turn: AbstractAsyncContextManager[object] = NO_TURN,
    ) -> Uploaded:
        """The file at the provider, which it will have for `margin_s` more, and which `owner` now uses.

        If there is none, exactly one of all who ask uploads it, and the others wait, at most `patience_s` for each
        upload. When it fails, those who waited fail with it; when its process dies, one of them takes over; when it is
        cancelled, it goes on for as long as others wait. `keep_s` is for how long the file stays after the owner's
        release or death. `turn` is entered before the upload is claimed: whoever dies leaves no more claims than there
        were turns.
        """
        began = self.clock()
        seen: str | None = None  # the upload that this one waited for
        while True:
            record = await self.store.get(key.name)
            now = self.clock()
            entry = self._entry(record, key)
            if (failure := entry.failure) is not None and (
                failure.marker == seen or failure.at > began or (failure.owner == owner and failure.final)
            ):
                raise failure.error()
            # However short-lived the provider's files are, one that was uploaded since then is the best there is.
            fresh = entry.marker == seen or entry.since >= began
            if entry.usable(now + (0.0 if fresh else margin_s)):
                if (file := await self._own(entry, owner, owner_s, keep_s)) is not None:
                    return file
            elif claims.holder(record, now) is not None:
                seen = entry.marker
                # Now, not once it is there: an uploader that is cancelled looks for others that need the file.
                await self._own(entry, owner, owner_s, keep_s)
                await self._wait(key, patience_s)
            else:
                await self._note(key, owner, owner_s)
                marker = f"pollux-{uuid4().hex}"
                async with turn:
                    if (claim := await self._claim(record, key, owner, marker)) is None:
                        continue  # somebody was quicker: look again
                    uploading = self._upload(claim, key, marker, upload, (owner, owner_s, keep_s))
                    file = await self._finish_for_others(uploading, key, marker, owner)
                if file is not None:
                    return file

    async def forget(self, key: UploadKey, file_id: str) -> None:
        """The provider no longer knows this file: the next `hold` uploads it again."""
        await self._change(key, lambda entry, _: entry.forgotten(file_id))

    async def leave(
        self, key: UploadKey, name: str, uploaded: Uploaded | None = None, /, *, after_s: float = 0.0
    ) -> None:
        """An attempt to upload it has left this file, or may have left one of this name, that nobody will use."""
        at = self.clock() + after_s
        left = Leftover(marker=name, uploaded=uploaded, due_at=at, reason="idle" if uploaded else "orphan")
        await self._change(key, lambda entry, _: entry.leaving(left))

    async def renew(self, owner: str, *, owner_s: float | None = OWNER_S) -> None:
        """The owner lives, and still needs its files."""
        until = None if owner_s is None else self.clock() + owner_s

        def renewed(entry: Entry, _: bool) -> Entry:
            owned = entry.owners.get(owner)
            # Who does not expire, a deferred job, is not made to by a run of the same name.
            return (
                entry
                if owned is None or owned.until is None
                else entry.owned(owner, until, owned.keep_s, _process(owner_s))
            )

        for key in await self._keys(owner):
            entry = await self._change(key, renewed)
            if owner in entry.owners:
                await self._note(key, owner, None if entry.owners[owner].until is None else owner_s)

    async def release(self, owner: str) -> list[Due]:
        """End the owner's use of all its files, and return what is to be deleted of them now.

        A file without an owner is kept for the `keep_s` that its `hold` asked for, for others to use: 0 is not at all,
        None as long as the provider keeps it. Of several owners, the one who wants it kept longest has its way.
        """
        keys = await self._keys(owner)

        async def released(key: UploadKey) -> list[Due]:
            await self._change(key, lambda entry, _: entry.released(owner, self.clock()))
            return self._dues(await self.store.get(key.name))

        dues = await asyncio.gather(*map(released, keys))
        await self.store.delete(*(_notes(owner) + key.name for key in keys))
        return [due for each in dues for due in each]

    async def due(
        self, provider: ProviderName | None = None, account: str | None = None, *, unreadable: list[str] | None = None
    ) -> list[Due]:
        """All that is to be deleted by now: idle files, orphans to look for, and deletions that failed.

        A record that nobody can read hides no other: what is wrong with it goes to `unreadable`.
        """
        dues: list[Due] = []
        async for name in self.store.names("upload/"):
            try:
                if (record := await self.store.get(name)) is None:
                    continue
                entry = Entry.read(record)
            except ConfigurationError as error:
                if unreadable is not None:
                    unreadable.append(str(error))
                continue
            key = entry.key
            if entry.at(self.clock()) != entry:
                await self._change(key, _as_it_is)  # by now
            if provider in {None, key.provider} and account in {None, key.account}:
                dues += self._dues(record)
        return dues

    async def deleting(self, due: Due) -> bool:
        """Claim the deletion. If True, nobody is given that file any more, and nobody else deletes it for a while."""
        claimed = False

        def claim(entry: Entry, uploading: bool) -> Entry:
            nonlocal claimed
            changed = entry.deleting(due, self.clock(), uploading=uploading)
            claimed = changed is not None
            return changed or entry

        await self._change(due.key, claim)
        return claimed

    async def deleted(self, due: Due) -> None:
        """It is gone, or was never there."""
        await self._change(due.key, lambda entry, _: entry.deleted(due.marker))

    async def deletion_failed(self, due: Due, why: str) -> None:
        """It may still be there: it will be due again later."""
        await self._change(due.key, lambda entry, _: entry.undeleted(due.marker, why, self.clock()))

    # --- Holding --------------------------------------------------------------------------------------------

    async def _own(self, seen: Entry, owner: str, owner_s: float | None, keep_s: float | None) -> Uploaded | None:
        """Become an owner of the file that was seen, unless it is gone by now."""
        now = self.clock()
        owned = seen.owners.get(owner)
        if owned is not None and owned.keep_s == keep_s:
            # Of twenty prompts of one run, the first writes; and then one each half lease.
            lasts = owned.until is None if owner_s is None else owned.until is None or owned.until > now + owner_s / 2
            if lasts:
                return seen.uploaded
        if owned is not None and owned.until is None:
            owner_s = None  # a deferred job's claim is not shortened by a run of the same name
        until = None if owner_s is None else now + owner_s

        def own(entry: Entry, _: bool) -> Entry:
            return entry.owned(owner, until, keep_s, _process(owner_s)) if entry.marker == seen.marker else entry

        await self._note(seen.key, owner, owner_s)
        entry = await self._change(seen.key, own)
        return seen.uploaded if entry.marker == seen.marker else None

    async def _wait(self, key: UploadKey, patience_s: float | None) -> None:
        try:
            await claims.freed(self.store, key.name, clock=self.clock, patience_s=patience_s)
        except TimeoutError:
            raise APIError(
                f"Another run has been uploading the same file for more than {patience_s} seconds.",
                hint="Run again when it is done.",
                retryable=True,
                provider=key.provider,
                phase="upload",
            ) from None

    async def _claim(self, seen: Json | None, key: UploadKey, owner: str, marker: str) -> Claim | None:
        """The right to upload, with the intent written down in the same moment."""

        def intent(record: Json) -> Json | None:
            if record != claims.bare(seen):
                return None
            return self._entry(record, key).starting(marker, self.clock()).record()

        return await claims.claim(self.store, key.name, owner, self.lease_s, clock=self.clock, intent=intent)

    async def _finish_for_others(
        self, uploading: Coroutine[Any, Any, Uploaded | None], key: UploadKey, marker: str, owner: str
    ) -> Uploaded | None:
        """Wait for the upload. If this one is cancelled, end the upload too, once it has no other owner."""
        task = asyncio.ensure_future(uploading)

        async def end() -> None:
            for pause in claims.pauses():
                if not (is_needed := await self._has_other_owner(key, marker, owner)):
                    task.cancel()
                await asyncio.wait([task], timeout=pause if is_needed else None)
                if task.done():
                    return

        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await unbroken(end())
            if not task.cancelled():
                task.exception()  # it is on record for those who waited; here, the cancellation is raised
            raise

    async def _has_other_owner(self, key: UploadKey, marker: str, owner: str) -> bool:
        try:
            entry = self._entry(await self.store.get(key.name), key)
        except PolluxError:  # the store cannot say
            return False
        return entry.marker == marker and bool(entry.owners.keys() - {owner})

    async def _upload(
        self, claim: Claim, key: UploadKey, marker: str, upload: Upload, owning: tuple[str, float | None, float | None]
    ) -> Uploaded | None:
        """Upload it and write down what came of it. None if somebody else has taken over meanwhile."""
        owner, owner_s, keep_s = owning
        try:
            async with claim.kept():
                uploaded = await upload(marker)
        except asyncio.CancelledError:
            await unbroken(self._give_up(claim, key, lambda entry: entry.abandoned(self.clock() + self.lease_s)))
            raise
        except Exception as error:
            gone_wrong = partial(Entry.failed, error=error, owner=owner, now=self.clock(), lease_s=self.lease_s)
            await unbroken(self._give_up(claim, key, gone_wrong))
            raise

        def finished(entry: Entry, _: bool = True) -> Entry:
            now = self.clock()
            done = entry.finished(marker, uploaded, now)
            if done.marker != marker:
                return done
            return done.owned(owner, None if owner_s is None else now + owner_s, keep_s, _process(owner_s))

        async def write_down() -> Entry:
            try:
                return await self._settle(claim, key, finished)
            except LeaseLostError:
                return await self._change(key, finished)

        return uploaded if (await unbroken(write_down())).marker == marker else None

    async def _give_up(self, claim: Claim, key: UploadKey, change: Callable[[Entry], Entry]) -> None:
        # A successor has noted the orphan; or nothing can be written now, and the lease runs out. Either way, what
        # ended the upload matters more.
        with suppress(LeaseLostError, PolluxError):
            await self._settle(claim, key, change)

    # --- Entries --------------------------------------------------------------------------------------------

    def _entry(self, record: Json | None, key: UploadKey) -> Entry:
        return (Entry.read(record) if record is not None and claims.bare(record) else Entry(key=key)).at(self.clock())

    async def _change(self, key: UploadKey, change: Callable[[Entry, bool], Entry]) -> Entry:
        """The entry after the change, which is also told whether an upload is going on."""

        def changed(record: Json, held: bool) -> Json | None:
            return change(self._entry(record, key), held).record()

        return self._entry(await claims.amend(self.store, key.name, changed, clock=self.clock, lasts=self._lasts), key)

    async def _settle(self, claim: Claim, key: UploadKey, change: Callable[[Entry], Entry]) -> Entry:
        """The same, by whoever has uploaded it and is done with that."""
        record = await claim.settle(lambda record: change(self._entry(record, key)).record(), lasts=self._lasts)
        return self._entry(record, key)

    def _lasts(self, record: Json) -> float | None:
        return Entry.read(record).ttl_s(self.clock())

    def _dues(self, record: Json | None) -> list[Due]:
        if record is None:
            return []
        now = self.clock()
        return Entry.read(record).at(now).due(now, uploading=claims.holder(record, now) is not None)

    # --- Notes: which files an owner has, so that its release need not look at all ------------------------------

    async def _note(self, key: UploadKey, owner: str, owner_s: float | None) -> None:
        lasts_s = None if owner_s is None else owner_s + _DAY_S
        await self.store.put(_notes(owner) + key.name, key.model_dump(mode="json"), ttl_s=lasts_s)

    async def _keys(self, owner: str) -> list[UploadKey]:
        return [UploadKey.model_validate(record) async for _, record in self.store.scan(_notes(owner))]


def _notes(owner: str) -> str:
    return f"owner/{digest('owner', owner)}/"


def _as_it_is(entry: Entry, _: bool) -> Entry:
    return entry


def _process(owner_s: float | None) -> list[str] | None:
    """Return the process that an owner ends with; None for one that outlives it, as a deferred job does."""
    return this_process() if owner_s is not None and owner_s <= OWNER_S else None
