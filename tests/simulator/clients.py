"""A common interface to all providers, so that one test can cover all of them.

Its implementations use the real SDKs in their strict mode, so each answer also proves that the simulator's JSON is
complete.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import anthropic
import httpx
import httpx2
import openai
from google import genai
from google.genai import types

KEY = "key-that-opens-nothing"
KEY_HEADERS = {"authorization": f"Bearer {KEY}", "x-goog-api-key": KEY, "anthropic-version": "2026-10-21"}

#: The exceptions of each client for a closed socket.
DROPPED = (
    openai.APIConnectionError,
    anthropic.APIConnectionError,
    httpx2.RemoteProtocolError,
    httpx.RemoteProtocolError,
)
TIMED_OUT = (openai.APITimeoutError, anthropic.APITimeoutError, httpx2.ReadTimeout, httpx.ReadTimeout)


class ErrorResponse(Exception):  # noqa: N818 (an HTTP response as an exception)
    """An error response of any provider: its status, body and headers."""

    def __init__(self, status: int, body: Any, headers: Any) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.headers = headers


async def unify_errors(attempt: Awaitable[Any]) -> Any:
    """Await a call, and raise the error responses of all SDKs as `ErrorResponse`."""
    try:
        return await attempt
    except openai.APIStatusError as error:
        raise ErrorResponse(error.status_code, {"error": error.body}, error.response.headers) from error
    except anthropic.APIStatusError as error:
        raise ErrorResponse(error.status_code, error.body, error.response.headers) from error
    except genai.errors.APIError as error:
        raise ErrorResponse(error.code, error.details, getattr(error.response, "headers", {})) from error


@dataclass
class Answer:
    """An answer of any provider."""

    text: str | None
    stop: str | None
    raw: Any
    reasoning: str | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Question:
    """The settings that all providers support."""

    prompt: str
    sources: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    tools: dict[str, dict[str, Any]] | None = None
    tool_choice: str = "auto"
    reasoning: bool = False
    max_tokens: int | None = None
    timeout_s: float = 10


class Client(ABC):
    model: ClassVar[str]
    #: A model that reasons, where the usual one does not.
    reasoner: ClassVar[str]

    def __init__(self, sdk: Any) -> None:
        self.sdk = sdk

    @classmethod
    @abstractmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self: ...

    async def ask(self, prompt: str, **settings: Any) -> Answer:
        """Send a prompt; `settings` are the other fields of `Question`."""
        answer: Answer = await unify_errors(self.send(Question(prompt, **settings)))
        return answer

    @abstractmethod
    async def send(self, question: Question) -> Answer: ...


class OpenAI(Client):
    model = "gpt-4.1-mini"
    reasoner = "gpt-5-nano"
    sdk: openai.AsyncOpenAI

    @classmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self:
        transport = await stack.enter_async_context(httpx2.AsyncClient(verify=False))
        return cls(
            openai.AsyncOpenAI(
                api_key=key, base_url=base_url, max_retries=0, http_client=transport, _strict_response_validation=True
            )
        )

    async def send(self, question: Question) -> Answer:
        request: dict[str, Any] = {
            "model": self.reasoner if question.reasoning else self.model,
            "input": [
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": t} for t in (*question.sources, question.prompt)],
                }
            ],
        }
        if question.schema:
            request["text"] = {
                "format": {"type": "json_schema", "name": "answer", "schema": question.schema, "strict": True}
            }
        if question.tools:
            request["tools"] = [
                {"type": "function", "name": name, "parameters": parameters, "strict": True}
                for name, parameters in question.tools.items()
            ]
            named = question.tool_choice not in ("auto", "required", "none")
            request["tool_choice"] = (
                {"type": "function", "name": question.tool_choice} if named else question.tool_choice
            )
        if question.reasoning:
            request["reasoning"] = {"effort": "low", "summary": "auto"}
        if question.max_tokens:
            request["max_output_tokens"] = question.max_tokens
        response = await self.sdk.responses.create(**request, timeout=question.timeout_s)
        usage = response.usage
        summaries = [part.text for item in response.output if item.type == "reasoning" for part in item.summary]
        return Answer(
            text=response.output_text,
            stop=response.status,
            raw=response,
            reasoning="".join(summaries) or None,
            calls=[(i.name, json.loads(i.arguments)) for i in response.output if i.type == "function_call"],
            input_tokens=usage.input_tokens if usage else 0,
            output_tokens=usage.output_tokens if usage else 0,
        )


class Anthropic(Client):
    model = "claude-haiku-4-5"
    reasoner = "claude-sonnet-4-6"
    sdk: anthropic.AsyncAnthropic

    @classmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self:
        transport = await stack.enter_async_context(httpx2.AsyncClient(verify=False))
        return cls(
            anthropic.AsyncAnthropic(
                api_key=key, base_url=base_url, max_retries=0, http_client=transport, _strict_response_validation=True
            )
        )

    async def send(self, question: Question) -> Answer:
        request: dict[str, Any] = {
            "model": self.reasoner if question.reasoning else self.model,
            "max_tokens": question.max_tokens or 1000,
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": t} for t in (*question.sources, question.prompt)]}
            ],
        }
        if question.schema:
            request["output_config"] = {"format": {"type": "json_schema", "schema": question.schema}}
        if question.tools:
            request["tools"] = [
                {"name": name, "input_schema": parameters} for name, parameters in question.tools.items()
            ]
            kinds = {"auto": "auto", "none": "none", "required": "any"}
            request["tool_choice"] = {"type": kinds.get(question.tool_choice, "tool")}
            if question.tool_choice not in kinds:
                request["tool_choice"]["name"] = question.tool_choice
        if question.reasoning:
            request["thinking"] = {"type": "adaptive"}
        message = await self.sdk.messages.create(**request, timeout=question.timeout_s)
        return Answer(
            text="".join(block.text for block in message.content if block.type == "text"),
            stop=message.stop_reason,
            raw=message,
            reasoning="".join(block.thinking for block in message.content if block.type == "thinking") or None,
            calls=[(block.name, block.input) for block in message.content if block.type == "tool_use"],
            input_tokens=message.usage.input_tokens,
            output_tokens=message.usage.output_tokens,
        )


class Gemini(Client):
    model = "gemini-2.5-flash-lite"
    reasoner = "gemini-3-flash-preview"
    sdk: genai.Client

    @classmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self:
        transport = await stack.enter_async_context(httpx2.AsyncClient(verify=False))
        sync_transport = stack.enter_context(httpx2.Client(verify=False))
        options = types.HttpOptions(
            base_url=base_url, api_version="v1", httpx_async_client=transport, httpx_client=sync_transport
        )
        return cls(genai.Client(api_key=key, vertexai=False, http_options=options))

    async def send(self, question: Question) -> Answer:
        config: dict[str, Any] = {
            "automatic_continuation": False,
            "http_options": {"timeout": int(question.timeout_s * 1000)},
        }
        if question.schema:
            config |= {"response_mime_type": "application/json", "response_json_schema": question.schema}
        if question.tools:
            declared = [
                {"name": name, "parameters_json_schema": parameters} for name, parameters in question.tools.items()
            ]
            calling: dict[str, Any] = {"mode": {"auto": "AUTO", "none": "NONE"}.get(question.tool_choice, "ANY")}
            if question.tool_choice not in ("auto", "none", "required"):
                calling["allowed_function_names"] = [question.tool_choice]
            config |= {
                "tools": [{"function_declarations": declared}],
                "tool_config": {"function_calling_config": calling},
            }
        if question.reasoning:
            config["thinking_config"] = {"include_thoughts": True, "thinking_level": "LOW"}
        if question.max_tokens:
            config["max_output_tokens"] = question.max_tokens
        response = await self.sdk.aio.models.generate_content(
            model=self.reasoner if question.reasoning else self.model,
            contents=types.Content(
                role="user", parts=[types.Part(text=t) for t in (*question.sources, question.prompt)]
            ),
            config=types.GenerateContentConfig(**config),
        )
        candidate = response.candidates[0] if response.candidates else None
        parts = (candidate.content and candidate.content.parts) or [] if candidate else []
        usage = response.usage_metadata
        texts = [part.text for part in parts if part.text is not None and not part.thought]
        return Answer(
            text="".join(texts) if texts else None,
            stop=candidate.finish_reason.value if candidate and candidate.finish_reason else None,
            raw=response,
            reasoning="".join(part.text or "" for part in parts if part.thought) or None,
            calls=[(str(part.function_call.name), part.function_call.args) for part in parts if part.function_call],
            input_tokens=(usage and usage.prompt_token_count) or 0,
            output_tokens=((usage and usage.candidates_token_count) or 0)
            + ((usage and usage.thoughts_token_count) or 0),
        )


class Chat(Client):
    """Chat completions over plain httpx, which is how the project's own adapters send them."""

    sdk: httpx.AsyncClient

    @classmethod
    async def open(cls, base_url: str, stack: AsyncExitStack, key: str = KEY) -> Self:
        headers = {"authorization": f"Bearer {key}"}
        http = httpx.AsyncClient(base_url=base_url, headers=headers, verify=False)  # noqa: S501 (loopback)
        return cls(await stack.enter_async_context(http))

    async def send(self, question: Question) -> Answer:
        request: dict[str, Any] = {
            "model": self.reasoner if question.reasoning else self.model,
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": t} for t in (*question.sources, question.prompt)]}
            ],
        }
        if question.schema:
            json_schema = {"name": "answer", "schema": question.schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        if question.tools:
            request["tools"] = [
                {"type": "function", "function": {"name": name, "parameters": parameters}}
                for name, parameters in question.tools.items()
            ]
            named = question.tool_choice not in ("auto", "required", "none")
            request["tool_choice"] = (
                {"type": "function", "function": {"name": question.tool_choice}} if named else question.tool_choice
            )
        if question.reasoning:
            request["reasoning"] = {"effort": "low"}
        if question.max_tokens:
            request["max_tokens"] = question.max_tokens
        answer = await self.sdk.post("chat/completions", json=request, timeout=question.timeout_s)
        body = answer.json()
        if answer.status_code != 200:
            raise ErrorResponse(answer.status_code, body, answer.headers)
        if "error" in body:
            return Answer(text=None, stop=None, raw=body)
        choice = body["choices"][0]
        message = choice["message"]
        return Answer(
            text=message["content"],
            stop=choice["finish_reason"],
            raw=body,
            reasoning=message.get("reasoning") or message.get("reasoning_content"),
            calls=[
                (call["function"]["name"], json.loads(call["function"]["arguments"]))
                for call in message.get("tool_calls", [])
            ],
            input_tokens=body["usage"]["prompt_tokens"],
            output_tokens=body["usage"]["completion_tokens"],
        )


class OpenRouter(Chat):
    model = "google/gemini-2.5-flash-lite"
    reasoner = "anthropic/claude-sonnet-4.6"


class Local(Chat):
    model = "local-model"
    reasoner = "local-model"


CLIENTS: dict[str, type[Client]] = {
    "openai": OpenAI,
    "anthropic": Anthropic,
    "gemini": Gemini,
    "openrouter": OpenRouter,
    "local": Local,
}
