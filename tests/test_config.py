"""Config: which provider and model answer, with which key, and how hard they may be pressed."""

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
from tests.documents import SENTINEL, configs, goes_through_json, policies, refused

every_provider = pytest.mark.parametrize("provider", PROVIDERS)
with_key = pytest.mark.parametrize("provider", list(KEY_VARIABLES))


def make(**changes: Any) -> Config:
    """A Config that works, but for these changes."""
    return Config(**{"provider": "openai", "model": "gpt-4.1-mini", "api_key": SENTINEL, **changes})


# --- What it takes ------------------------------------------------------------------------------------------


def test_provider_model_and_a_key_are_enough() -> None:
    """Everything else has a default that a first run can live with."""
    config = Config(provider="gemini", model="gemini-2.5-flash-lite", api_key=SENTINEL)
    assert config.request_concurrency == 6
    assert (config.requests_per_minute, config.tokens_per_minute) == (None, None)
    assert config.retry == RetryPolicy()
    assert config.timeout_s == 600.0
    assert config.use_mock is False
    assert config.base_url is None
    assert config.key() == SENTINEL


def test_a_key_may_be_a_secret_already() -> None:
    """Prefect hands keys over as SecretStr."""
    assert make(api_key=SecretStr(SENTINEL)).key() == SENTINEL


@pytest.mark.parametrize(
    "provider", [None, 1, [], {}, set(), b"openai", object(), "OpenAI", "openai ", "mock", "azure", ""]
)
def test_an_unknown_provider_is_answered_with_the_known_ones(provider: Any) -> None:
    """Whatever stands there, the error says what could."""
    with refused(ConfigurationError, "Unknown provider", ", ".join(PROVIDERS)):
        make(provider=provider)


def test_a_mock_does_not_make_a_provider_up() -> None:
    """The simulator plays the five, and no other."""
    with refused(ConfigurationError, "Unknown provider 'azure'"):
        make(provider="azure", use_mock=True)


@pytest.mark.parametrize("model", ["", " ", "\n", None, 1, b"gpt", ["gpt"], "\ud800"])
def test_a_model_has_a_name(model: Any) -> None:
    """Blank, missing or not text: said at once, not by the provider later."""
    with refused(ConfigurationError, "model"):
        make(model=model)


def test_space_around_a_model_is_forgiven() -> None:
    """As it comes out of a form or a file."""
    assert make(model=" gpt-4.1-mini\n").model == "gpt-4.1-mini"


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
    """The error names the field, or the document that stands there, and never is a TypeError."""
    with refused(ConfigurationError, "RetryPolicy" if field == "retry" else field):
        make(**{field: value})


def test_an_unknown_field_is_answered_with_the_known_ones() -> None:
    """A misspelt setting is not a setting that silently does nothing."""
    with refused(ConfigurationError, "concurrency is not a field of Config", "request_concurrency"):
        make(concurrency=3)


def test_all_that_is_wrong_is_told_at_once() -> None:
    """Nobody should have to mend one field to hear about the next."""
    with refused(ConfigurationError, "use_mock", "request_concurrency", "timeout_s"):
        make(use_mock="yes", request_concurrency=0, timeout_s=-1.0)


