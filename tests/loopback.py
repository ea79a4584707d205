"""Providers on loopback HTTP: the simulated ones, and a server with scripted replies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import pytest

from pollux_flows import Config, Options, RetryPolicy, Source
from pollux_flows.config import PROVIDERS, ProviderName
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.providers.openrouter import models as catalogue
from pollux_flows.ratelimit import limiter
from pollux_flows.result import Outcome
from pollux_flows.simulator import Logged, Simulator, serve
from tests.executing import execute_plan

KEY = "sk-sentinel-0123456789abcdef"
MODELS: dict[ProviderName, str] = {
    "gemini": "gemini-2.5-flash-lite",
    "openai": "gpt-4.1-mini",
    "anthropic": "claude-sonnet-4-6",
    "openrouter": "google/gemini-2.5-flash-lite",
    "local": "local-model",
}
SDKS: tuple[ProviderName, ...] = ("gemini", "openai", "anthropic")
QUICK = RetryPolicy(initial_delay_s=0.01, max_delay_s=0.02)
ONCE = RetryPolicy(max_attempts=1)

every_provider = pytest.mark.parametrize("provider", PROVIDERS)
with_tools = pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "local"])


class MakeConfig(Protocol):
    def __call__(self, provider: ProviderName, **settings: Any) -> Config: ...


@pytest.fixture(scope="session")
def world() -> Iterator[tuple[Simulator, str]]:
    simulator = Simulator()
    with serve(simulator) as origin:
        yield simulator, origin


@pytest.fixture
def sim(world: tuple[Simulator, str]) -> Simulator:
    """A simulator without requests, caches or faults of earlier tests."""
    simulator, _ = world
    simulator.reset()
    simulator.latency_s = 0.0
    simulator.clock = time.time
    clear_provider_caches()
    return simulator


@pytest.fixture
def config(world: tuple[Simulator, str], sim: Simulator) -> MakeConfig:  # noqa: ARG001 (`sim` resets the world)
    """A maker of Configs for the simulated providers, with a key that must show up nowhere and short waits."""
    return make_config_at(world[1])


def make_config_at(origin: str) -> MakeConfig:
    """Return a maker of Configs whose providers are at this origin."""

    def make(provider: ProviderName, **settings: Any) -> Config:
        defaults = {
            "model": MODELS[provider],
            "api_key": KEY,
            "base_url": Simulator.base_url(provider, origin),
            "retry": QUICK,
            "timeout_s": 20.0,
        }
        return Config(provider=provider, **{**defaults, **settings})

    return make


def asked(sim: Simulator) -> list[Logged]:
    """Return the generate requests that arrived, in order."""
    return [entry for entry in sim.requests if entry.operation == "generate"]


def sent(sim: Simulator) -> dict[str, Any]:
    """Return the body of the only generate request."""
    (entry,) = asked(sim)
    body: dict[str, Any] = entry.body
    return body


async def outcomes(
    prompts: Sequence[str], config: Config, options: Options | None = None, sources: Sequence[Source] = ()
) -> list[Outcome]:
    """Return the outcome of each call, as a flow gets it: a failed call raises nothing."""
    plan = make_plan(make_request(prompts, target=config.target, sources=sources, options=options))
    return await execute_plan(plan, config)


def clear_provider_caches() -> None:
    """Clear the catalogues and rate limiters that earlier tests have left in this process."""
    catalogue._catalogues.clear()
    limiter._limiters.clear()


# --- A server with scripted replies -------------------------------------------------------------------------

Reply = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def http(body: Any, status: int = 200, *, content_type: str = "application/json", **headers: str) -> bytes:
    """Return the bytes of an HTTP reply. A body that is not bytes is sent as JSON; `retry_after` is Retry-After."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", f"content-length: {len(content)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


def good(provider: ProviderName, text: str = "fine", **more: Any) -> dict[str, Any]:
    """Return the body of a minimal successful answer in the protocol of this provider, with `more` fields."""
    bodies: dict[ProviderName, dict[str, Any]] = {
        "gemini": {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}]},
        "openai": {
            "status": "completed",
            "output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}],
        },
        "anthropic": {"content": [{"type": "text", "text": text}], "stop_reason": "end_turn"},
        "openrouter": {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]},
        "local": {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]},
    }
    return {**bodies[provider], **more}


class Scripted:
    """A server that replies to a request with what `choose` returns for its body, and to `/models` with `listing`."""

    def __init__(self, choose: Callable[[bytes], Reply]) -> None:
        self._choose = choose
        self.listing: Reply = http({"data": [{"id": MODELS["openrouter"]}]})
        self.connections = 0
        self.requests: list[bytes] = []
        self.heads: list[bytes] = []
        self.listings = 0
        self.origin = ""
        self._open: set[asyncio.StreamWriter] = set()

    def config(self, provider: ProviderName, **settings: Any) -> Config:
        return make_config_at(self.origin)(provider, **{"retry": ONCE, **settings})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
                await self._answer(head, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"GET") and head.split()[1].endswith(b"/models"):
            self.listings += 1
            reply = self.listing
        else:
            self.requests.append(body)
            self.heads.append(head)
            reply = self._choose(body)
        if isinstance(reply, bytes):
            writer.write(reply)
            await writer.drain()
        else:
            await reply(writer)

    async def close(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()
        await until(lambda: not self._open)


@asynccontextmanager
async def scripted(reply: Reply | Callable[[bytes], Reply], *, by_body: bool = False) -> AsyncIterator[Scripted]:
    """Run a server with one fixed reply or, with `by_body`, a function that returns the reply to a request's body."""
    clear_provider_caches()
    choose: Any = reply if by_body else lambda _body: reply
    server = Scripted(choose)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.origin = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        await server.close()


async def until(condition: Callable[[], object], *, within_s: float = 5.0) -> None:
    """Wait until the condition is true, and fail if that takes too long."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.005)
