"""Config and RetryPolicy: the provider and model of a call, and its limits."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

from pydantic import (
    ConfigDict,
    Field,
    SecretStr,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pollux_flows.access import current_restrictions
from pollux_flows.base_url import check_address, check_base_url, is_own_host
from pollux_flows.document import Document
from pollux_flows.errors import ConfigurationError
from pollux_flows.plain import Text

ProviderName = Literal["gemini", "openai", "anthropic", "openrouter", "local"]
PROVIDERS: Final[tuple[ProviderName, ...]] = get_args(ProviderName)

KEY_VARIABLES: Final[dict[ProviderName, str]] = {
    "gemini": "GEMINI_API_KEY",
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
}
URL_VARIABLES: Final[dict[ProviderName, str]] = {
    "gemini": "GOOGLE_GEMINI_BASE_URL",
    "openai": "OPENAI_BASE_URL",
    "anthropic": "ANTHROPIC_BASE_URL",
    "openrouter": "OPENROUTER_BASE_URL",
    "local": "POLLUX_LOCAL_BASE_URL",
}
ALLOWED_ADDRESSES: Final = "POLLUX_ALLOW_BASE_URLS"
"""The variable with further base URLs, separated by commas, that may receive the environment's keys."""

_ADDRESS_VARIABLES: Final = {ALLOWED_ADDRESSES, *URL_VARIABLES.values()}
# Prefect sets it for each flow run that a worker or a served deployment starts.
_DEPLOYED_RUN: Final = "PREFECT__FLOW_RUN_ID"
_MOST_A_MINUTE: Final = 10**12  # a number that every JSON reader can represent
_LIKE_A_NAME: Final = re.compile("[A-Za-z _-]{1,20}")


class RetryPolicy(Document):
    """Limits on the attempts and backoff of a failed call.

    `max_elapsed_s` bounds the time one call may spend waiting between its attempts; the time the provider
    takes to answer counts only against `Config.timeout_s`. A call is not retried when the provider asks for a
    longer wait than either allows.
    """

    model_config = ConfigDict(title="Retries")

    # The titles are those of the form of a PolluxProvider in the UI.
    max_attempts: StrictInt = Field(
        default=3, ge=1, le=1000, title="Max attempts", description="Attempts in all, the first included."
    )
    initial_delay_s: StrictFloat = Field(
        default=0.5, ge=0, title="Initial delay (seconds)", description="The first wait, in seconds."
    )
    backoff_multiplier: StrictFloat = Field(
        default=2.0, gt=0, title="Backoff multiplier", description="How much longer each wait is."
    )
    max_delay_s: StrictFloat = Field(
        default=5.0, ge=0, title="Max delay (seconds)", description="The longest wait we choose ourselves."
    )
    jitter: StrictBool = Field(default=True, description="Wait a random part of the delay, so that calls spread.")
    max_elapsed_s: StrictFloat | None = Field(
        default=15.0,
        ge=0,
        title="Max wait (seconds)",
        description="The most one call may wait in all; in code, None is no bound.",
    )


class Target(Document):
    """The provider, model and address of a call: the part of a Config that the answer depends on, without a key."""

    provider: ProviderName
    model: Text
    base_url: Text | None = None
    use_mock: StrictBool = False


