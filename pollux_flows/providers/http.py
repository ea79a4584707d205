"""HTTP: the connections that all adapters send through.

The SDKs are built on httpx2, our own two adapters on httpx; the settings are the same.
"""

from __future__ import annotations

import ipaddress
import ssl
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pollux_flows.config import Config
from pollux_flows.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx
    import httpx2

_CONNECT_S = 10.0


def sdk_client(config: Config, default_url: str) -> httpx2.AsyncClient:
    """The client that the three SDKs are given."""
    import httpx2  # only when a call is made

    client: httpx2.AsyncClient = _client(httpx2, config, default_url)
    return client


def idle_client() -> httpx2.Client:
    """For the half of an SDK that nobody uses: left to itself it would make one from whatever is in the environment."""
    import httpx2

    return httpx2.Client(verify=_tls("httpx2"), trust_env=False)


def web_client(timeout_s: float) -> httpx.Client:
    """For files on the web, wherever their address leads."""
    import httpx

    return httpx.Client(verify=_tls("httpx"), timeout=timeout_s, follow_redirects=True)


def own_client(config: Config, default_url: str) -> httpx.AsyncClient:
    """The client that our own adapters send through, addressed and with the key in its headers."""
    import httpx  # only when a call is made

    client: httpx.AsyncClient = _client(
        httpx,
        config,
        default_url,
        base_url=address(config, default_url),
        headers={"authorization": f"Bearer {key(config)}"},
    )
    return client


def address(config: Config, default_url: str) -> str:
    """Where to send: the simulator, the configured address, or the provider's own."""
    if config.use_mock:
        from pollux_flows.simulator import in_process  # only for those who ask for it

        return in_process().base_url(config.provider, origin="http://simulator")
    return config.base_url or default_url


def key(config: Config) -> str:
    """What to authorise with; a server that asks for nothing is told so."""
    return config.key() or "no-key"


def _client(library: Any, config: Config, default_url: str, **settings: Any) -> Any:
    transport = None
    if config.use_mock:
        from pollux_flows.simulator import in_process

        transport = library.ASGITransport(app=in_process().app)
    try:
        return library.AsyncClient(
            transport=transport,
            verify=_tls(library.__name__),
            # Read and write are bounded by the deadline around the whole call; the pool by request_concurrency.
            timeout=library.Timeout(None, connect=_CONNECT_S),
            limits=library.Limits(max_connections=None, max_keepalive_connections=config.request_concurrency),
            # A redirect would take the key to another host.
            follow_redirects=False,
            # A proxy is for the way out; what listens on this machine is never behind one.
            trust_env=not _on_this_machine(address(config, default_url)),
            **settings,
        )
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"The proxy that the environment names cannot be used: {error}",
            hint="Correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or except the provider's host in NO_PROXY.",
        ) from None


@cache
def _tls(library: str) -> ssl.SSLContext:
    """Reading the certificates takes 15 ms: once a process is enough."""
    import importlib

    context: ssl.SSLContext = importlib.import_module(library).create_ssl_context()
    return context


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
