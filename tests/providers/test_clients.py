"""Connections: made once a run, shared by its calls, closed with it, and bound to nothing that lives longer."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pollux_flows import APIError, Config, ConfigurationError, Options, run, run_many
from pollux_flows.config import PROVIDERS, URL_VARIABLES, ProviderName
from pollux_flows.pipeline.retry import attempt
from pollux_flows.providers import http as http_clients
from pollux_flows.providers.session import open_session
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import ONCE, QUICK, SDKS, MakeConfig, asked, every_provider, good, http, scripted, until


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every HTTP client that is made."""
    made: list[Any] = []
    make = http_clients.sdk_client

    def noting(*args: Any, **settings: Any) -> Any:
        made.append(make(*args, **settings))
        return made[-1]

    monkeypatch.setattr(http_clients, "sdk_client", noting)
    return made


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Whoever leaves a socket or a transport behind is told by the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        yield
        gc.collect()


@every_provider
async def test_one_client_serves_all_calls(provider: ProviderName, config: MakeConfig, clients: list[Any]) -> None:
    """Twenty prompts, one client."""
    await run_many([f"p{n}" for n in range(20)], config=config(provider))
    (client,) = clients
    assert client.is_closed


@every_provider
async def test_connections_are_reused(provider: ProviderName) -> None:
    """As many connections as calls may be under way at once, not as many as there are calls."""
    async with scripted(http(good(provider))) as server:
        await run_many([f"p{n}" for n in range(12)], config=server.config(provider, request_concurrency=2))
        assert len(server.requests) == 12
        assert server.connections <= 2


@every_provider
async def test_the_client_is_closed_after_success(provider: ProviderName, config: MakeConfig) -> None:
    """Nothing is left for the garbage collector to complain about."""
    with nothing_left_open():
        await run("p", config=config(provider))


@every_provider
async def test_the_client_is_closed_after_a_failure(
    provider: ProviderName, config: MakeConfig, sim: Simulator, clients: list[Any]
) -> None:
    """Also when every call failed, in every way a call can fail."""
    sim.fail(Fault(kind="drop"), contains="dropped", times=None)
    sim.fail(Fault(kind="malformed"), contains="malformed", times=None)
    sim.fail(Fault(status=400), contains="refused", times=None)
    with nothing_left_open(), pytest.raises(APIError):
        await run_many(["dropped", "malformed", "refused"], config=config(provider))
    assert [client.is_closed for client in clients] == [True]


