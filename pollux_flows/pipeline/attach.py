"""Attach: make the sources of a plan ready to send, and upload each file once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from pollux_flows.config import Target
from pollux_flows.errors import APIError, InternalError, PolluxError
from pollux_flows.files.content import Content, load
from pollux_flows.pipeline.cleanup import open_ledger, release_owner
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.upload_file import upload_file
from pollux_flows.providers.material import Delivery, Material
from pollux_flows.providers.registry import find_provider
from pollux_flows.providers.session import Session
from pollux_flows.providers.uploads import Purpose
from pollux_flows.source import Source
from pollux_flows.state.ledger import MARGIN_S, NO_LIMIT, OWNER_S, Ledger
from pollux_flows.state.upload import Uploaded, UploadKey

# Uploads share the bandwidth with the calls; more at once would only make each slower.
_UPLOADS_AT_ONCE: Final = 4
_RENEW_S: Final = 900.0
# The statuses with which providers report, among other problems, that they do not have a file of a request.
_MAY_MEAN_LOST: Final = {400, 403, 404}
_log: Final = logging.getLogger("pollux_flows")


@asynccontextmanager
async def open_attachments(plan: Plan, session: Session, owner: str) -> AsyncIterator[Attachments]:
    """Yield the attachments of a plan, and release its files afterwards."""
    if "upload" not in (delivery_of(plan, index) for index in range(len(plan.sources))):
        yield Attachments(plan, session)  # without files, no ledger is needed
        return
    ledger = open_ledger(session.config)
    account = await ledger.derive_account(session.config.key())
    attachments = Attachments(plan, session, FileOwner(ledger, account, owner))
    renewing = asyncio.create_task(_renew(ledger, owner))
    try:
        yield attachments
    finally:
        renewing.cancel()
        await attachments.close()
        await release_owner(session, ledger, owner)


async def _renew(ledger: Ledger, owner: str) -> None:
    """Renew the run's ownership of its files until cancelled."""
    while True:
        await asyncio.sleep(_RENEW_S)
        try:
            await ledger.renew(owner)
        except PolluxError as error:
            _log.warning("The files of this run could not be renewed: %s", error)


@dataclass(frozen=True)
class FileOwner:
    """An owner of files at the provider, and how long it owns them."""

    ledger: Ledger
    account: str
    owner: str
    owner_s: float | None = OWNER_S
    margin_s: float = MARGIN_S

    async def file(
        self,
        session: Session,
        source: Source,
        content: Content,
        *,
        turn: AbstractAsyncContextManager[object] = NO_LIMIT,
        purpose: Purpose = "source",
    ) -> Uploaded:
        """Return the provider's file with that content, which is uploaded if there is none."""
        key, config = self.key(session.config.target, content), session.config
        return await self.ledger.acquire(
            key,
            self.owner,
            lambda marker: upload_file(
                session, source, content, marker, partial(self.ledger.add_leftover, key), purpose=purpose
            ),
            margin_s=self.margin_s,
            owner_s=self.owner_s,
            keep_s=config.keep_files_s if purpose == "source" else 0.0,
            patience_s=config.timeout_s,
            limit=turn,
        )

    def key(self, target: Target, content: Content) -> UploadKey:
        """Return the key of that content in the ledger."""
        return UploadKey(
            provider=target.provider,
            base_url=target.base_url,
            account=self.account,
            sha256=content.sha256,
            mime_type=content.mime_type,
        )


