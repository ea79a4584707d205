"""Base URLs: the form that each provider's must have. A wrong one is refused when it is set."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pollux_flows.errors import ConfigurationError

if TYPE_CHECKING:
    from pollux_flows.config import ProviderName

OWN_ADDRESSES: Final[dict[ProviderName, str]] = {
    "gemini": "https://generativelanguage.googleapis.com",
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "openrouter": "https://openrouter.ai/api/v1",
}
_EXAMPLES: Final[dict[ProviderName, str]] = {
    "gemini": "http://127.0.0.1:8000",
    "openai": "http://127.0.0.1:8000/v1",
    "anthropic": "http://127.0.0.1:8000",
    "openrouter": "http://127.0.0.1:8000/api/v1",
    "local": "http://127.0.0.1:8000/v1",
}
# The paths of single calls, which each client adds to the base URL.
_ENDPOINT: Final = re.compile(r"/(chat/completions|completions|responses|messages|embeddings|models/[^/]+:\w+)$")
_VERSION: Final = re.compile(r"/v\d+\w*$")
# The clients of these add the version as well.
_WITHOUT_VERSION: Final[set[ProviderName]] = {"gemini", "anthropic"}


def check_address(value: str, example: str = _EXAMPLES["local"]) -> str:
    """Return `value` without a trailing slash. Raises a ConfigurationError if it cannot be a base URL."""
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    # urlsplit() ignores line breaks; an HTTP client would not.
    if parts.scheme not in {"http", "https"} or not host or not value.isprintable() or " " in value:
        raise ConfigurationError("base_url is not an http address.", hint=f"Write the full URL, such as '{example}'.")
    if parts.username is not None or parts.password is not None or "?" in value or "#" in value:
        # A base URL is part of plain JSON and logs, so it must not hold a key.
        raise ConfigurationError(
            "base_url holds a user name, a password, a query or a fragment.",
            hint="Write only scheme, host, port and path; pass the key as api_key.",
        )
    return value.rstrip("/")


def check_base_url(provider: ProviderName, value: str) -> str:
    """Return `value` without a trailing slash. Raises a ConfigurationError if it is not one of this provider."""
    address = check_address(value, _EXAMPLES[provider])
    base = _ENDPOINT.sub("", address)
    if base != address:
        path = address.removeprefix(base)
        raise ConfigurationError(
            f"base_url ends in {path}, which {provider}'s client adds to it.",
            hint=f"Write '{_without_version(base) if provider in _WITHOUT_VERSION else base}'.",
        )
    own = OWN_ADDRESSES.get(provider)
    if own and is_own_host(provider, address):
        path, expected = urlsplit(address).path, urlsplit(own).path
        if not f"{path}/".startswith(f"{expected}/") or (provider in _WITHOUT_VERSION and path):
            raise ConfigurationError(
                f"base_url has the path '{path or '/'}', which is not that of {provider}'s API.",
                hint=f"Write '{address.removesuffix(path)}{expected}'.",
            )
    return address


def is_own_host(provider: ProviderName, base_url: str) -> bool:
    """Return whether the address is on the provider's host or a subdomain of it (OpenAI has one for each region)."""
    if (own := OWN_ADDRESSES.get(provider)) is None:
        return False
    host = re.escape(urlsplit(own).hostname or "")
    return re.match(rf"https://([a-z0-9-]+\.)*{host}(:\d+)?(/|$)", base_url) is not None


def suggest_base_url(provider: ProviderName, base_url: str) -> str | None:
    """Return the address that was probably meant, after a server answered that it does not know the path.

    Most servers have OpenAI's API at /v1, and those of Gemini and Anthropic without it. A gateway may differ, so such
    an address is not refused when it is set.
    """
    if provider in _WITHOUT_VERSION:
        meant = _without_version(base_url)
        return meant if meant != base_url else None
    return None if _VERSION.search(base_url) else f"{base_url}/v1"


def _without_version(address: str) -> str:
    return _VERSION.sub("", address)
