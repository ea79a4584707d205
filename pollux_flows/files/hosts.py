"""Hosts: refuses web addresses on this machine or its network, in a run with restrictions.

A name is resolved once, its addresses are checked, and the connection uses one of those addresses. If the connection
resolved the name again, it might get a different address (DNS rebinding). Each redirect is checked as well.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final
from urllib.request import getproxies

import httpx

from pollux_flows.access import HOSTS, Restrictions
from pollux_flows.errors import SourceError

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_PROXIES: Final = {"http", "https", "all"}
_PORTS: Final = {"http": 80, "https": 443}


def limited_client(restrictions: Restrictions, timeout_s: float) -> httpx.Client:
    """Return a client that connects to no address that the restrictions refuse."""
    if getproxies().keys() & _PROXIES:  # a proxy resolves names itself, so they can be checked, but not pinned
        hooks = {"request": [lambda request: _check_before_proxy(restrictions, request.url)]}
        return httpx.Client(timeout=timeout_s, follow_redirects=True, event_hooks=hooks)
    return httpx.Client(timeout=timeout_s, follow_redirects=True, transport=_PinnedTransport(restrictions))


class _PinnedTransport(httpx.HTTPTransport):
    """A transport that connects only to the checked addresses of a host, under its original name."""

    def __init__(self, restrictions: Restrictions) -> None:
        super().__init__()
        self._restrictions = restrictions

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        addresses = public_addresses(self._restrictions, url.host, url.port or _PORTS.get(url.scheme, 443))
        extensions = {**request.extensions, "sni_hostname": url.host}
        for address in addresses[:-1]:
            try:
                return super().handle_request(_pin_address(request, address, extensions))
            except httpx.ConnectError:
                continue
        return super().handle_request(_pin_address(request, addresses[-1], extensions))


def public_addresses(restrictions: Restrictions, host: str, port: int) -> list[str]:
    """Return the addresses of a host. Raises a SourceError if one of them is not allowed."""
    entries = [each for each in re.split(r"[\s,]+", restrictions.environment.get(HOSTS, "").lower()) if each]
    found = list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    networks = [network for each in entries if (network := _network(each)) is not None]
    if host.lower().rstrip(".") in entries or all(_is_allowed(address, networks) for address in found):
        return found
    raise SourceError(
        f"{host!r} is on a private network or on this machine, and a run of this deployment may not read from it.",
        hint=f"To allow it, set this where the flow runs: {restrictions.allow_line(HOSTS, host)}",
    )


def _check_before_proxy(restrictions: Restrictions, url: httpx.URL) -> None:
    try:
        public_addresses(restrictions, url.host, url.port or 443)
    except OSError:
        return  # a name that only the proxy knows


def _pin_address(request: httpx.Request, address: str, extensions: dict[str, object]) -> httpx.Request:
    url = request.url.copy_with(host=address)
    return httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)


def _is_allowed(address: str, networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    ip = _unwrap(ipaddress.ip_address(address.partition("%")[0]))
    return any(ip in network for network in networks) or (ip.is_global and not ip.is_multicast)


def _unwrap(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address that is embedded in an IPv6 address, or the address itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or ip


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None
