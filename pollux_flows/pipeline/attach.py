"""Attach: have every source of a plan in the form it is sent in, each file uploaded once."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import uuid4

from pollux_flows.config import Config
from pollux_flows.errors import APIError, InternalError, PolluxError
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.read import sources_module
from pollux_flows.pipeline.retry import Attempts, attempt
from pollux_flows.providers.content import Content, changed, load, open_file
from pollux_flows.providers.material import Delivery, Material
from pollux_flows.providers.session import Session
from pollux_flows.providers.uploads import FileToSend
from pollux_flows.source import Source
from pollux_flows.state.ledger import Ledger
from pollux_flows.state.store import open_store
from pollux_flows.state.upload import Due, Uploaded, UploadKey

# Uploads share the way out with the calls; more at once would only make each slower.
_UPLOADS_AT_ONCE: Final = 4
# A run waits so long for its files to be deleted; the rest is left to `sweep`.
_GIVE_BACK_S: Final = 30.0
_RENEW_S: Final = 900.0
_log: Final = logging.getLogger("pollux_flows")
# The simulator of a process ends with it, and so does what it keeps.
_SIMULATED: Final = f"simulated-{uuid4().hex}"


@asynccontextmanager
async def attached(plan: Plan, session: Session, owner: str) -> AsyncIterator[Attachments]:
    """The attachments of a plan; afterwards its files are given back."""
    if "upload" not in (delivery_of(plan, index) for index in range(len(plan.sources))):
        yield Attachments(plan, session)  # nothing to write down, so nothing to open
        return
    ledger = Ledger(open_store())
    account = await account_of(session.config, ledger)
    attachments = Attachments(plan, session, _Holding(ledger, account, owner))
    renewing = asyncio.create_task(_renew(ledger, owner))
    try:
        yield attachments
    finally:
        renewing.cancel()
        await attachments.close()
        await _give_back(session, ledger, owner)


async def _renew(ledger: Ledger, owner: str) -> None:
    """A run that takes longer than an owner is believed to live says that it does."""
    while True:
        await asyncio.sleep(_RENEW_S)
        try:
            await ledger.renew(owner)
        except PolluxError as error:
            _log.warning("The files of this run could not be renewed: %s", error)


async def _give_back(session: Session, ledger: Ledger, owner: str) -> None:
    """Give this run's files back, and delete those that nobody may use any more; what takes long is left to `sweep`.

    The answers are paid for by now: nothing that goes wrong here may cost one.
    """
    try:
        async with asyncio.timeout(_GIVE_BACK_S):
            await delete(session, ledger, await ledger.release(owner, keep_s=session.config.keep_files_s))
    except (PolluxError, TimeoutError) as error:
        _log.warning("Some files of this run are left for the flow `sweep` to delete: %s", error or "it took too long")


async def account_of(config: Config, ledger: Ledger) -> str:
    """Whose files they are. What the simulator keeps in this process is nobody else's."""
    return _SIMULATED if config.use_mock else await ledger.account(config.key())


@dataclass(frozen=True)
class _Holding:
    ledger: Ledger
    account: str
    owner: str


