"""Errors that a provider sends as such: what is retried, what never is, and what each says to do."""

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

FINAL: list[tuple[int, ErrorCategory | None]] = [
    (400, None), (401, "auth"), (402, None), (403, "auth"), (404, None), (405, None), (413, None), (422, None),
    (501, None),
]  # fmt: skip
PASSING = [408, 409, 425, 429, 500, 502, 503, 504, 520, 529]


@every_provider
@pytest.mark.parametrize(("status", "category"), FINAL)
async def test_what_will_not_pass_is_asked_once(
    provider: ProviderName, status: int, category: ErrorCategory | None, config: MakeConfig, sim: Simulator
) -> None:
    """One request, one error, a hint. The status and the provider's words are in it."""
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
async def test_a_final_refusal_stays_final(
    provider: ProviderName, status: int, config: MakeConfig, sim: Simulator
) -> None:
    """Whatever it says about coming back later."""
    sim.fail(Fault(status=status, retry_after=0), times=None)
    with pytest.raises(APIError):
        await run("p", config=config(provider))
    assert len(asked(sim)) == 1


@pytest.mark.parametrize(
    ("provider", "path", "right"), [("openai", "/openai", "/openai/v1"), ("anthropic", "/anthropic/v1", "/anthropic")]
)
async def test_an_address_with_a_path_too_many_or_too_few(
    provider: ProviderName, path: str, right: str, config: MakeConfig, world: tuple[Simulator, str]
) -> None:
    """A gateway may have any path, so that only its answer shows what is wrong."""
    with pytest.raises(APIError, match=f"answered 404: .*most servers have this API at {world[1]}{right}\\.$"):
        await run("p", config=config(provider, base_url=world[1] + path))


@every_provider
@pytest.mark.parametrize("status", PASSING)
async def test_what_may_pass_is_asked_again(
    provider: ProviderName, status: int, config: MakeConfig, sim: Simulator
) -> None:
    """Once it has passed, nobody needs to know but the diagnostics."""
    sim.fail(Fault(status=status))
    envelope = await run("p", config=config(provider))
    assert envelope.status == "ok"
    assert envelope.diagnostics["calls"][0]["attempts"] == 2
    assert len(asked(sim)) == 2


@every_provider
@pytest.mark.parametrize(("status", "category"), [(409, None), (429, "rate_limit"), (529, "capacity")])
async def test_what_does_not_pass_ends(
    provider: ProviderName, status: int, category: ErrorCategory | None, config: MakeConfig, sim: Simulator
) -> None:
    """After max_attempts requests in all: the SDKs' own retries are off. The last error is the one told."""
    sim.fail(Fault(status=status), times=None)
    with pytest.raises(APIError) as caught:
        await run("p", config=config(provider))
    error = caught.value
    assert (error.status_code, error.retryable, error.error_category) == (status, True, category)
    assert error.hint
    assert isinstance(error, RateLimitError) == (status == 429)
    assert len(asked(sim)) == QUICK.max_attempts