@pytest.mark.parametrize("data", [None, 1, [], "x", {1: 2}, object()])
def test_what_is_no_document_is_refused_in_words(data: Any) -> None:
    """Where a Config is expected and something else comes."""
    with refused(ConfigurationError, "Config is not usable"):
        Config.model_validate(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff", '{"provider": "openai"}'])
def test_what_is_no_json_is_refused_in_words(text: str | bytes) -> None:
    """Cut, empty, or something else altogether."""
    with refused(ConfigurationError, "Config is not usable"):
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
def test_a_wrong_retry_policy_is_refused_in_words(field: str, value: Any) -> None:
    """By itself, and as the dict that stands in a Config."""
    with refused(ConfigurationError, field):
        RetryPolicy(**{field: value})
    with refused(ConfigurationError, "RetryPolicy is not usable", field):
        make(retry={field: value})


def test_whole_seconds_need_no_decimal_point() -> None:
    """`1` is as good as `1.0`, and the same policy."""
    assert RetryPolicy(initial_delay_s=1) == RetryPolicy(initial_delay_s=1.0)


def test_waiting_may_be_without_bound() -> None:
    """For batch work that has all night."""
    assert RetryPolicy(max_elapsed_s=None).max_elapsed_s is None


# --- Keys ---------------------------------------------------------------------------------------------------


@with_key
def test_the_key_comes_from_the_providers_own_variable(provider: ProviderName, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to write where the environment says it already."""
    monkeypatch.setenv(KEY_VARIABLES[provider], SENTINEL)
    assert Config(provider=provider, model="m").key() == SENTINEL


@with_key
def test_the_key_is_never_another_providers(provider: ProviderName, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is sent to the wrong provider is a key that leaked."""
    for other, variable in KEY_VARIABLES.items():
        if other != provider:
            monkeypatch.setenv(variable, SENTINEL)
    with refused(ConfigurationError, f"no API key for {provider}", KEY_VARIABLES[provider], "use_mock=True"):
        Config(provider=provider, model="m")


def test_the_key_that_is_written_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    assert make().key() == SENTINEL


def test_the_key_comes_from_a_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder's own; the rest of that file stays out of this process."""
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={SENTINEL}\nSOMEBODY_ELSES=secret\n")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    assert Config(provider="openai", model="m").key() == SENTINEL
    assert dict(os.environ) == before


def test_a_dotenv_file_in_a_folder_above_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a stranger's: it names neither a key nor an address."""
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={SENTINEL}\nOPENAI_BASE_URL=http://strangers/v1\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with refused(ConfigurationError, "no API key for openai"):
        Config(provider="openai", model="m")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    assert Config(provider="openai", model="m").base_url is None


def test_a_deployed_run_reads_no_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its working folder holds what a worker pulled or a run left there."""
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={SENTINEL}\nOPENAI_BASE_URL=http://strangers/v1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "6f1c1b0e-0000-0000-0000-000000000000")
    with refused(ConfigurationError, "no API key for openai"):
        Config(provider="openai", model="m")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    assert Config(provider="openai", model="m").base_url is None


@with_key
def test_an_address_from_a_dotenv_file_never_takes_a_passed_key(
    provider: ProviderName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file says where keys of the environment go; a key that was passed goes where the code says."""
    (tmp_path / ".env").write_text(f"{URL_VARIABLES[provider]}=http://gateway/v1\n{KEY_VARIABLES[provider]}=sk-file\n")
    monkeypatch.chdir(tmp_path)
    assert make(provider=provider).base_url is None
    config = Config(provider=provider, model="m")
    assert (config.base_url, config.key()) == ("http://gateway/v1", "sk-file")


def test_the_environment_wins_over_a_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for this run is meant for this run."""
    (tmp_path / ".env").write_text("OPENAI_API_KEY=sk-from-the-file\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    assert Config(provider="openai", model="m").key() == SENTINEL


def test_a_blank_variable_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers like to set what they do not have; the file still counts."""
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={SENTINEL}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    assert Config(provider="openai", model="m").key() == SENTINEL


@pytest.mark.parametrize("content", [b"OPENAI_API_KEY=", b"OPENAI_API_KEY", b"", b"OTHER=1"])
def test_a_dotenv_file_without_the_key_is_as_good_as_none(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is about the key, not about the file."""
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with refused(ConfigurationError, "no API key for openai"):
        Config(provider="openai", model="m")


def test_a_dotenv_file_that_is_no_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by an editor with another encoding, say."""
    (tmp_path / ".env").write_bytes(b"OPENAI_API_KEY=\xff\xfe")
    monkeypatch.chdir(tmp_path)
    with refused(ConfigurationError, ".env cannot be read", "UTF-8"):
        Config(provider="openai", model="m")


@every_provider
@pytest.mark.parametrize("key", ["*", "********"])
def test_a_masked_key_is_not_a_key(provider: ProviderName, key: str) -> None:
    """Prefect shows secrets as asterisks; whoever reads them back is told so, not answered with a 401."""
    with refused(ConfigurationError, "asterisks"):
        make(provider=provider, api_key=key, base_url="http://h")


@every_provider
@pytest.mark.parametrize("key", ["", " ", f"{SENTINEL}\n", f" {SENTINEL}", "sk-\x00", "ключ", "\ud800"])
def test_a_key_that_no_header_can_carry_is_refused(provider: ProviderName, key: str) -> None:
    """Empty, or copied with a space or a line break: said here, without showing it."""
    with refused(ConfigurationError, "The API key") as caught:
        make(provider=provider, api_key=key, base_url="http://h")
    assert SENTINEL not in str(caught.value)


def test_a_masked_variable_is_not_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rule, whichever way it came."""
    monkeypatch.setenv("OPENAI_API_KEY", "********")
    with refused(ConfigurationError, "asterisks", "OPENAI_API_KEY"):
        Config(provider="openai", model="m")


# --- Addresses ----------------------------------------------------------------------------------------------


@every_provider
def test_every_provider_can_be_sent_elsewhere(provider: ProviderName) -> None:
    """To a gateway, to a simulator; a slash at the end makes no difference."""
    assert make(provider=provider, base_url="http://127.0.0.1:9/v1/").base_url == "http://127.0.0.1:9/v1"


@every_provider
def test_the_address_comes_from_the_sdks_own_variable(provider: ProviderName, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what works with the bare SDK works here; what is written wins."""
    monkeypatch.setenv(URL_VARIABLES[provider], "http://gateway/")
    assert make(provider=provider).base_url == "http://gateway"
    assert make(provider=provider, base_url="http://written").base_url == "http://written"


@pytest.mark.parametrize("address", ["", " ", None])
def test_a_blank_address_is_none(address: str | None) -> None:
    """As a form sends it."""
    assert make(base_url=address).base_url is None


@pytest.mark.parametrize(
    "address",
    ["x", "//h", "ftp://h", "http://", "http://[::1", "http://h:99999", "http://h:port", "http://h\n/v1", "http://h h"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """With an example of one that is."""
    with refused(ConfigurationError, "base_url is not an http address", "http://127.0.0.1:8000/v1"):
        make(base_url=address)


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
def test_an_address_carries_no_secret(address: str) -> None:
    """Addresses stand in plain JSON; a key in one is refused, and not repeated in the refusal."""
    with refused(ConfigurationError, "base_url holds", "api_key") as caught:
        make(base_url=address)
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
def test_an_address_of_the_wrong_shape_is_refused_with_the_right_one(
    provider: ProviderName, address: str, right: str
) -> None:
    with refused(ConfigurationError, "base_url", f"Write '{right}'."):
        make(provider=provider, base_url=address)
    assert make(provider=provider, base_url=right).base_url == right


@pytest.mark.parametrize(
    ("provider", "address"),
    [("openai", "http://litellm:4000"), ("anthropic", "http://gateway/v1"), ("local", "https://h/api/inference")],
)
def test_an_address_that_a_gateway_may_have_is_accepted(provider: ProviderName, address: str) -> None:
    assert make(provider=provider, base_url=address).base_url == address


def test_a_wrong_address_in_a_variable_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Better here than as a connection error."""
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000")
    with refused(ConfigurationError, "OPENAI_BASE_URL: base_url is not an http address"):
        make()


# --- Where a key from the environment may go ----------------------------------------------------------------

ELSEWHERE = "http://127.0.0.1:1234/v1"


@with_key
def test_a_key_from_the_environment_goes_to_no_address_that_only_the_config_names(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error holds the line that would allow it; a key that is passed goes anywhere."""
    monkeypatch.setenv(KEY_VARIABLES[provider], SENTINEL)
    with refused(
        ConfigurationError, KEY_VARIABLES[provider], f"not sent to {ELSEWHERE}", f"POLLUX_ALLOW_BASE_URLS={ELSEWHERE}"
    ):
        Config(provider=provider, model="m", base_url=ELSEWHERE)
    assert make(provider=provider, base_url=ELSEWHERE).key() == SENTINEL


def test_without_any_key_the_error_says_how_to_give_one_for_that_address() -> None:
    """Both ways, so that the first try that follows it works."""
    with refused(ConfigurationError, "no API key for openai at", "api_key", "OPENAI_API_KEY", "POLLUX_ALLOW_BASE_URLS"):
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
def test_the_providers_own_address_has_the_key_of_the_environment(
    provider: ProviderName, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out, or a region's."""
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
def test_what_only_looks_like_the_providers_own_address_has_no_key(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the clear, nor at another host, nor at another provider."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    with refused(ConfigurationError, "not sent to"):
        Config(provider="openai", model="m", base_url=address)


@with_key
def test_the_address_that_the_environment_names_has_its_key(
    provider: ProviderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the code writes it once more or not."""
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
def test_a_setting_allows_more_addresses(
    allowed: str, address: str, is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address, and all that is below it."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    monkeypatch.setenv("POLLUX_ALLOW_BASE_URLS", allowed)
    if is_allowed:
        assert Config(provider="openai", model="m", base_url=address).key() == SENTINEL
    else:
        with refused(ConfigurationError, "not sent to"):
            Config(provider="openai", model="m", base_url=address)


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "POLLUX_ALLOW_BASE_URLS"])
def test_a_deployed_run_allows_itself_no_address(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it brought into its environment (its job variables) does not say where the worker's key goes."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    monkeypatch.setenv(variable, ELSEWHERE)
    with apply_restrictions(Restrictions(environment={})):
        assert Config(provider="openai", model="m").base_url is None
        with refused(ConfigurationError, "not sent to"):
            Config(provider="openai", model="m", base_url=ELSEWHERE)


def test_a_setting_that_names_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not skipped, or the next refusal would be a riddle."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    monkeypatch.setenv("POLLUX_ALLOW_BASE_URLS", "gateway")
    with refused(ConfigurationError, "POLLUX_ALLOW_BASE_URLS cannot be used"):
        Config(provider="openai", model="m", base_url=ELSEWHERE)


def test_json_with_another_address_can_be_read_and_is_given_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document from elsewhere is looked at for free; a call with the environment's key is refused."""
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    config = Config.model_validate_json(make(base_url=ELSEWHERE).model_dump_json())
    assert config.api_key is None
    with refused(ConfigurationError, "not sent to"):
        config.key()


# --- The local provider and the mock ------------------------------------------------------------------------


def test_a_local_server_needs_an_address_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is never given the key of a cloud provider."""
    for variable in KEY_VARIABLES.values():
        monkeypatch.setenv(variable, SENTINEL)
    with refused(ConfigurationError, "address of your server", "POLLUX_LOCAL_BASE_URL"):
        Config(provider="local", model="m")
    assert Config(provider="local", model="m", base_url="http://h").key() is None


def test_a_local_server_may_want_a_key_all_the_same() -> None:
    """Then it gets the one that is written."""
    assert Config(provider="local", model="m", base_url="http://h", api_key=SENTINEL).key() == SENTINEL


@every_provider
def test_a_mock_needs_nothing_and_reads_nothing(provider: ProviderName, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no address, and the ones in the environment stay there."""
    if provider in KEY_VARIABLES:
        monkeypatch.setenv(KEY_VARIABLES[provider], SENTINEL)
    monkeypatch.setenv(URL_VARIABLES[provider], "http://gateway")
    config = Config(provider=provider, model="m", use_mock=True)
    assert config.api_key is None
    assert config.base_url is None
    assert config.key() is None


# --- A document ---------------------------------------------------------------------------------------------


@given(configs)
def test_a_config_goes_through_json(config: Config) -> None:
    """All but its key."""
    goes_through_json(config)


@given(policies)
def test_a_retry_policy_goes_through_json(policy: RetryPolicy) -> None:
    """It is part of every Config."""
    goes_through_json(policy)


@given(configs)
def test_a_target_goes_through_json(config: Config) -> None:
    """It is what tasks are given instead of a Config."""
    goes_through_json(config.target)


def test_a_config_finds_its_key_again_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON, or the pickle, describes who answers; the key is that of the machine it arrives at."""
    text, pickled = make().model_dump_json(), pickle.dumps(make())
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-worker")
    assert Config.model_validate_json(text).key() == "sk-of-the-worker"
    assert pickle.loads(pickled).key() == "sk-of-the-worker"  # noqa: S301 (our own)


def test_a_config_can_be_looked_at_without_its_key() -> None:
    """Reading is free; the call is what needs a key, and says so."""
    config = Config.model_validate_json(make().model_dump_json())
    assert config == make()
    with refused(ConfigurationError, "no API key for openai"):
        config.key()


def test_the_target_is_who_answers_and_no_more() -> None:
    """What a plan depends on: no key, no limits."""
    config = make(base_url="http://h", request_concurrency=3)
    assert config.target == Target(provider="openai", model="gpt-4.1-mini", base_url="http://h")
    assert set(Target.model_fields) == {"provider", "model", "base_url", "use_mock"}


def test_who_pays_makes_no_difference() -> None:
    """Two Configs that differ in their keys are equal: their JSON is."""
    assert make() == make(api_key="sk-another")
    assert hash(make()) == hash(make(api_key="sk-another"))
    assert make() != make(model="gpt-4.1")


def test_a_config_is_no_other_document() -> None:
    """Equal fields do not make a Target a Config."""
    assert Target(provider="openai", model="m") != Config(provider="openai", model="m", use_mock=True)
    assert make() != "a config"


def test_a_config_never_changes() -> None:
    """Whoever holds one can rely on it; a change says how to make another."""
    config = make()
    with refused(ConfigurationError, "cannot be changed", "model_copy"):
        config.model = "another"  # type: ignore[misc]
    with refused(ConfigurationError, "cannot be changed"):
        config.nickname = "fast"  # type: ignore[attr-defined]
    with refused(ConfigurationError, "cannot be changed"):
        del config.model
    assert config == make()


def test_a_copy_with_changes_is_checked_like_any_other() -> None:
    """And keeps the key in memory."""
    assert make().model_copy(update={"timeout_s": 5.0}).timeout_s == 5.0
    assert make().model_copy(update={"timeout_s": 5.0}).key() == SENTINEL
    with refused(ConfigurationError, "timeout_s"):
        make().model_copy(update={"timeout_s": "soon"})
    with refused(ConfigurationError, "patience is not a field"):
        make().model_copy(update={"patience": 1})


def test_a_subclass_keeps_the_promises() -> None:
    """Somebody will add a field of their own."""

    class Mine(Config):
        team: str = "search"

    mine = Mine(provider="openai", model="m", api_key=SecretStr(SENTINEL))
    goes_through_json(Mine(provider="openai", model="m", use_mock=True, team="ads"))
    assert mine != Config(provider="openai", model="m", api_key=SENTINEL)
    assert SENTINEL not in f"{mine!r} {mine} {mine.model_dump_json()}"
    with refused(ConfigurationError, "team"):
        Mine(provider="openai", model="m", use_mock=True, team=1)
