"""Config: the provider and model that answer, the API key and the address, and limits of requests."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from pydantic import SecretStr

from pollux_flows import Config, ConfigurationError, RetryPolicy
from pollux_flows.access import Restrictions, apply_restrictions
from pollux_flows.config import KEY_VARIABLES, PROVIDERS, URL_VARIABLES, ProviderName, Target
from tests.documents import SENTINEL, check_json_round_trip, configs, expect_error, policies

every_provider = pytest.mark.parametrize("provider", PROVIDERS)
with_key = pytest.mark.parametrize("provider", list(KEY_VARIABLES))


def make_config(**changes: Any) -> Config:
    """Return a valid Config with these changes."""
    return Config(**{"provider": "openai", "model": "gpt-4.1-mini", "api_key": SENTINEL, **changes})


# --- Fields -------------------------------------------------------------------------------------------------


def test_provider_model_and_a_key_are_enough() -> None:
    """All other fields have defaults."""
    config = Config(provider="gemini", model="gemini-2.5-flash-lite", api_key=SENTINEL)
    assert config.request_concurrency == 6
    assert (config.requests_per_minute, config.tokens_per_minute) == (None, None)
    assert config.retry == RetryPolicy()
    assert config.timeout_s == 600.0
    assert config.use_mock is False
    assert config.base_url is None
    assert config.key() == SENTINEL


def test_a_key_may_be_a_secret_str() -> None:
    """Prefect passes keys as SecretStr."""
    assert make_config(api_key=SecretStr(SENTINEL)).key() == SENTINEL


@pytest.mark.parametrize(
    "provider", [None, 1, [], {}, set(), b"openai", object(), "OpenAI", "openai ", "mock", "azure", ""]
)
def test_the_error_about_an_unknown_provider_lists_the_known_ones(provider: Any) -> None:
    with expect_error(ConfigurationError, "Unknown provider", ", ".join(PROVIDERS)):
        make_config(provider=provider)


def test_an_unknown_provider_is_refused_for_the_mock() -> None:
    """The simulator knows the five providers, and no other."""
    with expect_error(ConfigurationError, "Unknown provider 'azure'"):
        make_config(provider="azure", use_mock=True)


@pytest.mark.parametrize("model", ["", " ", "\n", None, 1, b"gpt", ["gpt"], "\ud800"])
def test_an_invalid_model_name_is_refused(model: Any) -> None:
    """A blank or missing name, and one that is not text, are refused before any call."""
    with expect_error(ConfigurationError, "model"):
        make_config(model=model)


def test_space_around_a_model_name_is_stripped() -> None:
    """Forms and files may add space or a line break."""
    assert make_config(model=" gpt-4.1-mini\n").model == "gpt-4.1-mini"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_mock", 1),
        ("use_mock", "yes"),
        ("use_mock", None),
        ("request_concurrency", 0),
        ("request_concurrency", -1),
        ("request_concurrency", True),
        ("request_concurrency", "2"),
        ("request_concurrency", 2.0),
        ("request_concurrency", None),
        ("request_concurrency", 10**400),
        pytest.param("request_concurrency", 10**5000, id="request_concurrency-huge"),
        ("requests_per_minute", 0),
        ("requests_per_minute", 1.5),
        ("requests_per_minute", True),
        ("tokens_per_minute", -1),
        ("tokens_per_minute", "10"),
        pytest.param("tokens_per_minute", 10**5000, id="tokens_per_minute-huge"),
        ("timeout_s", 0),
        ("timeout_s", -1.0),
        ("timeout_s", "10"),
        ("timeout_s", True),
        ("timeout_s", None),
        ("timeout_s", float("nan")),
        ("timeout_s", float("inf")),
        ("timeout_s", 10**400),
        ("api_key", 1),
        ("api_key", b"sk-1"),
        ("api_key", ["sk-1"]),
        ("base_url", 1),
        ("base_url", b"http://h"),
        ("retry", None),
        ("retry", 3),
        ("retry", "often"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: Any) -> None:
    """The error is a ConfigurationError that names the field, or its document, and never a TypeError."""
    with expect_error(ConfigurationError, "RetryPolicy" if field == "retry" else field):
        make_config(**{field: value})


def test_the_error_about_an_unknown_field_lists_the_known_ones() -> None:
    """A misspelt field is not silently ignored."""
    with expect_error(ConfigurationError, "concurrency is not a field of Config", "request_concurrency"):
        make_config(concurrency=3)


def test_one_error_names_all_invalid_fields() -> None:
    with expect_error(ConfigurationError, "use_mock", "request_concurrency", "timeout_s"):
        make_config(use_mock="yes", request_concurrency=0, timeout_s=-1.0)


@pytest.mark.parametrize("data", [None, 1, [], "x", {1: 2}, object()])
def test_a_value_that_is_no_config_is_refused(data: Any) -> None:
    """The error is a ConfigurationError."""
    with expect_error(ConfigurationError, "Config is not usable"):
        Config.model_validate(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff", '{"provider": "openai"}'])
def test_invalid_json_of_a_config_is_refused(text: str | bytes) -> None:
    """The error is a ConfigurationError."""
    with expect_error(ConfigurationError, "Config is not usable"):
        Config.model_validate_json(text)


# --- RetryPolicy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", True),
        ("max_attempts", 1.5),
        pytest.param("max_attempts", 10**5000, id="max_attempts-huge"),
        ("initial_delay_s", -1),
        ("initial_delay_s", "soon"),
        ("backoff_multiplier", 0),
        ("max_delay_s", -0.1),
        ("max_delay_s", float("inf")),
        ("jitter", "no"),
        ("max_elapsed_s", -1),
        ("max_elapsed_s", float("nan")),
        ("patience", 3),
    ],
)
def test_an_invalid_field_of_a_retry_policy_is_named(field: str, value: Any) -> None:
    """This holds for a RetryPolicy and for a dict in a Config."""
    with expect_error(ConfigurationError, field):
        RetryPolicy(**{field: value})
    with expect_error(ConfigurationError, "RetryPolicy is not usable", field):
        make_config(retry={field: value})


def test_seconds_may_be_integers() -> None:
    """Policies with `1` and with `1.0` are equal."""
    assert RetryPolicy(initial_delay_s=1) == RetryPolicy(initial_delay_s=1.0)


def test_max_elapsed_s_may_be_none() -> None:
    """Retries of nightly work need no bound."""
    assert RetryPolicy(max_elapsed_s=None).max_elapsed_s is None


# --- Keys ---------------------------------------------------------------------------------------------------


@with_key
def test_the_key_is_read_from_the_variable_of_the_provider(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLES[provider], SENTINEL)
    assert Config(provider=provider, model="m").key() == SENTINEL


@with_key
def test_a_key_of_another_provider_is_not_used(provider: ProviderName, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is sent to another provider has leaked."""
    for other, variable in KEY_VARIABLES.items():
        if other != provider:
            monkeypatch.setenv(variable, SENTINEL)
    with expect_error(ConfigurationError, f"no API key for {provider}", KEY_VARIABLES[provider], "use_mock=True"):
        Config(provider=provider, model="m")