@every_provider
async def test_no_sdk_says_that_it_retried(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Each request is a first one, as far as the SDK knows."""
    sim.fail(Fault(status=503), times=None)
    await outcomes(["p"], config(provider))
    assert {entry.headers.get("x-stainless-retry-count", "0") for entry in asked(sim)} == {"0"}


@every_provider
async def test_too_much_at_once_is_never_asked_again(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """In the words of each provider: the same prompt will be too long the next time, too."""
    sim.fail(Fault(kind="context_overflow"), times=None)
    with pytest.raises(APIError) as caught:
        await run("p", config=config(provider))
    assert caught.value.error_category == "context_overflow"
    assert "Send less" in str(caught.value.hint)
    assert len(asked(sim)) == 1


@pytest.mark.parametrize("provider", ["openai", "openrouter"])
async def test_an_empty_account_is_not_asked_again(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """A 429 that no waiting cures."""
    sim.fail(Fault(status=429, error_type="insufficient_quota"), times=None)
    with pytest.raises(RateLimitError) as caught:
        await run("p", config=config(provider))
    assert caught.value.retryable is False
    assert "out of funds" in str(caught.value.hint)
    assert len(asked(sim)) == 1


@every_provider
async def test_a_bad_key_says_where_the_key_comes_from(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The variable's name, and never the key."""
    sim.fail(Fault(status=401, message=f"Incorrect API key provided: {KEY}"))
    with pytest.raises(APIError) as caught:
        await run("p", config=config(provider))
    hint = str(caught.value.hint)
    assert ("api_key=" if provider == "local" else f"{provider.upper()}_API_KEY") in hint
    assert KEY not in f"{caught.value!r}{caught.value}{vars(caught.value)}"
    assert "[REDACTED]" in str(caught.value)


async def test_googles_bad_key_is_a_400() -> None:
    """The reason stands in the details, and the hint is the one about keys."""
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


async def test_openrouter_passes_on_what_its_upstream_said() -> None:
    """Its own message is "Provider returned error"; what helps is behind it."""
    metadata = {"provider_name": "Vendor", "raw": "the image is too wide"}
    body = {"error": {"code": 400, "message": "Provider returned error", "metadata": metadata}}
    async with scripted(http(body, 400)) as server:
        with pytest.raises(APIError, match="Vendor: the image is too wide"):
            await run("p", config=server.config("openrouter"))


@pytest.mark.parametrize("raw", ["the image is too wide", {"error": "the image is too wide"}])
async def test_openrouters_own_message_is_told_beside_its_upstreams(raw: Any) -> None:
    """Either may be the one that helps."""
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
async def test_a_local_servers_own_message_is_told(body: dict[str, Any]) -> None:
    """Wherever it stands."""
    async with scripted(http(body, 400)) as server:
        with pytest.raises(APIError, match=r"local answered 400: .*no such adapter"):
            await run("p", config=server.config("local"))


@pytest.mark.parametrize("told", [{"availability": {"retry_after": 17}}, {"metadata": {"retry_after_seconds": 17}}])
async def test_openrouter_says_in_its_body_how_long_to_wait(told: dict[str, Any]) -> None:
    """Where there is no header."""
    body = {"error": {"code": 429, "message": "Provider returned error", **told}}
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
    """One of these errors is so deep that a finalizer of another test's, run while it is read, would have no stack."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@every_provider
@pytest.mark.parametrize("name", ERROR_BODIES)
@pytest.mark.usefixtures("no_finalizers")
async def test_an_error_in_any_form_is_an_api_error(provider: ProviderName, name: str) -> None:
    """A gateway's HTML, half a JSON, a book, the key itself: a short text with the status, and no key."""
    body, content_type = ERROR_BODIES[name]
    async with scripted(http(body, 400, content_type=content_type)) as server:
        with pytest.raises(APIError) as caught:
            await run("p", config=server.config(provider))
    error = caught.value
    # Google's SDK breaks over these two by itself, and the status is lost with its exception.
    if provider != "gemini" or name not in {"not utf-8", "no end"}:
        assert error.status_code == 400
        assert error.outcome_unknown is False
    assert len(str(error)) < 1_000
    assert KEY not in f"{error!r}{error}{vars(error)}"


@every_provider
async def test_nobody_listening_says_where(provider: ProviderName) -> None:
    """A refused connection was surely not billed; the address is in the hint."""
    settings: dict[str, Any] = {"model": "google/gemini-2.5-flash-lite" if provider == "openrouter" else "gpt-x"}
    config = Config(provider=provider, api_key=KEY, base_url="http://127.0.0.1:9/v1", retry=QUICK, **settings)
    with pytest.raises(APIError) as caught:
        await run("p", config=config)
    error = caught.value
    assert (error.error_category, error.retryable, error.outcome_unknown) == ("network", True, False)
    assert "http://127.0.0.1:9/v1" in str(error.hint)


def test_every_provider_is_here() -> None:
    assert len(PROVIDERS) == 5