class Config(Document):
    """The provider, model and API key of a run, and its concurrency, retry and rate limits.

    The key comes from `api_key`, otherwise from the provider's own variable, otherwise from the `.env` file of the
    working folder. It stays in memory: it is not part of the JSON, the pickle, the repr or the equality of a Config.

    A key that is passed is sent to any `base_url`. A key from the environment is sent only to the provider's own
    address, to the address that the environment names (such as in `OPENAI_BASE_URL`), and to those in
    `POLLUX_ALLOW_BASE_URLS`.
    """

    provider: ProviderName = Field(description="gemini, openai, anthropic, openrouter or local.")
    model: Text = Field(min_length=1, description="The model's name, as the provider spells it.")
    api_key: SecretStr | None = Field(
        default=None, strict=True, exclude=True, repr=False, description="The key, if not in the environment."
    )
    base_url: Text | None = Field(default=None, description="Another address to send to.")
    use_mock: StrictBool = Field(default=False, description="Answer from the simulator, in process and for free.")
    request_concurrency: StrictInt = Field(
        default=6, ge=1, le=10_000, description="How many calls may be under way at once."
    )
    retry: RetryPolicy = Field(default_factory=RetryPolicy, description="What to do when a call fails.")
    timeout_s: StrictFloat = Field(
        default=600.0, gt=0, description="The most a call may take, waits and retries included."
    )

    keep_files_s: StrictFloat | None = Field(
        default=3600.0,
        ge=0,
        description="How long an uploaded file stays after the last run that used it, before a sweep deletes it; "
        "0 deletes it at once, empty keeps it for as long as the provider does.",
    )
    requests_per_minute: StrictInt | None = Field(
        default=None,
        ge=1,
        le=_MOST_A_MINUTE,
        description="The most requests that may go out in a minute, for all that use this key in one process.",
    )
    tokens_per_minute: StrictInt | None = Field(
        default=None,
        ge=1,
        le=_MOST_A_MINUTE,
        description="The most tokens that their answers may take in a minute, prompts included, as far as is known "
        "in advance.",
    )

    if TYPE_CHECKING:  # api_key also accepts a plain string

        def __init__(
            self,
            *,
            provider: ProviderName,
            model: str,
            api_key: SecretStr | str | None = None,
            base_url: str | None = None,
            use_mock: bool = False,
            request_concurrency: int = 6,
            retry: RetryPolicy = ...,
            timeout_s: float = 600.0,
            keep_files_s: float | None = 3600.0,
            requests_per_minute: int | None = None,
            tokens_per_minute: int | None = None,
        ) -> None: ...

    @field_validator("provider", mode="before")
    @classmethod
    def _known_provider(cls, value: Any) -> Any:
        if value not in PROVIDERS:
            # Only a value that looks like a provider's name is quoted, as another one may be a key, passed by mistake.
            shown = f" {value!r}" if isinstance(value, str) and _LIKE_A_NAME.fullmatch(value) else ""
            raise ConfigurationError(f"Unknown provider{shown}.", hint=f"Write one of {', '.join(PROVIDERS)}.")
        return value

    @field_validator("model")
    @classmethod
    def _check_model(cls, value: str) -> str:
        if not value.strip():
            raise ConfigurationError("model is blank.", hint="Write the model's name as the provider spells it.")
        return value.strip()

    @field_validator("base_url")
    @classmethod
    def _usable_address(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or not value.strip():
            return None
        provider = info.data.get("provider")  # absent when it is not usable itself
        return check_base_url(provider, value.strip()) if provider else check_address(value.strip())

    @model_validator(mode="after")
    def _complete_from_environment(self, info: ValidationInfo) -> Self:
        if self.use_mock:
            return self
        # A .env file that happens to be in the working folder must not redirect a key that was passed.
        file_counts = self.api_key is None
        if self.base_url is None and (address := _environment_address(self.provider, dotenv=file_counts)):
            _fill(self, "base_url", address)
        if self.provider == "local":
            if self.base_url is None:
                raise ConfigurationError(
                    "The local provider needs the address of your server.",
                    hint="Pass Config(base_url='http://127.0.0.1:8000/v1') or set POLLUX_LOCAL_BASE_URL.",
                )
        elif self.api_key is None and self.may_use_environment and (key := environment_key(self.provider)):
            _fill(self, "api_key", SecretStr(key))
        # A Config read back from JSON only describes the target: the key is required when the call is made, not to
        # read the document.
        if info.mode != "json":
            self.key()
        if self.api_key is not None:
            _check_key(self.api_key.get_secret_value(), self.provider)
        return self

    @property
    def target(self) -> Target:
        """Return the provider, model and address, without the key and the limits."""
        return Target(provider=self.provider, model=self.model, base_url=self.base_url, use_mock=self.use_mock)

    def key(self) -> str | None:
        """Return the API key for a call, or None for a server that needs none. Raises if it is missing."""
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        if self.use_mock or self.provider == "local":
            return None
        raise _no_key(self.provider, self.base_url)

    @property
    def may_use_environment(self) -> bool:
        """Return whether the environment's key, organization and headers for this provider may go to its address."""
        return not self.use_mock and may_have_environment_key(self.provider, self.base_url)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as JSON, without the key: it is read again from the environment where the Config is unpickled.
        return type(self).model_validate_json, (self.model_dump_json(),)

    def __repr_args__(self) -> Any:
        yield from super().__repr_args__()
        yield "api_key", "[REDACTED]" if self.api_key is not None else None


def in_deployed_run() -> bool:
    """Return whether this process runs a flow that a Prefect worker or a served deployment has started."""
    return bool(os.environ.get(_DEPLOYED_RUN))


def from_environment(name: str, *, dotenv: bool = True) -> str | None:
    """Return a variable's value from the environment or, with `dotenv`, the working folder's `.env`; None when blank.

    Parent folders are not searched, and a deployed run reads no file, as other people may have written these files.
    """
    restrictions = current_restrictions()
    # A run may set variables of its own, such as a key, but cannot decide where the worker's key is sent.
    environment = restrictions.environment if restrictions and name in _ADDRESS_VARIABLES else os.environ
    if value := environment.get(name, "").strip():
        return value
    file = Path(".env")
    if not dotenv or in_deployed_run() or not file.exists():
        return None
    # Read, not loaded, so that other variables in that file do not enter this process's environment.
    from dotenv import dotenv_values  # costs 10 ms, needed only when a variable is missing

    try:
        return (dotenv_values(file).get(name) or "").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{file.absolute()} cannot be read ({type(error).__name__}).",
            hint=f"Make it readable UTF-8 text, or set {name}.",
        ) from None


