"""Session: the connection of one run to its provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, Any, Final, TypeVar, cast

from pollux_flows.config import Config
from pollux_flows.errors import APIError, InternalError, PolluxError
from pollux_flows.providers.base import Call
from pollux_flows.providers.batches import Batch, BatchModule, Rows
from pollux_flows.providers.caches import CacheModule
from pollux_flows.providers.redaction import Redactor
from pollux_flows.providers.registry import Provider, find_provider
from pollux_flows.providers.tokens import TokenCount
from pollux_flows.providers.uploads import FilesModule, UploadThreads
from pollux_flows.ratelimit import limiter
from pollux_flows.result import Answer
from pollux_flows.state.upload import Uploaded

T = TypeVar("T")

# Looking up and deleting a file is quick, and must not delay answers.
_HOUSEKEEPING_S: Final = 10.0
# An account with very many files takes very many pages.
_LISTING_S: Final = 300.0
# Without a count, an estimate uses the length of the text.
_COUNTING_S: Final = 60.0


@dataclass(frozen=True)
class Session:
    """A connected provider with a concurrency limit. Belongs to the event loop that opened it."""

    config: Config
    provider: Provider
    client: Any
    slot: limiter.Slot
    uploads: UploadThreads

    async def check(self, call: Call) -> None:
        """Check the finished request, and the provider's catalogue of models, before anything is paid for."""
        self.provider.generate.request(call)
        if self.provider.models is not None:
            await self.ask("metadata", self.provider.models.check(self.client, call))

    async def generate(self, call: Call) -> Answer:
        """Make one call. The caller must have the slot."""
        with self.slot.report_outcome() as reporter:
            answer = await self.ask("generate", self.provider.generate.generate(self.client, call))
            reporter.tokens = answer.usage.get("total_tokens")
        return answer

    async def count_tokens(self, call: Call) -> TokenCount:
        """Have the provider count the input tokens of a call, which is free, and has limits of its own."""
        counting = self._require(self.provider.tokens).count(self.client, call)
        return await self._in_time(min(_COUNTING_S, self.config.timeout_s), counting, "metadata")

    async def upload(self, operation: Callable[[Any], Awaitable[T]]) -> T:
        """Run an operation with a client on an upload thread, and return its result."""
        return await self.ask("upload", self.uploads.run(operation))

    async def file_ready(self, uploaded: Uploaded) -> Uploaded:
        """Wait until the provider can use the file, and return it."""
        return await self.ask("upload", self.files.ready(self.client, uploaded))

    async def file_exists(self, file_id: str) -> bool:
        return await self._has_file(self.files.check(self.client, file_id))

    async def delete_file(self, file_id: str) -> None:
        """Delete a file. A file that no longer exists counts as deleted."""
        await self._has_file(self.files.delete(self.client, file_id))

    async def find_files(self, markers: Collection[str]) -> dict[str, list[str]]:
        """Return for each marker the ids of the provider's files whose name contains it, from one list."""
        return await self._in_time(_LISTING_S, self._find_files(markers))

    async def submit_batch(self, tag: str, rows: Rows, file_id: str | None = None) -> Batch:
        """Submit a batch, in one attempt. `file_id` is the uploaded file with the rows, if the provider takes one."""
        creating = self.batches.create(self.client, self.config.model, tag, rows, file_id)
        return await self.ask("batch_submit", creating)

    async def inspect_batch(self, batch_id: str) -> Batch:
        return await self.ask("batch_inspect", self.batches.get(self.client, batch_id))

    async def batch_pages(self) -> AsyncIterator[list[Batch]]:
        """Iterate over all batches of the account, newest first. After an error, start a new iteration."""
        pages = self.batches.pages(self.client)
        while (page := await self.ask("batch_inspect", anext(pages, None))) is not None:
            yield page

    async def cancel_batch(self, batch_id: str) -> None:
        await self.ask("batch_cancel", self.batches.cancel(self.client, batch_id))

    async def download_batch(self, batch: Batch, into: IO[bytes]) -> None:
        """Write the results of a batch, one per line. After an error, the written part must be discarded."""
        from pollux_flows.providers import body  # imports the HTTP library

        results = cast(IO[bytes], self.redactor.results(into, self.batches.result))
        with body.downloading():
            await self.ask("batch_collect", self.batches.download(self.client, batch, results))

    async def _find_files(self, markers: Collection[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {marker: [] for marker in markers}
        async for file_id, name in self.files.names(self.client):
            for marker in markers:
                if marker in name:
                    found[marker].append(file_id)
        return found

    async def _has_file(self, answer: Awaitable[None]) -> bool:
        """Return whether a request about a file succeeds; False if the provider does not have it."""
        try:
            await self._in_time(_HOUSEKEEPING_S, answer)
        except APIError as error:
            if error.status_code in self.files.GONE:
                return False
            raise
        return True

    async def _in_time(self, seconds: float, answer: Awaitable[T], phase: str = "upload") -> T:
        """Return the answer to a quick request. Raises an APIError if it takes longer than `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                return await self.ask(phase, answer)
        except TimeoutError:
            raise APIError(
                f"{self.config.provider} did not answer within {seconds:g} seconds.",
                retryable=True,
                provider=self.config.provider,
                phase=phase,
            ) from None

    @property
    def files(self) -> FilesModule:
        return self._require(self.provider.files)

    @property
    def caches(self) -> CacheModule:
        return self._require(self.provider.caches)

    @property
    def batches(self) -> BatchModule:
        return self._require(self.provider.batches)

    @property
    def redactor(self) -> Redactor:
        return Redactor(self.config)

    async def ask(self, phase: str, answer: Awaitable[T]) -> T:
        """Await a response, and turn any error into a PolluxError. The key is removed from both."""
        from pollux_flows.providers import errors  # imports the HTTP library

        try:
            return self.redactor.answer(await answer)
        except PolluxError as error:
            self.redactor.error(error)
            if isinstance(error, APIError):
                error.provider, error.phase = error.provider or self.config.provider, error.phase or phase
            raise
        except Exception as error:  # noqa: BLE001 (an SDK may raise anything, which must not cost other calls)
            failure = errors.as_api_error(error, self.config, phase)
        # Raised outside the handler, as the SDK's error holds the request with the key, and must not be the context.
        raise failure

    def _require(self, module: T | None) -> T:
        """Return the module. Raises if the provider lacks it, which `capabilities.check` refuses earlier."""
        if module is None:
            raise InternalError(f"{self.config.provider} lacks this capability.")
        return module


@asynccontextmanager
async def open_session(config: Config) -> AsyncIterator[Session]:
    """Open a session, and close its connection and upload threads at the end."""
    provider = find_provider(config.provider)
    uploads = UploadThreads(config, provider.generate)
    with limiter.slot(config) as slot:
        async with provider.generate.connect(config) as connection:
            try:
                yield Session(config, provider, connection, slot, uploads)
            finally:
                await uploads.close()