@every_provider
async def test_the_client_is_closed_after_a_cancellation(
    provider: ProviderName, config: MakeConfig, sim: Simulator, clients: list[Any]
) -> None:
    """Whoever cancels the run leaves no connection behind."""
    sim.fail(Fault(kind="hang"), times=None)
    with nothing_left_open():
        running = asyncio.create_task(run_many(["a", "b"], config=config(provider)))
        await until(lambda: len(asked(sim)) == 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert [client.is_closed for client in clients] == [True]


@every_provider
async def test_the_client_is_closed_when_the_body_raises(
    provider: ProviderName, config: MakeConfig, clients: list[Any]
) -> None:
    """A session ends with its block, however the block ends."""

    async def failing() -> None:
        async with open_session(config(provider)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()
    assert [client.is_closed for client in clients] == [True]


def test_loops_share_nothing(config: MakeConfig) -> None:
    """Run after run, each with an event loop of its own: no connection of a dead loop is ever used again."""
    for _ in range(3):
        for provider in PROVIDERS:
            envelope = asyncio.run(run_many(["a", "b"], config=config(provider)))
            assert envelope.status == "ok"


def test_threads_share_nothing(config: MakeConfig, sim: Simulator) -> None:
    """Four threads with a loop each, thirty calls each to every provider, at the same time: not one error."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for provider in PROVIDERS:
                envelope = asyncio.run(run_many([f"p{n}" for n in range(30)], config=config(provider)))
                assert envelope.answers == [f"Simulated answer to: p{n}" for n in range(30)]
        except BaseException as problem:  # noqa: BLE001 (a thread tells nobody otherwise)
            problems.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(asked(sim)) == 4 * 30 * len(PROVIDERS)


@every_provider
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense"])
async def test_a_proxy_does_not_stand_before_this_machine(
    provider: ProviderName, proxy: str, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy is for the way out: what listens on loopback is reached without it."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    assert (await run("p", config=config(provider))).status == "ok"


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_proxy_stands_before_everything_else(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch, config: MakeConfig
) -> None:
    """An address elsewhere goes through it: here into nothing, as the error says."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    elsewhere = config(provider, base_url="http://pollux.invalid/v1", retry=ONCE)
    with pytest.raises(APIError, match="ConnectError") as caught:
        await run("p", config=elsewhere)
    assert caught.value.outcome_unknown is False


@every_provider
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "gopher://127.0.0.1:9"])
async def test_a_proxy_that_nobody_can_use_is_a_mistake_in_the_setup(
    provider: ProviderName, proxy: str, monkeypatch: pytest.MonkeyPatch, config: MakeConfig
) -> None:
    """Told as one, with the variables to look at."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="proxy") as caught:
        await run("p", config=config(provider, base_url="http://pollux.invalid/v1"))
    assert "HTTP_PROXY" in str(caught.value.hint)


SWITCHES = {
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
    "GOOGLE_GENAI_USE_ENTERPRISE": "true",
    "GOOGLE_GENAI_CLIENT_MODE": "replay",
    "GOOGLE_GENAI_ACCESS_TOKEN": "somebody-elses",
    "GOOGLE_GENAI_API_KEY": "somebody-elses",
    "GOOGLE_GENAI_DEFAULT_HEADERS": "x-extra: somebody-elses",
    "GOOGLE_CLOUD_PROJECT": "somebody-elses",
    "GOOGLE_GENAI_API_VERSION": "beta",
    "GOOGLE_GENAI_HTTP_CLIENT": "httpx",
    "GOOGLE_API_KEY": "somebody-elses",
    "OPENAI_ADMIN_KEY": "somebody-elses",
    "OPENAI_ORG_ID": "somebody-elses",
    "OPENAI_PROJECT_ID": "somebody-elses",
    "OPENAI_CUSTOM_HEADERS": "x-extra: somebody-elses\nauthorization: Bearer somebody-elses",
    "ANTHROPIC_AUTH_TOKEN": "somebody-elses",
    "ANTHROPIC_CUSTOM_HEADERS": "x-extra: somebody-elses\nauthorization: Bearer somebody-elses",
    "ANTHROPIC_IDENTITY_TOKEN": "somebody-elses",
    "ANTHROPIC_FEDERATION_RULE_ID": "somebody-elses",
    "ANTHROPIC_ORGANIZATION_ID": "somebody-elses",
}


@pytest.mark.parametrize("provider", SDKS)
async def test_no_variable_of_an_sdk_changes_what_is_asked(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment may be set up for something else; none of it goes to an address that only the Config names."""
    for name, value in SWITCHES.items():
        monkeypatch.setenv(name, value)
    async with scripted(http(good(provider))) as server:
        await run("p", config=server.config(provider, api_key="sk-passed"))
    (head,) = server.heads
    assert b"sk-passed" in head
    assert b"somebody-elses" not in head + server.requests[0]


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("openai", [b"openai-organization: org-1", b"openai-project: project-1", b"x-extra: for-openai"]),
        ("anthropic", [b"x-extra: for-anthropic"]),
    ],
)
async def test_what_the_environment_adds_to_its_key_goes_to_the_address_that_it_names(
    provider: ProviderName, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the bare SDK: an organization, a project, and the headers that a gateway asks for."""
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-extra: for-openai")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "x-extra: for-anthropic")
    async with scripted(http(good(provider))) as server:
        config = server.config(provider)
        monkeypatch.setenv(URL_VARIABLES[provider], str(config.base_url))
        await run("p", config=config)
    (head,) = server.heads
    assert [header for header in expected if header not in head.lower()] == []


@every_provider
async def test_the_same_session_serves_many_operations(provider: ProviderName, config: MakeConfig) -> None:
    """What one attempt loop needs of a session is its slot: it comes back after each."""
    async with open_session(config(provider, request_concurrency=1)) as session:

        async def nothing() -> int:
            return 1

        for _ in range(3):
            done = await attempt(nothing, policy=QUICK, timeout_s=1, slot=session.slot)
            assert done.unwrap() == 1


@every_provider
async def test_the_simulator_in_process_is_a_provider_too(provider: ProviderName) -> None:
    """`use_mock` needs no socket and no key, and does what the provider can do."""
    config = Config(provider=provider, model="local-model" if provider == "local" else _MOCKED[provider], use_mock=True)
    envelope = await run_many(["a", "b"], config=config, options=Options(max_tokens=100))
    assert envelope.answers == ["Simulated answer to: a", "Simulated answer to: b"]


_MOCKED = {
    "gemini": "gemini-2.5-flash-lite",
    "openai": "gpt-4.1-mini",
    "anthropic": "claude-sonnet-4-6",
    "openrouter": "openai/gpt-4.1-mini",
}
