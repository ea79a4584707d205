"""Web sources in a run with limits: none that is, resolves to or redirects to a private address."""

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
        self.asked: list[tuple[str, str | None]] = []
        self.leads_to: str | None = None


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on loopback that gives a file, or leads elsewhere."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append((self.path, self.headers["Host"]))
            moved = self.path.endswith("/moved") and site.leads_to
            self.send_response(302 if moved else 200)
            if moved:
                self.send_header("Location", str(site.leads_to))
            self.end_headers()
            self.wfile.write(b"" if moved else b"All is well.")

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
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A name server of our own: what it knows not, the system resolves."""
    known: dict[str, list[str]] = {}
    resolve = socket.getaddrinfo

    def answer(host: Any, *arguments: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        answers = known.get(name, [name])
        return resolve(answers.pop(0) if len(answers) > 1 else answers[0], *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return known


def limits(**environment: str) -> Restrictions:
    return Restrictions(environment={f"POLLUX_ALLOW_{name.upper()}": value for name, value in environment.items()})


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "localhost",  # noqa: S104
        "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "::1", "::", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    ],
)  # fmt: skip
def test_no_spelling_of_a_private_address_is_public(host: str) -> None:
    """Whatever the system makes of it is looked at, not how it is spelled."""
    with pytest.raises(SourceError, match="private network") as refused:
        public_addresses(limits(), host, 80)
    assert str(refused.value).endswith(f"POLLUX_ALLOW_HOSTS={host}")


@pytest.mark.parametrize("host", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_a_public_address_is_public(host: str) -> None:
    assert public_addresses(limits(), host, 80)


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 80)) for each in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(SourceError, match="private network"):
        public_addresses(limits(), "both.example", 80)


async def test_a_name_that_leads_to_loopback_is_refused(site: Site, names: dict[str, list[str]]) -> None:
    names["innocent.example"] = ["127.0.0.1"]
    with apply_restrictions(limits()), pytest.raises(SourceError, match="private network"):
        await examine([Source.from_file(f"http://innocent.example:{site.port}/report.pdf")])
    assert site.asked == []


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.0/8", "innocent.example", "other.example, innocent.example"])
async def test_a_setting_allows_hosts_and_networks(site: Site, names: dict[str, list[str]], entry: str) -> None:
    names["innocent.example"] = ["127.0.0.1"]
    with apply_restrictions(limits(hosts=entry)):
        await examine([Source.from_file(f"http://innocent.example:{site.port}/report.pdf")])
    assert site.asked == [("/report.pdf", f"innocent.example:{site.port}")]


async def test_each_redirect_is_checked(site: Site, names: dict[str, list[str]]) -> None:
    """One that stays where it may go is followed, one that leaves it is not."""
    names |= {"allowed.example": ["127.0.0.1"], "metadata.example": ["127.0.0.1"]}
    moved = Source.from_file(f"http://allowed.example:{site.port}/moved")
    with apply_restrictions(limits(hosts="allowed.example")):
        for private in (f"http://metadata.example:{site.port}/secret", f"http://127.0.0.1:{site.port}/secret"):
            site.leads_to = private
            with pytest.raises(SourceError, match="private network"):
                await examine([moved])
        site.leads_to = "/report.pdf"
        await examine([moved])
    assert [path for path, _ in site.asked] == ["/moved", "/moved", "/moved", "/report.pdf"]


async def test_a_name_is_resolved_once(site: Site, names: dict[str, list[str]]) -> None:
    """It is public when it is checked and private a moment later: the connection goes where was looked."""
    names["rebinding.example"] = ["93.184.215.14", "127.0.0.1"]

    def connect(address: tuple[str, int], *_: Any, **__: Any) -> Any:
        connected.append(address[0])
        raise ConnectionRefusedError

    connected: list[str] = []
    with pytest.MonkeyPatch.context() as patch, limited_client(limits(), 1.0) as client:
        patch.setattr(socket, "create_connection", connect)
        with pytest.raises(httpx.ConnectError):
            client.get(f"http://rebinding.example:{site.port}/secret")
    assert connected == ["93.184.215.14"]


async def test_without_limits_loopback_is_read(site: Site) -> None:
    """As ever, in a person's own program."""
    await examine([Source.from_file(f"http://127.0.0.1:{site.port}/report.pdf")])


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/secret", "http://allowed.example:{port}/moved"])
async def test_a_proxy_is_asked_for_no_private_address(
    site: Site, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """It would look for it in its own network."""
    names["allowed.example"] = ["93.184.215.14"]
    site.leads_to = "http://10.0.0.1/secret"
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{site.port}")
    with apply_restrictions(limits()), pytest.raises(SourceError, match="private network"):
        await examine([Source.from_file(address.format(port=site.port))])
    assert not [path for path, _ in site.asked if "secret" in path]


async def test_a_certificate_is_for_the_name_that_was_asked_for(names: dict[str, list[str]]) -> None:
    """Although the connection goes to an address."""
    names["secure.example"] = ["127.0.0.1"]
    hello: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            connection, _ = server.accept()
            hello.append(connection.recv(4096))
            connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        with limited_client(limits(hosts="127.0.0.1"), 5.0) as client, pytest.raises(httpx.ConnectError):
            client.get(f"https://secure.example:{server.getsockname()[1]}/")
        thread.join()
    assert b"secure.example" in hello[0]
