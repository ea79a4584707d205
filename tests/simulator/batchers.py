"""A common interface to all batch systems, implemented with the real SDKs, so that one test can cover all of them."""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import anthropic
import openai
from google import genai

from . import uploaders
from .clients import KEY, unify_errors
from .uploaders import Uploader


@dataclass
class Result:
    """The result of one row."""

    key: str | None
    #: "succeeded", "errored", "expired" or "cancelled".
    outcome: str
    text: str | None = None
    #: The message of an error.
    message: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0


class Batcher(ABC):
    provider: ClassVar[str]
    uploader: ClassVar[type[Uploader]]
    #: The SDK's names of the phases of a batch.
    state_names: ClassVar[Mapping[str, str]]
    #: The operation that returns the results.
    results_operation: ClassVar[str]
    #: Whether unanswered rows come back as expired or cancelled results.
    returns_unanswered_rows = True

    def __init__(self, sdk: Any) -> None:
        self.sdk = sdk

    @classmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self:
        uploader: Any = await cls.uploader.open(base_url, stack, key)
        return cls(uploader.sdk)

    async def submit(self, *prompts: str, label: str = "run-1", **params: Any) -> str:
        """Submit a batch of prompts with the keys r0, r1, ...; return its id. Anthropic does not take the label."""
        return str(await unify_errors(self._submit({f"r{n}": text for n, text in enumerate(prompts)}, label, params)))

    async def state(self, batch_id: str) -> str:
        return str(await unify_errors(self._state(batch_id)))

    async def results(self, batch_id: str) -> list[Result]:
        """Return the results in the order in which the provider sends them."""
        return [self._read(line) async for line in self._lines(batch_id)]

    async def results_by_key(self, batch_id: str) -> dict[str | None, Result]:
        return {result.key: result for result in await self.results(batch_id)}

    async def cancel(self, batch_id: str) -> None:
        await unify_errors(self._cancel(batch_id))

    async def list_ids(self, size: int) -> list[str]:
        """Return the ids of all batches, fetched in pages of `size`."""
        return list(await unify_errors(self._list_all(size)))

    async def _list_all(self, size: int) -> list[str]:
        return [batch_id async for batch_id in self._ids(size)]

    @abstractmethod
    async def _submit(self, prompts: Mapping[str, str], label: str, params: dict[str, Any]) -> str: ...

    @abstractmethod
    async def _state(self, batch_id: str) -> Any: ...

    @abstractmethod
    async def _cancel(self, batch_id: str) -> Any: ...

    @abstractmethod
    def _lines(self, batch_id: str) -> AsyncIterator[Any]: ...

    @abstractmethod
    def _read(self, line: Any) -> Result: ...

    @abstractmethod
    def _ids(self, size: int) -> AsyncIterator[str]: ...


class OpenAI(Batcher):
    provider = "openai"
    uploader = uploaders.OpenAI
    state_names = {  # noqa: RUF012
        "starting": "validating", "running": "in_progress", "finishing": "finalizing", "completed": "completed",
        "cancelling": "cancelling", "cancelled": "cancelled", "expired": "expired", "failed": "failed",
    }  # fmt: skip
    results_operation = "file.content"
    sdk: openai.AsyncOpenAI

    async def _submit(self, prompts: Mapping[str, str], label: str, params: dict[str, Any]) -> str:
        rows = [
            {
                "custom_id": key,
                "method": "POST",
                "url": "/v1/responses",
                "body": {"model": "gpt-4.1-mini", "input": prompt, **params},
            }
            for key, prompt in prompts.items()
        ]
        file = await self.sdk.files.create(file=(f"{label}.jsonl", jsonl(*rows)), purpose="batch")
        batch = await self.sdk.batches.create(
            input_file_id=file.id, endpoint="/v1/responses", completion_window="24h", metadata={"run": label}
        )
        return batch.id

    async def _state(self, batch_id: str) -> Any:
        return (await self.sdk.batches.retrieve(batch_id)).status

    async def _cancel(self, batch_id: str) -> Any:
        return await self.sdk.batches.cancel(batch_id)

    async def _lines(self, batch_id: str) -> AsyncIterator[Any]:
        batch = await self.sdk.batches.retrieve(batch_id)
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                async with self.sdk.files.with_streaming_response.content(file_id) as stream:
                    async for line in stream.iter_lines():
                        yield json.loads(line)

    def _read(self, line: Any) -> Result:
        response, error = line["response"], line["error"]
        if error:
            outcome = {"batch_expired": "expired", "batch_cancelled": "cancelled"}[error["code"]]
            return Result(line["custom_id"], outcome, message=error["message"])
        body = response["body"]
        if response["status_code"] != 200:
            return Result(line["custom_id"], "errored", message=body["error"]["message"])
        texts = [part["text"] for item in body["output"] if item["type"] == "message" for part in item["content"]]
        usage = body["usage"]
        return Result(
            line["custom_id"], "succeeded", "".join(texts), None, usage["input_tokens"], usage["output_tokens"]
        )

    async def _ids(self, size: int) -> AsyncIterator[str]:
        async for batch in self.sdk.batches.list(limit=size):
            yield batch.id