def test_a_passed_key_takes_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    assert make_config().key() == SENTINEL


def test_the_key_is_read_from_a_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the one in the working folder, and its other variables are not set in this process."""
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={SENTINEL}\nANOTHER_VARIABLE=secret\n")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    assert Config(provider="openai", model="m").key() == SENTINEL
    assert dict(os.environ) == before


def test_a_dotenv_file_in_a_folder_above_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a parent folder may be foreign, so neither a key nor an address is read from it."""
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={SENTINEL}\nOPENAI_BASE_URL=http://strangers/v1\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with expect_error(ConfigurationError, "no API key for openai"):
        Config(provider="openai", model="m")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    assert Config(provider="openai", model="m").base_url is None


def test_a_deployed_run_reads_no_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder of a deployed run may contain foreign files."""
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={SENTINEL}\nOPENAI_BASE_URL=http://strangers/v1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "6f1c1b0e-0000-0000-0000-000000000000")
    with expect_error(ConfigurationError, "no API key for openai"):
        Config(provider="openai", model="m")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    assert Config(provider="openai", model="m").base_url is None


@with_key
def test_a_passed_key_is_not_sent_to_an_address_from_a_dotenv_file(
    provider: ProviderName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address in the file applies only to the key in the file or the environment."""
    (tmp_path / ".env").write_text(f"{URL_VARIABLES[provider]}=http://gateway/v1\n{KEY_VARIABLES[provider]}=sk-file\n")
    monkeypatch.chdir(tmp_path)
    assert make_config(provider=provider).base_url is None
    config = Config(provider=provider, model="m")
    assert (config.base_url, config.key()) == ("http://gateway/v1", "sk-file")


