"""Error responses of providers: which are retried, which are not, and which hint each has."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from pollux_flows import APIError, Config, RateLimitError, run
from pollux_flows.config import PROVIDERS, ProviderName
from pollux_flows.errors import ErrorCategory
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import KEY, ONCE, QUICK, MakeConfig, asked, every_provider, http, outcomes, scripted

PERMANENT: list[tuple[int, ErrorCategory | None]] = [
    (400, None), (401, "auth"), (402, None), (403, "auth"), (404, None), (405, None), (413, None), (422, None),
    (501, None),
]  # fmt: skip
TRANSIENT = [408, 409, 425, 429, 500, 502, 503, 504, 520, 529]


@every_provider
@pytest.mark.parametrize(("status", "category"), PERMANENT)
async def test_a_permanent_error_is_not_retried(
    provider: ProviderName, status: int, category: ErrorCategory | None, config: MakeConfig, sim: Simulator
) -> None:
    """The error has the status, the provider's message and a hint."""
    sim.fail(Fault(status=status, message="so they say"), times=None)
    with pytest.raises(APIError, match=f"{provider} answered {status}: so they say") as caught:
        await run("p", config=config(provider))
    error = caught.value
    assert (error.status_code, error.retryable, error.error_category) == (status, False, category)
    assert error.hint
    assert error.outcome_unknown is False
    assert len(asked(sim)) == 1


@every_provider
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
async def test_a_permanent_error_with_retry_after_is_not_retried(
    provider: ProviderName, status: int, config: MakeConfig, sim: Simulator
) -> None:
    sim.fail(Fault(status=status, retry_after=0), times=None)
    with pytest.raises(APIError):
        await run("p", config=config(provider))
    assert len(asked(sim)) == 1


@pytest.mark.parametrize(
    ("provider", "path", "usual_path"),
    [("openai", "/openai", "/openai/v1"), ("anthropic", "/anthropic/v1", "/anthropic")],
)
async def test_a_404_for_a_wrong_base_url_suggests_the_usual_path(
    provider: ProviderName, path: str, usual_path: str, config: MakeConfig, world: tuple[Simulator, str]
) -> None:
    """A gateway may have any path, so the base URL is not checked before the call."""
    with pytest.raises(APIError, match=f"answered 404: .*most servers have this API at {world[1]}{usual_path}\\.$"):
        await run("p", config=config(provider, base_url=world[1] + path))


@every_provider
@pytest.mark.parametrize("status", TRANSIENT)
async def test_a_transient_error_is_retried(
    provider: ProviderName, status: int, config: MakeConfig, sim: Simulator
) -> None:
    """Only the diagnostics show the retry."""
    sim.fail(Fault(status=status))
    envelope = await run("p", config=config(provider))
    assert envelope.status == "ok"
    assert envelope.diagnostics["calls"][0]["attempts"] == 2
    assert len(asked(sim)) == 2


@every_provider
@pytest.mark.parametrize(("status", "category"), [(409, None), (429, "rate_limit"), (529, "capacity")])
async def test_a_transient_error_is_retried_up_to_max_attempts(
    provider: ProviderName, status: int, category: ErrorCategory | None, config: MakeConfig, sim: Simulator
) -> None:
    """The SDKs' own retries are off. The last error is raised."""
    sim.fail(Fault(status=status), times=None)
    with pytest.raises(APIError) as caught:
        await run("p", config=config(provider))
    error = caught.value
    assert (error.status_code, error.retryable, error.error_category) == (status, True, category)
    assert error.hint
    assert isinstance(error, RateLimitError) == (status == 429)
    assert len(asked(sim)) == QUICK.max_attempts


