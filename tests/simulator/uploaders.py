"""Every Files API behind one small face, so that one test can use them all. Behind it are the real SDKs."""

import io
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Self

import anthropic
import httpx2
import openai
from google import genai
from google.genai import types

from .clients import KEY, Failed


class Uploader(ABC):
    provider: ClassVar[str]
    #: An id that was never given out.
    nobodys: ClassVar[str]
    #: How long it waits for an answer to an upload, in seconds.
    patience: float = 20

    @classmethod
    @abstractmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self: ...

    async def upload(self, content: Any, name: str = "a.pdf", mime_type: str = "application/pdf") -> str:
        """Bytes, or an open file; gives the id."""
        return str(await self._told(self._upload(content, name, mime_type)))

    async def get(self, file_id: str) -> Any:
        return await self._told(self._get(file_id))

    async def delete(self, file_id: str) -> Any:
        return await self._told(self._delete(file_id))

    async def ask(self, file_id: str, kind: str = "document") -> int:
        """Put a document (or an image) before the prompt `four`; gives the input tokens."""
        return int(await self._told(self._ask(file_id, kind)))

    @abstractmethod
    async def ids(self, size: int) -> list[str]:
        """All there are, fetched in pages of `size`."""

    @staticmethod
    async def _told(attempt: Any) -> Any:
        """Errors of all SDKs as one."""
        try:
            return await attempt
        except (openai.APIStatusError, anthropic.APIStatusError) as error:
            raise Failed(error.status_code, error.body, error.response.headers) from error
        except genai.errors.APIError as error:
            raise Failed(error.code, error.details, getattr(error.response, "headers", {})) from error

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
    nobodys = "file-nobodys"

    def __init__(self, sdk: openai.AsyncOpenAI) -> None:
        self.sdk = sdk

    @classmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self:
        transport = await stack.enter_async_context(httpx2.AsyncClient(verify=False))
        return cls(
            openai.AsyncOpenAI(
                api_key=key, base_url=base_url, max_retries=0, http_client=transport, _strict_response_validation=True
            )
        )

    async def _upload(self, content: Any, name: str, mime_type: str) -> str:
        lasts: Any = {"anchor": "created_at", "seconds": 86_400}
        file = await self.sdk.files.create(
            file=(name, content, mime_type), purpose="user_data", expires_after=lasts, timeout=self.patience
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
        said: Any = [{"role": "user", "content": [part, {"type": "input_text", "text": "four"}]}]
        response = await self.sdk.responses.create(model="gpt-4.1", input=said)
        assert response.usage is not None
        return response.usage.input_tokens

    async def ids(self, size: int) -> list[str]:
        return [file.id async for file in self.sdk.files.list(limit=size)]


class Anthropic(Uploader):
    provider = "anthropic"
    nobodys = "file_nobodys"

    def __init__(self, sdk: anthropic.AsyncAnthropic) -> None:
        self.sdk = sdk

    @classmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self:
        transport = await stack.enter_async_context(httpx2.AsyncClient(verify=False))
        return cls(
            anthropic.AsyncAnthropic(
                api_key=key, base_url=base_url, max_retries=0, http_client=transport, _strict_response_validation=True
            )
        )

    async def _upload(self, content: Any, name: str, mime_type: str) -> str:
        file = await self.sdk.files.upload(
            file=(name, content, mime_type), expires_in_seconds=86_400, timeout=self.patience
        )
        return file.id

    async def _get(self, file_id: str) -> Any:
        return await self.sdk.files.retrieve_metadata(file_id)

    async def _delete(self, file_id: str) -> Any:
        return await self.sdk.files.delete(file_id)

    async def _ask(self, file_id: str, kind: str) -> int:
        block: Any = {"type": kind, "source": {"type": "file", "file_id": file_id}}
        said: Any = [{"role": "user", "content": [block, {"type": "text", "text": "four"}]}]
        message = await self.sdk.messages.create(model="claude-haiku-4-5", max_tokens=99, messages=said)
        return message.usage.input_tokens

    async def ids(self, size: int) -> list[str]:
        return [file.id async for file in self.sdk.files.list(limit=size)]


class Gemini(Uploader):
    provider = "gemini"
    nobodys = "files/nobodys"

    def __init__(self, sdk: genai.Client) -> None:
        self.sdk = sdk

    @classmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self:
        transport = await stack.enter_async_context(httpx2.AsyncClient(verify=False))
        options = types.HttpOptions(
            base_url=base_url,
            api_version="v1",
            httpx_async_client=transport,
            httpx_client=stack.enter_context(httpx2.Client(verify=False)),
        )
        return cls(genai.Client(api_key=key, vertexai=False, http_options=options))

    async def _upload(self, content: Any, name: str, mime_type: str) -> str:
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        config = types.UploadFileConfig(
            mime_type=mime_type, display_name=name, http_options=types.HttpOptions(timeout=int(self.patience * 1000))
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

    async def ids(self, size: int) -> list[str]:
        return [str(file.name) async for file in await self.sdk.aio.files.list(config={"page_size": size})]


UPLOADERS: dict[str, type[Uploader]] = {kind.provider: kind for kind in (OpenAI, Anthropic, Gemini)}