def test_the_environment_takes_precedence_over_a_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("OPENAI_API_KEY=sk-from-the-file\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    assert Config(provider="openai", model="m").key() == SENTINEL


def test_a_blank_variable_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers often set variables to blank values; the key in the file is used then."""
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={SENTINEL}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    assert Config(provider="openai", model="m").key() == SENTINEL


@pytest.mark.parametrize("content", [b"OPENAI_API_KEY=", b"OPENAI_API_KEY", b"", b"OTHER=1"])
def test_a_dotenv_file_without_the_key_is_ignored(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is about the missing key, not about the file."""
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with expect_error(ConfigurationError, "no API key for openai"):
        Config(provider="openai", model="m")


def test_a_dotenv_file_that_is_not_utf_8_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file and the encoding."""
    (tmp_path / ".env").write_bytes(b"OPENAI_API_KEY=\xff\xfe")
    monkeypatch.chdir(tmp_path)
    with expect_error(ConfigurationError, ".env cannot be read", "UTF-8"):
        Config(provider="openai", model="m")


@every_provider
@pytest.mark.parametrize("key", ["*", "********"])
def test_a_masked_key_is_refused(provider: ProviderName, key: str) -> None:
    """Prefect shows secrets as asterisks; a key of asterisks is refused before the provider answers with a 401."""
    with expect_error(ConfigurationError, "asterisks"):
        make_config(provider=provider, api_key=key, base_url="http://h")


@every_provider
@pytest.mark.parametrize("key", ["", " ", f"{SENTINEL}\n", f" {SENTINEL}", "sk-\x00", "ключ", "\ud800"])
def test_a_key_that_is_invalid_in_a_header_is_refused(provider: ProviderName, key: str) -> None:
    """A key may be empty, or copied with a space or a line break; the error does not show it."""
    with expect_error(ConfigurationError, "The API key") as caught:
        make_config(provider=provider, api_key=key, base_url="http://h")
    assert SENTINEL not in str(caught.value)


def test_a_masked_key_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "********")
    with expect_error(ConfigurationError, "asterisks", "OPENAI_API_KEY"):
        Config(provider="openai", model="m")


# --- Addresses ----------------------------------------------------------------------------------------------


@every_provider
def test_every_provider_accepts_a_base_url(provider: ProviderName) -> None:
    """A slash at the end of the address is removed."""
    assert make_config(provider=provider, base_url="http://127.0.0.1:9/v1/").base_url == "http://127.0.0.1:9/v1"


@every_provider
def test_the_address_is_read_from_the_variable_of_the_sdk(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passed address takes precedence."""
    monkeypatch.setenv(URL_VARIABLES[provider], "http://gateway/")
    assert make_config(provider=provider).base_url == "http://gateway"
    assert make_config(provider=provider, base_url="http://written").base_url == "http://written"


@pytest.mark.parametrize("address", ["", " ", None])
def test_a_blank_address_counts_as_none(address: str | None) -> None:
    """Forms send blank values."""
    assert make_config(base_url=address).base_url is None


@pytest.mark.parametrize(
    "address",
    ["x", "//h", "ftp://h", "http://", "http://[::1", "http://h:99999", "http://h:port", "http://h\n/v1", "http://h h"],
)
def test_an_invalid_address_is_refused(address: str) -> None:
    """The error shows a valid example."""
    with expect_error(ConfigurationError, "base_url is not an http address", "http://127.0.0.1:8000/v1"):
        make_config(base_url=address)


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{SENTINEL}@h/",
        f"http://{SENTINEL}@h/",
        f"http://h/?key={SENTINEL}",
        f"http://h/#{SENTINEL}",
        "http://h?",
    ],
)
def test_an_address_with_credentials_is_refused(address: str) -> None:
    """Addresses are stored in plain JSON; the error does not show the secret."""
    with expect_error(ConfigurationError, "base_url holds", "api_key") as caught:
        make_config(base_url=address)
    assert SENTINEL not in str(caught.value)


