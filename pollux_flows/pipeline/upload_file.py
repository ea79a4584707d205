"""Upload file: upload one file with retries, and record files that failed attempts may have left behind."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pollux_flows.errors import APIError, PolluxError
from pollux_flows.files.content import Content, HashingReader, changed_error, forget, open_file
from pollux_flows.files.mime import choose_extension
from pollux_flows.pipeline.retry import retry_call
from pollux_flows.providers.session import Session
from pollux_flows.providers.uploads import FileToSend, Purpose
from pollux_flows.source import Source
from pollux_flows.state.leases import LEASE_S
from pollux_flows.state.upload import Uploaded


class RecordLeftover(Protocol):
    """Records a file to be deleted after so long: this one or, if it is unknown, any file of this name."""

    async def __call__(self, name: str, uploaded: Uploaded | None = None, /, *, after_s: float = 0.0) -> None: ...


async def upload_file(
    session: Session,
    source: Source,
    content: Content,
    marker: str,
    record_leftover: RecordLeftover,
    *,
    purpose: Purpose = "source",
) -> Uploaded:
    """Upload the file of a source, under a name that begins with `marker`."""
    try:
        return await _Upload(session, source, content, marker, record_leftover, purpose).run()
    except APIError as error:
        # A file that may have been stored is on record, and costs nothing.
        error.outcome_unknown = False
        error.provider, error.phase = session.config.provider, "upload"
        raise


@dataclass
class _Upload:
    """The upload of one file, with its attempts."""

    session: Session
    source: Source
    content: Content
    marker: str
    record_leftover: RecordLeftover
    purpose: Purpose
    attempts: int = 0
    in_doubt: list[str] = field(default_factory=list)
    """The names of failed attempts whose file may have been stored nevertheless."""

    async def run(self) -> Uploaded:
        try:
            name, uploaded, is_unchanged = await retry_call(self._attempt, self.session.config)
        except PolluxError:
            for doubtful in self.in_doubt:
                await self.record_leftover(doubtful, after_s=LEASE_S)  # the last one may still be in progress
            raise
        for doubtful in self.in_doubt:
            await self.record_leftover(doubtful)
        try:
            if not is_unchanged:
                raise await self._changed_error()
            return await retry_call(lambda: self.session.file_ready(uploaded), self.session.config)
        except PolluxError:
            await self.record_leftover(name, uploaded)
            raise

    async def _attempt(self) -> tuple[str, Uploaded, bool]:
        """Upload once, under a name that no other attempt has."""
        self.attempts += 1
        name = f"{self.marker}-{self.attempts:04}"
        try:
            uploaded, is_unchanged = await self.session.upload(partial(self._upload, name))
        except APIError as error:
            if not error.outcome_unknown and name in self.in_doubt:
                self.in_doubt.remove(name)
            raise
        self.in_doubt.remove(name)
        return name, uploaded, is_unchanged

    async def _upload(self, name: str, client: Any) -> tuple[Uploaded, bool]:
        """Upload the file, and return the provider's file and whether the content was still the examined one."""
        mime_type, size_bytes = self.content.mime_type, self.content.size_bytes
        with closing(await open_file(self.source)) as body:
            body.size_bytes = size_bytes
            # With an extension, as OpenAI derives the type only from that.
            file_name = name + choose_extension(str(self.source.uri), mime_type)
            file = FileToSend(file_name, mime_type, size_bytes, body, self.purpose)
            self.in_doubt.append(name)
            try:
                return await self.session.files.upload(client, file), body.has_read_all_of(self.content)
            except Exception as error:  # noqa: BLE001 (an SDK may raise anything if a file changes while it is read)
                failure = error
            if _is_unchanged(body, self.content):
                raise failure
        # Raised outside the handler, as the SDK's error holds the request with the key, and must not be the context.
        raise await self._changed_error()

    async def _changed_error(self) -> PolluxError:
        await forget(self.source)
        return changed_error(self.source)


def _is_unchanged(body: HashingReader, content: Content) -> bool:
    """Return whether the file still has the examined length and, if all of it was read, the examined content."""
    try:
        if body.tell() == content.size_bytes and not body.has_read_all_of(content):
            return False
        return body.seek(0, io.SEEK_END) == content.size_bytes
    except (OSError, ValueError):
        return True  # unknown, so the provider's reply counts
