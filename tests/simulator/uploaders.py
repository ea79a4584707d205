"""A common interface to all Files APIs, implemented with the real SDKs, so that one test can cover all of them."""

import io
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Self

import anthropic
import openai
from google import genai
from google.genai import types

from . import clients
from .clients import KEY, Client, unify_errors


class Uploader(ABC):
    provider: ClassVar[str]
    client: ClassVar[type[Client]]
    #: An id in the format of this provider that no file has.
    unknown_id: ClassVar[str]
    #: The timeout of an upload.
    timeout_s: float = 20

    def __init__(self, sdk: Any) -> None:
        self.sdk = sdk

    @classmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self:
        opened: Any = await cls.client.open(base_url, stack, key)
        return cls(opened.sdk)

    async def upload(self, content: Any, name: str = "a.pdf", mime_type: str = "application/pdf") -> str:
        """Upload bytes or an open file; return its id."""
        return str(await unify_errors(self._upload(content, name, mime_type)))

    async def get(self, file_id: str) -> Any:
        return await unify_errors(self._get(file_id))

    async def delete(self, file_id: str) -> Any:
        return await unify_errors(self._delete(file_id))

    async def ask(self, file_id: str, kind: str = "document") -> int:
        """Ask `four` about a document (or an image); return the input tokens."""
        return int(await unify_errors(self._ask(file_id, kind)))

    @abstractmethod
    async def list_ids(self, size: int) -> list[str]:
        """Return the ids of all files, fetched in pages of `size`."""

    @abstractmethod
    async def _upload(self, content: Any, name: str, mime_type: str) -> Any: ...

    @abstractmethod
    async def _get(self, file_id: str) -> Any: ...

    @abstractmethod
    async def _delete(self, file_id: str) -> Any: ...

    @abstractmethod
    async def _ask(self, file_id: str, kind: str) -> Any: ...


class OpenAI(Uploader):
    provider = "openai"
    client = clients.OpenAI
    unknown_id = "file-unknown"
    sdk: openai.AsyncOpenAI

    async def _upload(self, content: Any, name: str, mime_type: str) -> str:
        expires_after: Any = {"anchor": "created_at", "seconds": 86_400}
        file = await self.sdk.files.create(
            file=(name, content, mime_type), purpose="user_data", expires_after=expires_after, timeout=self.timeout_s
        )
        return file.id

    async def _get(self, file_id: str) -> Any:
        return await self.sdk.files.retrieve(file_id)

    async def _delete(self, file_id: str) -> Any:
        return await self.sdk.files.delete(file_id)

    async def _ask(self, file_id: str, kind: str) -> int:
        part: Any = {"type": "input_file" if kind == "document" else "input_image", "file_id": file_id}
        if kind == "image":
            part["detail"] = "auto"
        messages: Any = [{"role": "user", "content": [part, {"type": "input_text", "text": "four"}]}]
        response = await self.sdk.responses.create(model="gpt-4.1", input=messages)
        assert response.usage is not None
        return response.usage.input_tokens

    async def list_ids(self, size: int) -> list[str]:
        return [file.id async for file in self.sdk.files.list(limit=size)]


class Anthropic(Uploader):
    provider = "anthropic"
    client = clients.Anthropic
    unknown_id = "file_unknown"
    sdk: anthropic.AsyncAnthropic

    async def _upload(self, content: Any, name: str, mime_type: str) -> str:
        file = await self.sdk.files.upload(
            file=(name, content, mime_type), expires_in_seconds=86_400, timeout=self.timeout_s
        )
        return file.id

    async def _get(self, file_id: str) -> Any:
        return await self.sdk.files.retrieve_metadata(file_id)

    async def _delete(self, file_id: str) -> Any:
        return await self.sdk.files.delete(file_id)

    async def _ask(self, file_id: str, kind: str) -> int:
        block: Any = {"type": kind, "source": {"type": "file", "file_id": file_id}}
        messages: Any = [{"role": "user", "content": [block, {"type": "text", "text": "four"}]}]
        message = await self.sdk.messages.create(model="claude-haiku-4-5", max_tokens=99, messages=messages)
        return message.usage.input_tokens

    async def list_ids(self, size: int) -> list[str]:
        return [file.id async for file in self.sdk.files.list(limit=size)]


class Gemini(Uploader):
    provider = "gemini"
    client = clients.Gemini
    unknown_id = "files/unknown"
    sdk: genai.Client

    async def _upload(self, content: Any, name: str, mime_type: str) -> str:
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        config = types.UploadFileConfig(
            mime_type=mime_type, display_name=name, http_options=types.HttpOptions(timeout=int(self.timeout_s * 1000))
        )
        file = await self.sdk.aio.files.upload(file=source, config=config)
        return str(file.name)

    async def _get(self, file_id: str) -> Any:
        return await self.sdk.aio.files.get(name=file_id)

    async def _delete(self, file_id: str) -> Any:
        return await self.sdk.aio.files.delete(name=file_id)

    async def _ask(self, file_id: str, kind: str) -> int:
        uri = f"https://generativelanguage.googleapis.com/v1/{file_id}"
        part = types.Part.from_uri(file_uri=uri, mime_type="image/png" if kind == "image" else "application/pdf")
        response = await self.sdk.aio.models.generate_content(model="gemini-2.5-flash-lite", contents=[part, "four"])
        assert response.usage_metadata is not None
        return response.usage_metadata.prompt_token_count or 0

    async def list_ids(self, size: int) -> list[str]:
        return [str(file.name) async for file in await self.sdk.aio.files.list(config={"page_size": size})]


UPLOADERS: dict[str, type[Uploader]] = {kind.provider: kind for kind in (OpenAI, Anthropic, Gemini)}
