"""HTTP clients of all adapters, those of the SDKs and our own two.

They use httpx2, as in httpx's pool the work of each request grows with the square of the number of connections.
"""

from __future__ import annotations

import ipaddress
import ssl
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from pollux_flows.config import Config
from pollux_flows.errors import ConfigurationError
from pollux_flows.ratelimit.headers import used_up_for
from pollux_flows.ratelimit.limiter import limiter_of
from pollux_flows.state.home import home

if TYPE_CHECKING:
    import httpx2

    from pollux_flows.simulator import Simulator

_CONNECT_S = 10.0


def sdk_client(config: Config, default_url: str, **settings: Any) -> httpx2.AsyncClient:
    """Return the HTTP client that is passed to the three SDKs."""
    import httpx2  # only when a call is made

    from pollux_flows.providers import body
    from pollux_flows.providers.pools import Pools

    limiter = limiter_of(config)
    transport: httpx2.AsyncBaseTransport | None = None
    # A server on this machine is never behind a proxy.
    may_have_proxy = not _on_this_machine(address(config, default_url))

    async def record_limits(response: httpx2.Response) -> None:
        if response.request.method == "POST":  # reads and deletes have quotas of their own
            limiter.used_up(used_up_for(response.headers))

    if config.use_mock:
        transport = httpx2.ASGITransport(app=_simulator().app)
    elif not (may_have_proxy and getproxies()):
        transport = Pools(config.request_concurrency, tls())
    try:
        client = httpx2.AsyncClient(
            transport=transport,
            verify=tls(),
            # Read and write are limited by the deadline around the entire call; the pool by request_concurrency.
            timeout=httpx2.Timeout(None, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=config.request_concurrency),
            # A redirect could send the key to another host.
            follow_redirects=False,
            trust_env=may_have_proxy,
            event_hooks={"response": [record_limits, body.limit_body]},
            **settings,
        )
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"The proxy of the environment cannot be used: {error}",
            hint="Correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or add the provider's host to NO_PROXY.",
        ) from None
    client.headers["accept-encoding"] = body.ACCEPTED
    return client


def own_client(config: Config, default_url: str) -> httpx2.AsyncClient:
    """Return the HTTP client of our own adapters, with the base URL and the key in its headers."""
    headers = {"authorization": f"Bearer {key(config)}"}
    return sdk_client(config, default_url, base_url=address(config, default_url), headers=headers)


def idle_client() -> httpx2.Client:
    """Return a client for the unused half of an SDK, which would otherwise build one from the environment."""
    import httpx2

    return httpx2.Client(verify=tls(), trust_env=False)


def address(config: Config, default_url: str) -> str:
    """Return the base URL to send to: the simulator's, the configured one, or the provider's own."""
    if config.use_mock:
        return _simulator().base_url(config.provider, origin="http://simulator")
    return config.base_url or default_url


def key(config: Config) -> str:
    """Return the key to authorize with, or a placeholder for a server that needs none."""
    return config.key() or "no-key"


@cache
def tls() -> ssl.SSLContext:
    """Return the TLS context of this process, which is cached, as reading the certificates takes 15 ms."""
    import httpx2

    return httpx2.create_ssl_context()


def _simulator() -> Simulator:
    """Return the simulator of this process, with the batches that any local process has submitted."""
    from pollux_flows.simulator import in_process  # only when a config asks for it

    return in_process(home() / "simulator")


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