@pytest.mark.parametrize(
    ("provider", "address", "right"),
    [
        ("openai", "https://api.openai.com", "https://api.openai.com/v1"),
        ("openai", "https://eu.api.openai.com/", "https://eu.api.openai.com/v1"),
        ("openai", "https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1"),
        ("openai", "https://gateway.example/openai/v1/responses/", "https://gateway.example/openai/v1"),
        ("local", "http://127.0.0.1:11434/v1/chat/completions", "http://127.0.0.1:11434/v1"),
        ("openrouter", "https://openrouter.ai/v1", "https://openrouter.ai/api/v1"),
        ("openrouter", "https://openrouter.ai", "https://openrouter.ai/api/v1"),
        ("anthropic", "https://api.anthropic.com/v1", "https://api.anthropic.com"),
        ("anthropic", "https://gateway.example/claude/v1/messages", "https://gateway.example/claude"),
        (
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta",
            "https://generativelanguage.googleapis.com",
        ),
        ("gemini", "http://h/v1beta/models/gemini-2.5-flash:generateContent", "http://h"),
    ],
)
def test_the_error_about_an_address_with_a_wrong_path_names_the_right_one(
    provider: ProviderName, address: str, right: str
) -> None:
    with expect_error(ConfigurationError, "base_url", f"Write '{right}'."):
        make_config(provider=provider, base_url=address)
    assert make_config(provider=provider, base_url=right).base_url == right


@pytest.mark.parametrize(
    ("provider", "address"),
    [("openai", "http://litellm:4000"), ("anthropic", "http://gateway/v1"), ("local", "https://h/api/inference")],
)
def test_an_unusual_path_of_a_gateway_is_accepted(provider: ProviderName, address: str) -> None:
    assert make_config(provider=provider, base_url=address).base_url == address


def test_an_invalid_address_in_a_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable."""
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000")
    with expect_error(ConfigurationError, "OPENAI_BASE_URL: base_url is not an http address"):
        make_config()


# --- Addresses that get a key of the environment ------------------------------------------------------------

ELSEWHERE = "http://127.0.0.1:1234/v1"


@with_key
def test_a_key_of_the_environment_is_not_sent_to_an_address_that_only_the_config_names(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error shows the setting that would allow the address. A passed key is sent to any address."""
    monkeypatch.setenv(KEY_VARIABLES[provider], SENTINEL)
    with expect_error(
        ConfigurationError, KEY_VARIABLES[provider], f"not sent to {ELSEWHERE}", f"POLLUX_ALLOW_BASE_URLS={ELSEWHERE}"
    ):
        Config(provider=provider, model="m", base_url=ELSEWHERE)
    assert make_config(provider=provider, base_url=ELSEWHERE).key() == SENTINEL


def test_the_error_about_a_missing_key_for_an_address_names_all_settings() -> None:
    """A key in the environment alone would not be sent to the address, so the error also names the other setting."""
    with expect_error(
        ConfigurationError, "no API key for openai at", "api_key", "OPENAI_API_KEY", "POLLUX_ALLOW_BASE_URLS"
    ):
        Config(provider="openai", model="m", base_url=ELSEWHERE)


