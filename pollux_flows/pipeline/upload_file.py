"""Uploads one file to its provider, with retries, and records what a failed attempt may have left there."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pollux_flows.errors import APIError, PolluxError
from pollux_flows.files.content import Content, HashingReader, changed_error, forget, open_file
from pollux_flows.files.mime import ending
from pollux_flows.pipeline.retry import retry_call
from pollux_flows.providers.session import Session
from pollux_flows.providers.uploads import FileToSend, Purpose
from pollux_flows.source import Source
from pollux_flows.state.leases import LEASE_S
from pollux_flows.state.upload import Uploaded


class Leave(Protocol):
    """Notes what is to be deleted: this file or, where it is not known, whatever has this name, after so long."""

    async def __call__(self, name: str, uploaded: Uploaded | None = None, /, *, after_s: float = 0.0) -> None: ...


async def send(
    session: Session, source: Source, content: Content, marker: str, leave: Leave, *, purpose: Purpose = "source"
) -> Uploaded:
    """Have the provider keep the file, under a name that begins with `marker`."""
    try:
        return await _Sending(session, source, content, marker, leave, purpose).send()
    except APIError as error:
        # What may have been stored is on record, and storing it cost nothing.
        error.outcome_unknown = False
        error.provider, error.phase = session.config.provider, "upload"
        raise


@dataclass
class _Sending:
    session: Session
    source: Source
    content: Content
    marker: str
    leave: Leave
    purpose: Purpose
    attempts: int = 0
    in_doubt: list[str] = field(default_factory=list)
    """The names of attempts that may have arrived all the same."""

    async def send(self) -> Uploaded:
        try:
            name, uploaded, is_unchanged = await retry_call(self._attempt, self.session.config)
        except PolluxError:
            for doubtful in self.in_doubt:
                await self.leave(doubtful, after_s=LEASE_S)  # the last one may still be on its way
            raise
        for doubtful in self.in_doubt:
            await self.leave(doubtful)
        try:
            if not is_unchanged:
                raise await self._changed()
            return await retry_call(lambda: self.session.file_ready(uploaded), self.session.config)
        except PolluxError:
            await self.leave(name, uploaded)
            raise

    async def _attempt(self) -> tuple[str, Uploaded, bool]:
        """Upload once, under a name of its own."""
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
        """The file at the provider, and whether that is what was examined."""
        mime_type, size_bytes = self.content.mime_type, self.content.size_bytes
        with closing(await open_file(self.source)) as body:
            body.size_bytes = size_bytes
            # The ending says what it is: OpenAI believes nothing else.
            file_name = name + ending(str(self.source.uri), mime_type)
            file = FileToSend(file_name, mime_type, size_bytes, body, self.purpose)
            self.in_doubt.append(name)
            try:
                return await self.session.files.upload(client, file), body.has_read_all_of(self.content)
            except Exception as error:  # noqa: BLE001 (an SDK may throw anything at a file that changes as it is read)
                failure = error
            if _is_unchanged(body, self.content):
                raise failure
        # Not from within: a provider's own error holds the request, with the key, and must not even be the context.
        raise await self._changed()

    async def _changed(self) -> PolluxError:
        await forget(self.source)
        return changed_error(self.source)


def _is_unchanged(body: HashingReader, content: Content) -> bool:
    """Return whether the file has the length that was examined and, where all of it was read, that content."""
    try:
        if body.tell() == content.size_bytes and not body.has_read_all_of(content):
            return False
        return body.seek(0, io.SEEK_END) == content.size_bytes
    except (OSError, ValueError):
        return True  # unknown, so the provider's reply stands
