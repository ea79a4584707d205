"""HTTP clients: one for each run, shared by its calls, closed at its end, and bound to one event loop."""

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
def created_clients(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect every HTTP client that is created."""
    created: list[Any] = []
    make = http_clients.sdk_client

    def create_noting(*args: Any, **settings: Any) -> Any:
        created.append(make(*args, **settings))
        return created[-1]

    monkeypatch.setattr(http_clients, "sdk_client", create_noting)
    return created


@contextmanager
def assert_nothing_left_open() -> Iterator[None]:
    """Turn the ResourceWarning of an unclosed socket or transport into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        yield
        gc.collect()


@every_provider
async def test_all_calls_of_a_run_share_one_client(
    provider: ProviderName, config: MakeConfig, created_clients: list[Any]
) -> None:
    await run_many([f"p{n}" for n in range(20)], config=config(provider))
    (client,) = created_clients
    assert client.is_closed


@every_provider
async def test_connections_are_reused(provider: ProviderName) -> None:
    """The number of connections is bounded by request_concurrency, not by the number of calls."""
    async with scripted(http(good(provider))) as server:
        await run_many([f"p{n}" for n in range(12)], config=server.config(provider, request_concurrency=2))
        assert len(server.requests) == 12
        assert server.connections <= 2


@every_provider
async def test_the_client_is_closed_after_success(provider: ProviderName, config: MakeConfig) -> None:
    with assert_nothing_left_open():
        await run("p", config=config(provider))


@every_provider
async def test_the_client_is_closed_after_a_failure(
    provider: ProviderName, config: MakeConfig, sim: Simulator, created_clients: list[Any]
) -> None:
    """The calls fail in different ways: dropped, malformed, refused."""
    sim.fail(Fault(kind="drop"), contains="dropped", times=None)
    sim.fail(Fault(kind="malformed"), contains="malformed", times=None)
    sim.fail(Fault(status=400), contains="refused", times=None)
    with assert_nothing_left_open(), pytest.raises(APIError):
        await run_many(["dropped", "malformed", "refused"], config=config(provider))
    assert [client.is_closed for client in created_clients] == [True]


@every_provider
async def test_the_client_is_closed_after_a_cancellation(
    provider: ProviderName, config: MakeConfig, sim: Simulator, created_clients: list[Any]
) -> None:
    sim.fail(Fault(kind="hang"), times=None)
    with assert_nothing_left_open():
        running = asyncio.create_task(run_many(["a", "b"], config=config(provider)))
        await until(lambda: len(asked(sim)) == 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert [client.is_closed for client in created_clients] == [True]


@every_provider
async def test_the_client_is_closed_when_the_session_block_raises(
    provider: ProviderName, config: MakeConfig, created_clients: list[Any]
) -> None:
    async def raise_in_session() -> None:
        async with open_session(config(provider)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await raise_in_session()
    assert [client.is_closed for client in created_clients] == [True]


def test_a_client_is_not_reused_in_another_event_loop(config: MakeConfig) -> None:
    """Each run has a new event loop."""
    for _ in range(3):
        for provider in PROVIDERS:
            envelope = asyncio.run(run_many(["a", "b"], config=config(provider)))
            assert envelope.status == "ok"


def test_runs_in_several_threads_do_not_disturb_each_other(config: MakeConfig, sim: Simulator) -> None:
    """Four threads, each with an event loop, make thirty calls to every provider at once."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for provider in PROVIDERS:
                envelope = asyncio.run(run_many([f"p{n}" for n in range(30)], config=config(provider)))
                assert envelope.answers == [f"Simulated answer to: p{n}" for n in range(30)]
        except BaseException as problem:  # noqa: BLE001 (raised after the thread has ended)
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
async def test_a_loopback_address_bypasses_the_proxy(
    provider: ProviderName, proxy: str, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    assert (await run("p", config=config(provider))).status == "ok"


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_remote_address_goes_through_the_proxy(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch, config: MakeConfig
) -> None:
    """Nothing listens at the proxy's address, so the call fails to connect."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    remote_config = config(provider, base_url="http://pollux.invalid/v1", retry=ONCE)
    with pytest.raises(APIError, match="ConnectError") as caught:
        await run("p", config=remote_config)
    assert caught.value.outcome_unknown is False


@every_provider
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "gopher://127.0.0.1:9"])
async def test_an_unusable_proxy_is_a_configuration_error(
    provider: ProviderName, proxy: str, monkeypatch: pytest.MonkeyPatch, config: MakeConfig
) -> None:
    """The hint names the environment variable."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="proxy") as caught:
        await run("p", config=config(provider, base_url="http://pollux.invalid/v1"))
    assert "HTTP_PROXY" in str(caught.value.hint)


SDK_VARIABLES = {
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
    "GOOGLE_GENAI_USE_ENTERPRISE": "true",
    "GOOGLE_GENAI_CLIENT_MODE": "replay",
    "GOOGLE_GENAI_ACCESS_TOKEN": "foreign-value",
    "GOOGLE_GENAI_API_KEY": "foreign-value",
    "GOOGLE_GENAI_DEFAULT_HEADERS": "x-extra: foreign-value",
    "GOOGLE_CLOUD_PROJECT": "foreign-value",
    "GOOGLE_GENAI_API_VERSION": "beta",
    "GOOGLE_GENAI_HTTP_CLIENT": "httpx",
    "GOOGLE_API_KEY": "foreign-value",
    "OPENAI_ADMIN_KEY": "foreign-value",
    "OPENAI_ORG_ID": "foreign-value",
    "OPENAI_PROJECT_ID": "foreign-value",
    "OPENAI_CUSTOM_HEADERS": "x-extra: foreign-value\nauthorization: Bearer foreign-value",
    "ANTHROPIC_AUTH_TOKEN": "foreign-value",
    "ANTHROPIC_CUSTOM_HEADERS": "x-extra: foreign-value\nauthorization: Bearer foreign-value",
    "ANTHROPIC_IDENTITY_TOKEN": "foreign-value",
    "ANTHROPIC_FEDERATION_RULE_ID": "foreign-value",
    "ANTHROPIC_ORGANIZATION_ID": "foreign-value",
}


@pytest.mark.parametrize("provider", SDKS)
async def test_environment_variables_of_an_sdk_do_not_change_a_request(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDK variables may belong to another address than the one in the Config."""
    for name, value in SDK_VARIABLES.items():
        monkeypatch.setenv(name, value)
    async with scripted(http(good(provider))) as server:
        await run("p", config=server.config(provider, api_key="sk-passed"))
    (head,) = server.heads
    assert b"sk-passed" in head
    assert b"foreign-value" not in head + server.requests[0]


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("openai", [b"openai-organization: org-1", b"openai-project: project-1", b"x-extra: for-openai"]),
        ("anthropic", [b"x-extra: for-anthropic"]),
    ],
)
async def test_organization_and_extra_headers_are_sent_to_the_base_url_of_the_environment(
    provider: ProviderName, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Organization, project and custom headers belong to the address in the environment, as with the bare SDK."""
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
async def test_a_session_slot_is_released_after_each_attempt(provider: ProviderName, config: MakeConfig) -> None:
    async with open_session(config(provider, request_concurrency=1)) as session:

        async def return_one() -> int:
            return 1

        for _ in range(3):
            done = await attempt(return_one, policy=QUICK, timeout_s=1, slot=session.slot)
            assert done.unwrap() == 1


@every_provider
async def test_use_mock_answers_from_the_simulator_in_process(provider: ProviderName) -> None:
    """No socket and no key are needed."""
    config = Config(
        provider=provider, model="local-model" if provider == "local" else _MOCK_MODELS[provider], use_mock=True
    )
    envelope = await run_many(["a", "b"], config=config, options=Options(max_tokens=100))
    assert envelope.answers == ["Simulated answer to: a", "Simulated answer to: b"]


_MOCK_MODELS = {
    "gemini": "gemini-2.5-flash-lite",
    "openai": "gpt-4.1-mini",
    "anthropic": "claude-sonnet-4-6",
    "openrouter": "openai/gpt-4.1-mini",
}