@pytest.mark.parametrize(
    ("provider", "address"),
    [
        ("openai", "https://api.openai.com/v1"),
        ("openai", "https://eu.api.openai.com/v1/"),
        ("anthropic", "https://api.anthropic.com"),
        ("gemini", "https://generativelanguage.googleapis.com"),
        ("openrouter", "https://openrouter.ai/api/v1"),
    ],
)
def test_a_key_of_the_environment_is_sent_to_the_providers_own_addresses(
    provider: ProviderName, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses of regions belong to them."""
    monkeypatch.setenv(KEY_VARIABLES[provider], SENTINEL)
    assert Config(provider=provider, model="m", base_url=address).key() == SENTINEL


@pytest.mark.parametrize(
    "address",
    [
        "http://api.openai.com/v1",
        "https://api.openai.com.example/v1",
        "https://example/api.openai.com",
        "https://notapi.openai.com.example",
        "https://xapi.openai.com",
        "https://example\\.api.openai.com/v1",
        "https://api.anthropic.com",
    ],
)
def test_a_key_of_the_environment_is_not_sent_to_addresses_that_look_like_the_providers(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused are unencrypted addresses, other hosts and other providers."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    with expect_error(ConfigurationError, "not sent to"):
        Config(provider="openai", model="m", base_url=address)


@with_key
def test_a_key_of_the_environment_is_sent_to_the_address_of_the_environment(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds if the Config names the same address."""
    monkeypatch.setenv(KEY_VARIABLES[provider], SENTINEL)
    monkeypatch.setenv(URL_VARIABLES[provider], f"{ELSEWHERE}/")
    for config in (
        Config(provider=provider, model="m"),
        Config(provider=provider, model="m", base_url=ELSEWHERE),
        Config.model_validate_json(Config(provider=provider, model="m").model_dump_json()),
    ):
        assert (config.base_url, config.key()) == (ELSEWHERE, SENTINEL)


@pytest.mark.parametrize(
    ("allowed", "address", "is_allowed"),
    [
        ("http://127.0.0.1:1234", ELSEWHERE, True),
        (f"https://gateway, {ELSEWHERE}/", ELSEWHERE, True),
        ("http://127.0.0.1:12", ELSEWHERE, False),
        ("http://gateway", "http://gateway.example/v1", False),
        ("http://gateway/a", "http://gateway/a/v1", True),
        ("http://gateway/a", "http://gateway/ab", False),
        ("http://gateway/a", "http://gateway/a/../b", False),
        ("http://gateway/a", "http://gateway/a/%2e%2e/b", False),
        (" , ", ELSEWHERE, False),
    ],
)
def test_pollux_allow_base_urls_allows_more_addresses(
    allowed: str, address: str, is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An allowed address includes all paths below it."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    monkeypatch.setenv("POLLUX_ALLOW_BASE_URLS", allowed)
    if is_allowed:
        assert Config(provider="openai", model="m", base_url=address).key() == SENTINEL
    else:
        with expect_error(ConfigurationError, "not sent to"):
            Config(provider="openai", model="m", base_url=address)


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "POLLUX_ALLOW_BASE_URLS"])
def test_a_restricted_run_cannot_allow_addresses_by_its_own_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Job variables of a run do not decide to which address the key of the worker is sent."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    monkeypatch.setenv(variable, ELSEWHERE)
    with apply_restrictions(Restrictions(environment={})):
        assert Config(provider="openai", model="m").base_url is None
        with expect_error(ConfigurationError, "not sent to"):
            Config(provider="openai", model="m", base_url=ELSEWHERE)


def test_an_invalid_address_in_pollux_allow_base_urls_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is not silently ignored."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    monkeypatch.setenv("POLLUX_ALLOW_BASE_URLS", "gateway")
    with expect_error(ConfigurationError, "POLLUX_ALLOW_BASE_URLS cannot be used"):
        Config(provider="openai", model="m", base_url=ELSEWHERE)


def test_a_config_from_json_with_another_address_gets_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON can be read, but a call with the key of the environment is refused."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    config = Config.model_validate_json(make_config(base_url=ELSEWHERE).model_dump_json())
    assert config.api_key is None
    with expect_error(ConfigurationError, "not sent to"):
        config.key()


# --- The local provider and the mock ------------------------------------------------------------------------


def test_a_local_server_needs_an_address_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local server never gets the key of a cloud provider."""
    for variable in KEY_VARIABLES.values():
        monkeypatch.setenv(variable, SENTINEL)
    with expect_error(ConfigurationError, "address of your server", "POLLUX_LOCAL_BASE_URL"):
        Config(provider="local", model="m")
    assert Config(provider="local", model="m", base_url="http://h").key() is None


def test_a_local_server_gets_a_passed_key() -> None:
    assert Config(provider="local", model="m", base_url="http://h", api_key=SENTINEL).key() == SENTINEL


@every_provider
def test_a_mock_needs_no_key_and_ignores_the_environment(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mock has neither a key nor an address, also if the environment has them."""
    if provider in KEY_VARIABLES:
        monkeypatch.setenv(KEY_VARIABLES[provider], SENTINEL)
    monkeypatch.setenv(URL_VARIABLES[provider], "http://gateway")
    config = Config(provider=provider, model="m", use_mock=True)
    assert config.api_key is None
    assert config.base_url is None
    assert config.key() is None


