"""Tests of PolluxProvider: it is saved, loaded by name, and its key is stored nowhere else."""

from __future__ import annotations

import json
import pickle

import cloudpickle  # type: ignore[import-untyped]
import pytest
from prefect import flow
from pydantic import SecretStr

from pollux_flows import ConfigurationError, Options, RetryPolicy
from pollux_flows.blocks import PolluxProvider
from pollux_flows.config import Target
from pollux_flows.deferred.job import Job
from pollux_flows.jobs.store import JobConfigs

SENTINEL = "sk-sentinel-1d9c7f"


async def test_a_saved_provider_comes_back_with_its_key_and_limits() -> None:
    policy = RetryPolicy(max_attempts=5)
    block = PolluxProvider(
        provider="anthropic",
        model="claude-sonnet-4-6",
        api_key=SecretStr(SENTINEL),
        request_concurrency=3,
        retry=policy,
        requests_per_minute=50,
        tokens_per_minute=9_000,
    )
    await block.asave("saved-provider", overwrite=True)
    config = await (await PolluxProvider.named("saved-provider")).config()
    assert (config.key(), config.request_concurrency, config.retry) == (SENTINEL, 3, policy)
    assert (config.requests_per_minute, config.tokens_per_minute) == (50, 9_000)


def test_only_a_saved_provider_can_be_referred_to() -> None:
    with pytest.raises(ConfigurationError, match=r"saved PolluxProvider.*\.save\('a-name'\)"):
        _ = PolluxProvider(provider="openai", model="m").reference


async def test_a_provider_without_a_key_uses_the_environment_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block need not have a key."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    assert (await PolluxProvider(provider="openai", model="m").config()).key() == SENTINEL


async def test_a_provider_without_any_key_is_refused() -> None:
    """The error names the block, its field, and the variable."""
    block = PolluxProvider(provider="openai", model="m")
    with pytest.raises(ConfigurationError, match=r"^PolluxProvider, field api_key: .* OPENAI_API_KEY is not set here"):
        await block.config()
    await block.asave("without-a-key", overwrite=True)
    with pytest.raises(ConfigurationError, match=r'^PolluxProvider "without-a-key", field api_key: .*OPENAI_API_KEY'):
        await (await PolluxProvider.named("without-a-key")).config()


async def test_a_provider_that_was_saved_with_a_wrong_address_is_named() -> None:
    """The UI saves such a block, because it does not run our checks."""
    block = PolluxProvider(provider="openai", model="m", api_key=SecretStr(SENTINEL))
    object.__setattr__(block, "base_url", "api.openai.com")
    await block.asave("wrong-address", overwrite=True)
    with pytest.raises(ConfigurationError, match=r'^PolluxProvider "wrong-address": base_url is not an http address'):
        await PolluxProvider.named("wrong-address")


async def test_an_unknown_name_of_a_provider_is_refused() -> None:
    """The error names the block, and says how to save it."""
    with pytest.raises(ConfigurationError, match=r"'no-such-provider'.*\.save"):
        await PolluxProvider.named("no-such-provider")


def test_wrong_fields_are_refused_when_the_block_is_created() -> None:
    """The error names the field."""
    with pytest.raises(ConfigurationError, match="provider"):
        PolluxProvider(provider="opnai", model="m")
    with pytest.raises(ConfigurationError, match="base_url"):
        PolluxProvider(provider="openai", model="m", base_url="127.0.0.1")


@pytest.mark.parametrize("library", [pickle, cloudpickle])
def test_a_pickled_provider_has_no_key(library: object) -> None:
    """Prefect pickles the parameters of a task that runs in another process."""
    block = PolluxProvider(provider="openai", model="m", api_key=SecretStr(SENTINEL))
    pickled = library.dumps(block)  # type: ignore[attr-defined]
    assert SENTINEL.encode() not in pickled
    assert library.loads(pickled).api_key.get_secret_value().strip("*") == ""  # type: ignore[attr-defined]


async def test_asterisks_in_a_runs_parameters_are_resolved_from_the_saved_block() -> None:
    """A worker finds the block by its name; the asterisks are never used as a key."""
    block = PolluxProvider(provider="openai", model="m", api_key=SecretStr(SENTINEL))
    await block.asave("seen-as-asterisks", overwrite=True)

    @flow
    async def take_provider(provider: PolluxProvider) -> str | None:
        return (await provider.config()).key()

    stored = take_provider.serialize_parameters({"provider": await PolluxProvider.named("seen-as-asterisks")})
    assert SENTINEL not in json.dumps(stored)
    restored = take_provider.validate_parameters(stored)["provider"]
    assert (await restored.config()).key() == SENTINEL