class Anthropic(Batcher):
    provider = "anthropic"
    uploader = uploaders.Anthropic
    state_names = {  # noqa: RUF012
        "starting": "in_progress", "running": "in_progress", "finishing": "in_progress", "completed": "ended",
        "cancelling": "canceling", "cancelled": "ended", "expired": "ended", "failed": "ended",
    }  # fmt: skip
    results_operation = "batch.results"
    sdk: anthropic.AsyncAnthropic

    async def _submit(self, prompts: Mapping[str, str], label: str, params: dict[str, Any]) -> str:  # noqa: ARG002
        requests: Any = [
            {
                "custom_id": key,
                "params": {
                    "model": "claude-haiku-4-5",
                    "max_tokens": 1000,
                    "messages": [{"role": "user", "content": prompt}],
                    **params,
                },
            }
            for key, prompt in prompts.items()
        ]
        return (await self.sdk.messages.batches.create(requests=requests)).id

    async def _state(self, batch_id: str) -> Any:
        return (await self.sdk.messages.batches.retrieve(batch_id)).processing_status

    async def _cancel(self, batch_id: str) -> Any:
        return await self.sdk.messages.batches.cancel(batch_id)

    async def _lines(self, batch_id: str) -> AsyncIterator[Any]:
        async for line in await self.sdk.messages.batches.results(batch_id):
            yield line

    def _read(self, line: Any) -> Result:
        result = line.result
        if result.type == "succeeded":
            text = "".join(block.text for block in result.message.content)
            usage = result.message.usage
            return Result(line.custom_id, result.type, text, None, usage.input_tokens, usage.output_tokens)
        message = result.error.error.message if result.type == "errored" else None
        return Result(line.custom_id, "cancelled" if result.type == "canceled" else result.type, message=message)

    async def _ids(self, size: int) -> AsyncIterator[str]:
        async for batch in self.sdk.messages.batches.list(limit=size):
            yield batch.id


class Gemini(Batcher):
    """Gemini's batches with inline requests."""

    provider = "gemini"
    uploader = uploaders.Gemini
    state_names = {  # noqa: RUF012
        "starting": "JOB_STATE_PENDING", "running": "JOB_STATE_RUNNING", "finishing": "JOB_STATE_RUNNING",
        "completed": "JOB_STATE_SUCCEEDED", "cancelling": "JOB_STATE_RUNNING", "cancelled": "JOB_STATE_CANCELLED",
        "expired": "JOB_STATE_EXPIRED", "failed": "JOB_STATE_FAILED",
    }  # fmt: skip
    model = "gemini-2.5-flash-lite"
    results_operation = "batch.get"
    returns_unanswered_rows = False
    sdk: genai.Client

    async def _submit(self, prompts: Mapping[str, str], label: str, params: dict[str, Any]) -> str:
        requests: Any = [
            {"contents": prompt, "metadata": {"key": key}, "config": params or None} for key, prompt in prompts.items()
        ]
        job = await self.sdk.aio.batches.create(model=self.model, src=requests, config={"display_name": label})
        return str(job.name)

    async def _state(self, batch_id: str) -> Any:
        job = await self.sdk.aio.batches.get(name=batch_id)
        assert job.state is not None
        return job.state.value

    async def _cancel(self, batch_id: str) -> Any:
        return await self.sdk.aio.batches.cancel(name=batch_id)

    async def _lines(self, batch_id: str) -> AsyncIterator[Any]:
        job = await self.sdk.aio.batches.get(name=batch_id)
        for answer in (job.dest and job.dest.inlined_responses) or []:
            body = answer.model_dump(mode="json", by_alias=True, exclude_none=True)
            yield {"key": (answer.metadata or {}).get("key"), **body}

    def _read(self, line: Any) -> Result:
        if "error" in line:
            outcome = {1: "cancelled", 4: "expired"}.get(line["error"]["code"], "errored")
            return Result(line.get("key"), outcome, message=line["error"]["message"])
        response = line["response"]
        texts = [part["text"] for part in response["candidates"][0]["content"].get("parts", [])]
        usage = response["usageMetadata"]
        return Result(
            line.get("key"),
            "succeeded",
            "".join(texts),
            None,
            usage["promptTokenCount"],
            usage.get("candidatesTokenCount", 0),
        )

    async def _ids(self, size: int) -> AsyncIterator[str]:
        async for job in await self.sdk.aio.batches.list(config={"page_size": size}):
            yield str(job.name)


class GeminiFile(Gemini):
    """Gemini's batches with requests in a file."""

    results_operation = "file.content"

    async def _submit(self, prompts: Mapping[str, str], label: str, params: dict[str, Any]) -> str:
        rows = [
            {
                "key": key,
                "request": {
                    "contents": [{"parts": [{"text": prompt}]}],
                    **({"generation_config": params} if params else {}),
                },
            }
            for key, prompt in prompts.items()
        ]
        file = await self.sdk.aio.files.upload(file=io.BytesIO(jsonl(*rows)), config={"mime_type": "application/jsonl"})
        job = await self.sdk.aio.batches.create(model=self.model, src=str(file.name), config={"display_name": label})
        return str(job.name)

    async def _lines(self, batch_id: str) -> AsyncIterator[Any]:
        job = await self.sdk.aio.batches.get(name=batch_id)
        if job.dest and job.dest.file_name:
            content = await self.sdk.aio.files.download(file=job.dest.file_name)
            for line in content.splitlines():
                yield json.loads(line)


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


BATCHERS: dict[str, type[Batcher]] = {
    "openai": OpenAI,
    "anthropic": Anthropic,
    "gemini": Gemini,
    "gemini-file": GeminiFile,
}