class Attachments:
    """The sources of one plan, made ready for one provider. Whoever asks for one waits until it is ready."""

    def __init__(self, plan: Plan, session: Session, holding: _Holding | None = None) -> None:
        self._plan, self._session, self._holding = plan, session, holding
        self._turn = asyncio.Semaphore(_UPLOADS_AT_ONCE)
        self._ready: dict[int, asyncio.Task[Material]] = {}

    def pretended(self, sources: Sequence[int]) -> tuple[Material, ...]:
        """What the materials will look like, for a request that is only looked at. Nothing is read or sent."""
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
        """The materials of these sources, in their order."""
        for index in sources:
            if index not in self._ready:
                self._ready[index] = asyncio.create_task(self._make(index))
        # Shielded: a call that is cancelled must not take the others' upload with it.
        return tuple([await asyncio.shield(self._ready[index]) for index in sources])

    async def forgotten(self, sources: Sequence[int], materials: Sequence[Material]) -> bool:
        """Whether the provider lost any of these files. Those are uploaded again by whoever asks next."""
        lost = False
        for index, material in zip(sources, materials, strict=True):
            if material.file is None or await self._session.file_exists(material.file.file_id):
                continue
            lost = True
            key, holding = self._key(index)
            await holding.ledger.forget(key, material.file.file_id)
            ready = self._ready.get(index)
            if ready is not None and ready.done() and ready.result() is material:  # else somebody was quicker
                del self._ready[index]
        return lost

    async def close(self) -> None:
        """End what nobody waits for any more."""
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
                return replace(material, data=await load(source, content))
            case "upload" if content is not None:
                return replace(material, file=await self._hold(index, source, content))
            case _:
                return material

    async def _text(self, source: Source, content: Content | None) -> str:
        if content is None:
            return source.text or ""
        return (await load(source, content)).decode()  # which a byte order mark is a part of

    async def _hold(self, index: int, source: Source, content: Content) -> Uploaded:
        key, holding = self._key(index)
        return await holding.ledger.hold(
            key,
            holding.owner,
            lambda marker: self._upload(source, content, marker),
            keep_s=self._session.config.keep_files_s,
        )

    async def _upload(self, source: Source, content: Content, marker: str) -> Uploaded:
        """Upload under a name that holds `marker`, again if that fails; a copy that an earlier attempt left goes."""

        async def send(client: Any) -> Uploaded:
            with closing(open_file(source)) as body:
                file = FileToSend(
                    _file_name(source, content.mime_type, marker), content.mime_type, content.size_bytes, body
                )
                uploaded = await self._session.files.upload(client, file)
                if body.read_whole(content):
                    return uploaded
            await self._session.files.delete(client, uploaded.file_id)
            raise changed(source)

        config = self._session.config
        attempts: Attempts[Uploaded] = await attempt(
            lambda: self._session.upload(send), policy=config.retry, timeout_s=config.timeout_s, slot=self._turn
        )
        uploaded = attempts.unwrap()
        if attempts.unknown:
            await self._delete_copies(marker, uploaded)
        return uploaded

    async def _delete_copies(self, marker: str, kept: Uploaded) -> None:
        try:
            for copy in set(await self._session.find_files(marker)) - {kept.file_id}:
                await self._session.delete_file(copy)
        except APIError as error:
            _log.warning("A copy of an upload may be left, under a name with %s: %s", marker, error)

    def _key(self, index: int) -> tuple[UploadKey, _Holding]:
        content, target = self._plan.contents[index], self._plan.target
        if content is None or self._holding is None:
            raise InternalError(f"Source {index} is no file.")
        key = UploadKey(
            provider=target.provider,
            base_url=target.base_url,
            account=self._holding.account,
            sha256=content.sha256,
            mime_type=content.mime_type,
        )
        return key, self._holding


def delivery_of(plan: Plan, index: int) -> Delivery:
    """How a source of the plan travels."""
    content = plan.contents[index]
    delivery = sources_module(plan.target.provider).delivery
    return delivery(plan.sources[index], _mime_type(plan, index), content.size_bytes if content else None)


def _mime_type(plan: Plan, index: int) -> str:
    content = plan.contents[index]
    return plan.sources[index].mime_type if content is None else content.mime_type


async def delete_due(session: Session, ledger: Ledger, account: str) -> list[str]:
    """Delete all that this account has no more use for."""
    due = await ledger.due(provider=session.config.provider, account=account)
    return await delete(session, ledger, [each for each in due if each.key.base_url == session.config.base_url])


async def delete(session: Session, ledger: Ledger, dues: Sequence[Due]) -> list[str]:
    """Delete these; what cannot be deleted now is left for the next time."""
    turn = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    async def one(due: Due) -> list[str]:
        async with turn:
            if not await ledger.deleting(due):
                return []
            try:
                found = [due.uploaded.file_id] if due.uploaded else await session.find_files(due.marker)
                for file_id in found:
                    await session.delete_file(file_id)
            except APIError as error:
                await ledger.deletion_failed(due, error.message)
                return []
            await ledger.deleted(due)
            return found

    return [file_id for found in await asyncio.gather(*map(one, dues)) for file_id in found]


def _file_name(source: Source, mime_type: str, marker: str) -> str:
    """The marker, and an ending that says what it is: OpenAI believes nothing else."""
    own = PurePosixPath(str(source.uri)).suffix
    honest = mimetypes.guess_type(f"file{own}")[0] == mime_type
    return marker + (own if honest else mimetypes.guess_extension(mime_type) or "")