# --- Config as a document -----------------------------------------------------------------------------------


@given(configs)
def test_a_config_comes_back_equal_from_json(config: Config) -> None:
    """The key is not part of the JSON, and does not count for equality."""
    check_json_round_trip(config)


@given(policies)
def test_a_retry_policy_comes_back_equal_from_json(policy: RetryPolicy) -> None:
    check_json_round_trip(policy)


@given(configs)
def test_a_target_comes_back_equal_from_json(config: Config) -> None:
    """Tasks get a Target instead of a Config."""
    check_json_round_trip(config.target)


def test_a_config_from_json_or_a_pickle_takes_the_key_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the JSON nor the pickle has a key; the environment of the other machine has one."""
    text, pickled = make_config().model_dump_json(), pickle.dumps(make_config())
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-worker")
    assert Config.model_validate_json(text).key() == "sk-of-the-worker"
    assert pickle.loads(pickled).key() == "sk-of-the-worker"  # noqa: S301 (our own)


def test_a_config_can_be_read_without_a_key() -> None:
    """Only a call needs the key, and raises an error without one."""
    config = Config.model_validate_json(make_config().model_dump_json())
    assert config == make_config()
    with expect_error(ConfigurationError, "no API key for openai"):
        config.key()


def test_a_target_has_exactly_these_fields() -> None:
    """A plan depends on the Target, which has neither a key nor limits."""
    config = make_config(base_url="http://h", request_concurrency=3)
    assert config.target == Target(provider="openai", model="gpt-4.1-mini", base_url="http://h")
    assert set(Target.model_fields) == {"provider", "model", "base_url", "use_mock"}


def test_configs_that_differ_only_in_their_keys_are_equal() -> None:
    """Equality is that of the JSON."""
    assert make_config() == make_config(api_key="sk-another")
    assert hash(make_config()) == hash(make_config(api_key="sk-another"))
    assert make_config() != make_config(model="gpt-4.1")


def test_a_config_does_not_equal_another_document() -> None:
    """A Target with equal fields is not equal to a Config."""
    assert Target(provider="openai", model="m") != Config(provider="openai", model="m", use_mock=True)
    assert make_config() != "a config"


def test_a_config_is_immutable() -> None:
    """The error about a change names model_copy."""
    config = make_config()
    with expect_error(ConfigurationError, "cannot be changed", "model_copy"):
        config.model = "another"  # type: ignore[misc]
    with expect_error(ConfigurationError, "cannot be changed"):
        config.nickname = "fast"  # type: ignore[attr-defined]
    with expect_error(ConfigurationError, "cannot be changed"):
        del config.model
    assert config == make_config()


def test_a_copy_with_changes_is_validated() -> None:
    """The copy has the key of the original."""
    assert make_config().model_copy(update={"timeout_s": 5.0}).timeout_s == 5.0
    assert make_config().model_copy(update={"timeout_s": 5.0}).key() == SENTINEL
    with expect_error(ConfigurationError, "timeout_s"):
        make_config().model_copy(update={"timeout_s": "soon"})
    with expect_error(ConfigurationError, "patience is not a field"):
        make_config().model_copy(update={"patience": 1})


def test_a_subclass_of_config_behaves_like_a_config() -> None:
    """A subclass with another field is validated, comes back equal from JSON, and does not show the key."""

    class Mine(Config):
        team: str = "search"

    mine = Mine(provider="openai", model="m", api_key=SecretStr(SENTINEL))
    check_json_round_trip(Mine(provider="openai", model="m", use_mock=True, team="ads"))
    assert mine != Config(provider="openai", model="m", api_key=SENTINEL)
    assert SENTINEL not in f"{mine!r} {mine} {mine.model_dump_json()}"
    with expect_error(ConfigurationError, "team"):
        Mine(provider="openai", model="m", use_mock=True, team=1)