ELSEWHERE = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize("key", [{}, {"api_key": "********"}])
@pytest.mark.parametrize("name", [{}, {"_block_document_name": "names-another-address"}])
async def test_run_parameters_do_not_send_the_workers_key_elsewhere(
    key: dict[str, str], name: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that only the parameters of a run name does not get the key of the worker's environment."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    await PolluxProvider(provider="openai", model="m").asave("names-another-address", overwrite=True)
    written = {"provider": "openai", "model": "m", "base_url": ELSEWHERE, **key, **name}
    restored = _restore_provider(written)
    with pytest.raises(ConfigurationError, match=f"another provider or address|POLLUX_ALLOW_BASE_URLS={ELSEWHERE}"):
        await restored.config()
    monkeypatch.setenv("OPENAI_BASE_URL", ELSEWHERE)
    if not name:
        assert (await restored.config()).key() == SENTINEL


@pytest.mark.parametrize("key", [{}, {"api_key": "********"}])
async def test_the_workers_key_goes_to_the_address_of_a_saved_block(
    key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saved block decides where the key of the environment goes, and needs no key itself."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    saved = PolluxProvider(provider="openai", model="m", base_url=ELSEWHERE)
    await saved.asave("names-an-address", overwrite=True)
    written = {"provider": "openai", "model": "m", "base_url": ELSEWHERE, "_block_document_name": "names-an-address"}
    for block in (await PolluxProvider.named("names-an-address"), _restore_provider({**written, **key})):
        assert (await block.config()).key() == SENTINEL


async def test_a_deferred_job_does_not_send_the_workers_key_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker that collects a job may have another key than the run that submitted it."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    target = Target(provider="openai", model="m", base_url=ELSEWHERE)
    job = Job(
        name="j", submission="s", fingerprint="f", target=target, options=Options(), count=1, created_at=0.0, parts=[]
    )
    with pytest.raises(ConfigurationError, match=f"POLLUX_ALLOW_BASE_URLS={ELSEWHERE}"):
        await JobConfigs().load(job)


def _restore_provider(written: dict[str, str]) -> PolluxProvider:
    """Return the provider of a run with these parameters."""

    @flow
    async def take_provider(provider: PolluxProvider) -> None: ...

    restored: PolluxProvider = take_provider.validate_parameters({"provider": written})["provider"]
    return restored


async def test_asterisks_of_a_block_that_was_never_saved_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says to save the block. A key in the environment is used instead of the asterisks."""

    @flow
    async def take_provider(provider: PolluxProvider) -> str | None:
        return (await provider.config()).key()

    unsaved = PolluxProvider(provider="openai", model="m", api_key=SecretStr(SENTINEL))
    restored = take_provider.validate_parameters(take_provider.serialize_parameters({"provider": unsaved}))["provider"]
    with pytest.raises(ConfigurationError, match=r"asterisks.*never saved.*save"):
        await restored.config()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    assert (await restored.config()).key() == "sk-from-the-environment"


async def test_a_saved_key_is_not_sent_to_another_address() -> None:
    """The parameters of a run may combine asterisks with another address."""
    saved = PolluxProvider(provider="openai", model="m", api_key=SecretStr(SENTINEL), base_url="https://api.example")
    await saved.asave("not-for-everybody", overwrite=True)

    @flow
    async def take_provider(provider: PolluxProvider) -> None: ...

    forged = {
        "provider": "openai",
        "model": "m",
        "api_key": "********",
        "base_url": "http://127.0.0.1:9/v1",
        "_block_document_name": "not-for-everybody",
    }
    restored = take_provider.validate_parameters({"provider": forged})["provider"]
    with pytest.raises(ConfigurationError, match="another provider or address"):
        await restored.config()


@pytest.mark.parametrize("fields", [{"provider": "openai", "api_key": SENTINEL}, {"provider": SENTINEL, "model": "m"}])
def test_a_wrong_block_is_refused_without_its_key(fields: dict[str, str]) -> None:
    """The message of Pydantic would quote the input."""
    with pytest.raises(ConfigurationError) as caught:
        PolluxProvider(**fields)
    assert SENTINEL not in repr(caught.value) + str(caught.value.__context__)
