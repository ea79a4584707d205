"""Web sources of a run with restrictions: an address that is, resolves to or redirects to a private one is refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from pollux_flows import Source, SourceError
from pollux_flows.access import Restrictions, apply_restrictions
from pollux_flows.files.content import examine
from pollux_flows.files.hosts import limited_client, public_addresses


class Site:
    def __init__(self) -> None:
        self.port = 0
        self.requests: list[tuple[str, str | None]] = []
        self.redirect_target: str | None = None


@pytest.fixture
def site() -> Iterator[Site]:
    """Start a server on loopback that returns a file, or redirects."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append((self.path, self.headers["Host"]))
            is_redirect = self.path.endswith("/moved") and site.redirect_target
            self.send_response(302 if is_redirect else 200)
            if is_redirect:
                self.send_header("Location", str(site.redirect_target))
            self.end_headers()
            self.wfile.write(b"" if is_redirect else b"All is well.")

        def do_HEAD(self) -> None:
            self.send_error(405)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def resolved_names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Replace the name server: names that are not in the dictionary are resolved by the system."""
    addresses: dict[str, list[str]] = {}
    resolve = socket.getaddrinfo

    def resolve_name(host: Any, *arguments: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        answers = addresses.get(name, [name])
        return resolve(answers.pop(0) if len(answers) > 1 else answers[0], *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_name)
    return addresses


def make_restrictions(**environment: str) -> Restrictions:
    return Restrictions(environment={f"POLLUX_ALLOW_{name.upper()}": value for name, value in environment.items()})


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "localhost",  # noqa: S104
        "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "::1", "::", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    ],
)  # fmt: skip
def test_a_private_address_is_refused_in_every_spelling(host: str) -> None:
    """The resolved address is checked, not its spelling."""
    with pytest.raises(SourceError, match="private network") as caught:
        public_addresses(make_restrictions(), host, 80)
    assert str(caught.value).endswith(f"POLLUX_ALLOW_HOSTS={host}")


@pytest.mark.parametrize("host", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_a_public_address_is_allowed(host: str) -> None:
    assert public_addresses(make_restrictions(), host, 80)


def test_a_name_with_public_and_private_addresses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 80)) for each in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(SourceError, match="private network"):
        public_addresses(make_restrictions(), "both.example", 80)


async def test_a_name_that_resolves_to_loopback_is_refused(site: Site, resolved_names: dict[str, list[str]]) -> None:
    resolved_names["innocent.example"] = ["127.0.0.1"]
    with apply_restrictions(make_restrictions()), pytest.raises(SourceError, match="private network"):
        await examine([Source.from_file(f"http://innocent.example:{site.port}/report.pdf")])
    assert site.requests == []


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.0/8", "innocent.example", "other.example, innocent.example"])
async def test_pollux_allow_hosts_allows_hosts_and_networks(
    site: Site, resolved_names: dict[str, list[str]], entry: str
) -> None:
    resolved_names["innocent.example"] = ["127.0.0.1"]
    with apply_restrictions(make_restrictions(hosts=entry)):
        await examine([Source.from_file(f"http://innocent.example:{site.port}/report.pdf")])
    assert site.requests == [("/report.pdf", f"innocent.example:{site.port}")]


async def test_the_target_of_each_redirect_is_checked(site: Site, resolved_names: dict[str, list[str]]) -> None:
    """A redirect to an allowed address is followed."""
    resolved_names |= {"allowed.example": ["127.0.0.1"], "metadata.example": ["127.0.0.1"]}
    moved = Source.from_file(f"http://allowed.example:{site.port}/moved")
    with apply_restrictions(make_restrictions(hosts="allowed.example")):
        for private in (f"http://metadata.example:{site.port}/secret", f"http://127.0.0.1:{site.port}/secret"):
            site.redirect_target = private
            with pytest.raises(SourceError, match="private network"):
                await examine([moved])
        site.redirect_target = "/report.pdf"
        await examine([moved])
    assert [path for path, _ in site.requests] == ["/moved", "/moved", "/moved", "/report.pdf"]


async def test_the_connection_uses_the_address_that_was_checked(
    site: Site, resolved_names: dict[str, list[str]]
) -> None:
    """The name is public at the check and private a moment later (DNS rebinding)."""
    resolved_names["rebinding.example"] = ["93.184.215.14", "127.0.0.1"]

    def connect(address: tuple[str, int], *_: Any, **__: Any) -> Any:
        connected_hosts.append(address[0])
        raise ConnectionRefusedError

    connected_hosts: list[str] = []
    with pytest.MonkeyPatch.context() as patch, limited_client(make_restrictions(), 1.0) as client:
        patch.setattr(socket, "create_connection", connect)
        with pytest.raises(httpx.ConnectError):
            client.get(f"http://rebinding.example:{site.port}/secret")
    assert connected_hosts == ["93.184.215.14"]


async def test_without_restrictions_loopback_can_be_read(site: Site) -> None:
    await examine([Source.from_file(f"http://127.0.0.1:{site.port}/report.pdf")])


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/secret", "http://allowed.example:{port}/moved"])
async def test_a_private_address_is_not_requested_through_a_proxy(
    site: Site, resolved_names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """The proxy would look for the address in its own network."""
    resolved_names["allowed.example"] = ["93.184.215.14"]
    site.redirect_target = "http://10.0.0.1/secret"
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{site.port}")
    with apply_restrictions(make_restrictions()), pytest.raises(SourceError, match="private network"):
        await examine([Source.from_file(address.format(port=site.port))])
    assert not [path for path, _ in site.requests if "secret" in path]


async def test_tls_uses_the_host_name_although_the_address_is_fixed(resolved_names: dict[str, list[str]]) -> None:
    resolved_names["secure.example"] = ["127.0.0.1"]
    client_hellos: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            connection, _ = server.accept()
            client_hellos.append(connection.recv(4096))
            connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        with limited_client(make_restrictions(hosts="127.0.0.1"), 5.0) as client, pytest.raises(httpx.ConnectError):
            client.get(f"https://secure.example:{server.getsockname()[1]}/")
        thread.join()
    assert b"secure.example" in client_hellos[0]