@every_provider
async def test_no_sdk_retries_by_itself(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Each request has a retry count of zero."""
    sim.fail(Fault(status=503), times=None)
    await outcomes(["p"], config(provider))
    assert {entry.headers.get("x-stainless-retry-count", "0") for entry in asked(sim)} == {"0"}


@every_provider
async def test_a_prompt_beyond_the_context_is_not_retried(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    sim.fail(Fault(kind="context_overflow"), times=None)
    with pytest.raises(APIError) as caught:
        await run("p", config=config(provider))
    assert caught.value.error_category == "context_overflow"
    assert "Send less" in str(caught.value.hint)
    assert len(asked(sim)) == 1


@pytest.mark.parametrize("provider", ["openai", "openrouter"])
async def test_an_account_without_funds_is_not_retried(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Waiting does not resolve such a 429."""
    sim.fail(Fault(status=429, error_type="insufficient_quota"), times=None)
    with pytest.raises(RateLimitError) as caught:
        await run("p", config=config(provider))
    assert caught.value.retryable is False
    assert "out of funds" in str(caught.value.hint)
    assert len(asked(sim)) == 1


@every_provider
async def test_a_refused_key_names_its_environment_variable_and_not_the_key(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    sim.fail(Fault(status=401, message=f"Incorrect API key provided: {KEY}"))
    with pytest.raises(APIError) as caught:
        await run("p", config=config(provider))
    hint = str(caught.value.hint)
    assert ("api_key=" if provider == "local" else f"{provider.upper()}_API_KEY") in hint
    assert KEY not in f"{caught.value!r}{caught.value}{vars(caught.value)}"
    assert "[REDACTED]" in str(caught.value)


async def test_googles_400_for_a_bad_key_is_an_auth_error() -> None:
    """The reason is in the error's details."""
    body = {
        "error": {
            "code": 400,
            "message": "API key not valid. Please pass a valid API key.",
            "status": "INVALID_ARGUMENT",
            "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
        }
    }
    async with scripted(http(body, 400)) as server:
        with pytest.raises(APIError) as caught:
            await run("p", config=server.config("gemini"))
    assert caught.value.error_category == "auth"
    assert "GEMINI_API_KEY" in str(caught.value.hint)


async def test_the_message_of_openrouters_upstream_is_raised() -> None:
    """OpenRouter's own message is only "Provider returned error"."""
    metadata = {"provider_name": "Vendor", "raw": "the image is too wide"}
    body = {"error": {"code": 400, "message": "Provider returned error", "metadata": metadata}}
    async with scripted(http(body, 400)) as server:
        with pytest.raises(APIError, match="Vendor: the image is too wide"):
            await run("p", config=server.config("openrouter"))


@pytest.mark.parametrize("raw", ["the image is too wide", {"error": "the image is too wide"}])
async def test_openrouters_message_and_its_upstreams_are_both_raised(raw: Any) -> None:
    metadata = {"provider_name": "Vendor", "raw": raw}
    body = {"error": {"code": 400, "message": "No endpoint takes this image", "metadata": metadata}}
    async with scripted(http(body, 400)) as server:
        with pytest.raises(APIError, match=r"No endpoint takes this image: Vendor: .*the image is too wide"):
            await run("p", config=server.config("openrouter"))


@pytest.mark.parametrize(
    "body",
    [
        {"detail": "no such adapter"},
        {"detail": [{"loc": ["body"], "msg": "no such adapter"}]},
        {"error": {"error": "no such adapter"}},
        {"object": "error", "message": "no such adapter", "code": 400},
    ],
    ids=str,
)
async def test_the_message_of_a_local_server_is_raised(body: dict[str, Any]) -> None:
    """Local servers use several formats of errors."""
    async with scripted(http(body, 400)) as server:
        with pytest.raises(APIError, match=r"local answered 400: .*no such adapter"):
            await run("p", config=server.config("local"))


@pytest.mark.parametrize("fields", [{"availability": {"retry_after": 17}}, {"metadata": {"retry_after_seconds": 17}}])
async def test_openrouters_retry_after_in_the_body_is_read(fields: dict[str, Any]) -> None:
    body = {"error": {"code": 429, "message": "Provider returned error", **fields}}
    async with scripted(http(body, 429)) as server:
        with pytest.raises(RateLimitError) as caught:
            await run("p", config=server.config("openrouter", retry=ONCE))
    assert caught.value.retry_after_s == 17


ERROR_BODIES: dict[str, tuple[bytes, str]] = {
    "html": (b"<html>Bad gateway</html>", "text/html"),
    "nothing": (b"", "application/json"),
    "null": (b"null", "application/json"),
    "list": (b"[]", "application/json"),
    "list of one": (b'[{"error": {"message": "boom", "code": 500}}]', "application/json"),
    "text error": (b'{"error": "boom"}', "application/json"),
    "null error": (b'{"error": null}', "application/json"),
    "numbers": (b'{"error": {"message": 5, "details": 5, "metadata": 5, "availability": 5}}', "application/json"),
    "half": (b'{"error": {"mess', "application/json"),
    "not utf-8": (b'{"error": "\xff\xfe"}', "application/json"),
    "giant": (b'{"error": {"message": "' + b"x" * 1_000_000 + b'"}}', "application/json"),
    "no end": (b"[" * 200_000, "application/json"),
    "key": (f'{{"error": {{"message": "{KEY} {KEY}"}}}}'.encode(), "application/json"),
    "key in text": (f"<p>{KEY}</p>".encode(), "text/html"),
}


@pytest.fixture
def no_finalizers() -> Iterator[None]:
    """Disable garbage collection: reading the deepest of these errors leaves a finalizer no stack."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@every_provider
@pytest.mark.parametrize("name", ERROR_BODIES)
@pytest.mark.usefixtures("no_finalizers")
async def test_a_malformed_error_body_is_a_short_api_error_without_the_key(provider: ProviderName, name: str) -> None:
    body, content_type = ERROR_BODIES[name]
    async with scripted(http(body, 400, content_type=content_type)) as server:
        with pytest.raises(APIError) as caught:
            await run("p", config=server.config(provider))
    error = caught.value
    # Google's SDK fails on these two, and its exception has no status.
    if provider != "gemini" or name not in {"not utf-8", "no end"}:
        assert error.status_code == 400
        assert error.outcome_unknown is False
    assert len(str(error)) < 1_000
    assert KEY not in f"{error!r}{error}{vars(error)}"


@every_provider
async def test_a_refused_connection_names_the_address(provider: ProviderName) -> None:
    """The outcome is known: the call was not billed."""
    settings: dict[str, Any] = {"model": "google/gemini-2.5-flash-lite" if provider == "openrouter" else "gpt-x"}
    config = Config(provider=provider, api_key=KEY, base_url="http://127.0.0.1:9/v1", retry=QUICK, **settings)
    with pytest.raises(APIError) as caught:
        await run("p", config=config)
    error = caught.value
    assert (error.error_category, error.retryable, error.outcome_unknown) == ("network", True, False)
    assert "http://127.0.0.1:9/v1" in str(error.hint)


def test_there_are_five_providers() -> None:
    assert len(PROVIDERS) == 5