class Attachments:
    """The sources of one plan in the form that one provider accepts. Calls wait until their sources are ready."""

    def __init__(self, plan: Plan, session: Session, owner: FileOwner | None = None) -> None:
        self._plan, self._session, self._owner = plan, session, owner
        self._turn = asyncio.Semaphore(_UPLOADS_AT_ONCE)
        self._ready: dict[int, asyncio.Task[Material]] = {}
        self._in_use: WeakValueDictionary[int, Material] = WeakValueDictionary()

    def make_placeholders(self, sources: Sequence[int]) -> tuple[Material, ...]:
        """Return placeholders for the materials, for a request that is only checked. Nothing is read or sent."""
        return tuple(
            Material(
                self._plan.sources[index],
                _mime_type(self._plan, index),
                text="" if delivery_of(self._plan, index) == "text" else None,
                file=Uploaded(file_id="unsent", uri="unsent", expires_at=0.0),
            )
            for index in sources
        )

    async def materials(self, sources: Sequence[int]) -> tuple[Material, ...]:
        """Return the materials of these sources, in their order, once they are ready."""
        ready = {index: material for index in sources if (material := self._in_use.get(index)) is not None}
        tasks = {index: self._start_making(index) for index in sources if index not in ready}
        # Shielded, as cancelling a call must not cancel an upload that other calls wait for.
        ready |= {index: await asyncio.shield(task) for index, task in tasks.items()}
        for index, material in ready.items():
            if material.file is None:  # it holds the bytes, so it is only cached while calls use it
                self._in_use[index] = material
                self._ready.pop(index, None)
        return tuple(ready[index] for index in sources)

    def _start_making(self, index: int) -> asyncio.Task[Material]:
        if index not in self._ready:
            self._ready[index] = asyncio.create_task(self._make(index))
        return self._ready[index]

    async def has_lost_files(
        self, error: APIError | None, sources: Sequence[int], materials: Sequence[Material]
    ) -> bool:
        """Return whether a call failed because the provider lost files, so that it can be retried with new ones."""
        if error is None or error.status_code not in _MAY_MEAN_LOST:
            return False
        try:
            return await self._forget_lost_files(sources, materials)
        except PolluxError:
            return False  # unknown, so the provider's error about the call is reported

    async def _forget_lost_files(self, sources: Sequence[int], materials: Sequence[Material]) -> bool:
        """Forget those of these files that the provider lost, so that they are uploaded again. False if none is."""
        has_lost = False
        for index, material in zip(sources, materials, strict=True):
            if material.file is None or await self._session.file_exists(material.file.file_id):
                continue
            has_lost = True
            key, owner = self._key(index)
            await owner.ledger.forget(key, material.file.file_id)
            ready = self._ready.get(index)
            if ready is not None and ready.done() and ready.result() is material:  # otherwise another call was quicker
                del self._ready[index]
        return has_lost

    async def close(self) -> None:
        """Cancel uploads and reads that no call waits for any more."""
        for task in self._ready.values():
            task.cancel()
        await asyncio.gather(*self._ready.values(), return_exceptions=True)

    async def _make(self, index: int) -> Material:
        source, content = self._plan.sources[index], self._plan.contents[index]
        material = Material(source, _mime_type(self._plan, index))
        match delivery_of(self._plan, index):
            case "text":
                return replace(material, text=await self._text(source, content))
            case "inline" if content is not None:
                return replace(material, data=await load(source, content, limit_s=self._session.config.timeout_s))
            case "upload" if content is not None:
                _, owner = self._key(index)
                return replace(material, file=await owner.file(self._session, source, content, turn=self._turn))
            case _:
                return material

    async def _text(self, source: Source, content: Content | None) -> str:
        if content is None:
            return source.text or ""
        data = await load(source, content, limit_s=self._session.config.timeout_s)
        return data.decode()  # including a byte order mark

    def _key(self, index: int) -> tuple[UploadKey, FileOwner]:
        content = self._plan.contents[index]
        if content is None or self._owner is None:
            raise InternalError(f"Source {index} is not a file.")
        return self._owner.key(self._plan.target, content), self._owner


def delivery_of(plan: Plan, index: int) -> Delivery:
    """Return how a source of the plan is sent to its provider."""
    content = plan.contents[index]
    delivery = find_provider(plan.target.provider).sources.delivery
    return delivery(plan.sources[index], _mime_type(plan, index), content.size_bytes if content else None)


def text_size(plan: Plan, index: int) -> int:
    """Return the bytes of text of a source that is sent as text; 0 for other sources."""
    if delivery_of(plan, index) != "text":
        return 0
    content = plan.contents[index]
    return len((plan.sources[index].text or "").encode()) if content is None else content.size_bytes


def _mime_type(plan: Plan, index: int) -> str:
    content = plan.contents[index]
    return plan.sources[index].mime_type if content is None else content.mime_type