def environment_key(provider: ProviderName) -> str | None:
    """Return the provider's key from the environment. A local server has none."""
    variable = KEY_VARIABLES.get(provider)
    return from_environment(variable) if variable else None


def _environment_address(provider: ProviderName, *, dotenv: bool = True) -> str | None:
    """Return the base URL that the environment names for a provider, checked."""
    variable = URL_VARIABLES[provider]
    if (value := from_environment(variable, dotenv=dotenv)) is None:
        return None
    try:
        return check_base_url(provider, value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{variable}: {error.message}", hint=error.hint) from None


def may_have_environment_key(provider: ProviderName, base_url: str | None) -> bool:
    """Return whether an address may receive the environment's key: the provider's own, or named by the environment."""
    if base_url is None or is_own_host(provider, base_url):
        return True
    if _environment_address(provider) == base_url.rstrip("/"):
        return True
    return any(_is_below(base_url, allowed) for allowed in _allowed_addresses())


def _allowed_addresses() -> list[str]:
    listed = [each.strip() for each in (from_environment(ALLOWED_ADDRESSES) or "").split(",")]
    try:
        return [check_address(each) for each in listed if each]
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{ALLOWED_ADDRESSES} cannot be used: {error.message}", hint="Write addresses, separated by commas."
        ) from None


def _is_below(base_url: str, allowed: str) -> bool:
    """Return whether the address is `allowed` or a path below it, without `..` or escapes that could leave it."""
    rest = base_url.rstrip("/").removeprefix(allowed)
    return base_url.startswith(allowed) and (not rest or rest[0] == "/") and ".." not in rest and "%" not in rest


def _no_key(provider: ProviderName, base_url: str | None) -> ConfigurationError:
    """Return the error that explains why there is no key for that address, with the setting that fixes it."""
    variable = KEY_VARIABLES[provider]
    if may_have_environment_key(provider, base_url):
        return ConfigurationError(
            f"There is no API key for {provider}.",
            hint=f"Set {variable}, put it into the working folder's .env file, or pass Config(api_key=…). "
            "To try things without a key, pass use_mock=True.",
        )
    line = f"{ALLOWED_ADDRESSES}={','.join([*_allowed_addresses(), str(base_url)])}"
    if environment_key(provider) is None:
        return ConfigurationError(
            f"There is no API key for {provider} at {base_url}.",
            hint=f"Pass it as api_key, or set {variable} and allow it to go there: {line}",
        )
    return ConfigurationError(
        f"The key in {variable} is not sent to {base_url}: nothing in this environment names that address.",
        hint="Pass the key for that address as api_key, use a saved PolluxProvider with that base_url, or allow the "
        f"address where this runs: {line}",
    )


def _check_key(key: str, provider: ProviderName) -> None:
    if key.strip("*") == "":
        variable = KEY_VARIABLES.get(provider)
        raise ConfigurationError(
            "The API key is a row of asterisks, as which Prefect shows a secret, not the key itself."
            if key
            else "The API key is empty.",
            hint=f"Set {variable}, or save the key in a PolluxProvider block and load that block."
            if variable
            else "Leave api_key out if your server asks for none.",
        )
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise ConfigurationError(
            "The API key has characters that an HTTP header cannot contain, such as a line break or a space.",
            hint="Copy it again, without quotes or spaces around it.",
        )


def _fill(config: Config, field: str, value: Any) -> None:
    """Set a field of a frozen Config while it is being validated."""
    config.__dict__[field] = value
