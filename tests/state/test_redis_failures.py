"""A Redis that is unreachable, slow, full, read-only or has lost its data, and one that refuses the user."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import pytest
from redis.backoff import ConstantBackoff

from pollux_flows.errors import ConfigurationError
from pollux_flows.state import redis
from pollux_flows.state.redis import RedisStore
from tests.state.places import list_keys
from tests.state.servers import BadLine, Server, find_free_port, serve_reply

PASSWORD = "s3cret/of?the#house@home%"
QUOTED = "s3cret%2Fof%3Fthe%23house%40home%25"
NOT_ABSENT = r"cannot be reached \(.*POLLUX_STATE_URL.*saved answers are reused"


SAVING = ("--appendonly", "yes", "--appendfsync", "always")  # by default, Redis replies shortly before it has saved
pytestmark = pytest.mark.usefixtures("short_timeouts")


@pytest.fixture
def store(server: Server) -> RedisStore:
    return RedisStore(server.url)


# --- Unreachable servers --------------------------------------------------------------------------------------------


async def test_an_unreachable_redis_is_an_error_for_all_callers() -> None:
    """The error is raised within seconds."""
    store = RedisStore(f"redis://:{QUOTED}@127.0.0.1:{find_free_port()}/0")
    began = time.monotonic()
    errors = await asyncio.gather(
        store.get("a"), store.add("a", {}), store.swap("a", {}, None), *(store.put("a", {}) for _ in range(1000)),
        return_exceptions=True,
    )  # fmt: skip
    assert time.monotonic() - began < 3
    assert {type(each) for each in errors} == {ConfigurationError}
    with pytest.raises(ConfigurationError, match=NOT_ABSENT):
        await store.get("a")
    with pytest.raises(ConfigurationError, match=NOT_ABSENT):
        await list_keys(store)
    assert "s3cret" not in f"{errors} {store!r} {store.where}"


async def test_a_redis_that_is_killed_is_an_error_until_it_is_back(server: Server, store: RedisStore) -> None:
    server.kill()
    server.start(*SAVING)
    await store.put("a", {"answer": 1})
    server.kill()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=NOT_ABSENT):
            await store.get("a")
    server.start(*SAVING)
    assert await store.get("a") == {"answer": 1}


async def test_a_redis_that_restarts_is_waited_for(
    server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "_RETRIES", 200)
    monkeypatch.setattr(redis, "_BACKOFF", ConstantBackoff(0.02))
    server.kill()
    server.start(*SAVING)
    await store.put("a", {"count": 0})
    server.kill()
    asked = asyncio.ensure_future(store.swap("a", {"count": 0}, {"count": 1}))
    await asyncio.sleep(0.1)
    assert not asked.done()
    await asyncio.to_thread(server.start, *SAVING)
    assert await asked
    assert await store.get("a") == {"count": 1}


async def test_a_redis_that_hangs_is_an_error_for_all_callers(server: Server, store: RedisStore) -> None:
    """The errors say that the outcome of the last write is unknown."""
    await store.put("a", {"answer": 1})
    server.pause()
    began = time.monotonic()
    asked = [store.put("a", {"answer": 2}), store.get("a"), *(store.add(f"b/{index}", {}) for index in range(2000))]
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert {str(each)[-60:] for each in errors} == {str(errors[0])[-60:]}
    assert "does not answer in time" in str(errors[0])
    assert "not known whether" in str(errors[0])
    with pytest.raises(ConfigurationError, match="does not answer in time"):  # on a new connection, too
        await store.get("a")
    assert time.monotonic() - began < 3
    server.resume()
    assert await store.get("a") in ({"answer": 1}, {"answer": 2})


async def test_a_slow_redis_is_waited_for_within_a_limit(
    server: Server, line: BadLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(line.url)
    await store.put("a", {})
    line.pause_s = 0.02
    asked = [f"a{index}" for index in range(100)]  # 500 bytes, of which 200 come in a second
    monkeypatch.setattr(redis, "_PATIENCE_S", 0.5)
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="does not answer in time"):
        await store.get_many(asked)
    assert time.monotonic() - began < 2
    line.pause_s = 0.001
    monkeypatch.setattr(redis, "_PATIENCE_S", 30)
    assert await store.get_many(["a", *asked]) == {"a": {}}
    assert await RedisStore(server.url).get("a") == {}


async def test_a_redis_that_lost_its_data_is_an_error(server: Server, store: RedisStore) -> None:
    """Lost answers do not count as absent."""
    await store.put("paid", {"answer": 1})
    fresh = RedisStore(server.url)
    server.kill()
    server.start()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"has lost the records.*restart"):
            await store.get("paid")
    with pytest.raises(ConfigurationError, match="has lost"):
        await store.add("paid", {"answer": 2})
    assert await fresh.get("paid") is None  # a new store begins with the empty Redis
    assert await fresh.add("paid", {"answer": 3})
    server.execute("FLUSHALL")
    with pytest.raises(ConfigurationError, match="has lost"):
        await fresh.get("paid")


async def test_a_read_only_redis_is_an_error(server: Server, store: RedisStore) -> None:
    """The store works again after a failover."""
    await store.put("a", {"answer": 1})
    server.execute("CONFIG", "SET", "repl-diskless-sync", "no")
    server.execute("REPLICAOF", "127.0.0.1", str(find_free_port()))
    assert await store.get("a") == {"answer": 1}
    for act in (store.put("a", {}), store.add("b", {}), store.swap("a", {"answer": 1}, {}), store.delete("a")):
        with pytest.raises(ConfigurationError, match=r"read-only replica.*not saved.*primary"):
            await act
    with pytest.raises(ConfigurationError, match="read-only replica"):
        await RedisStore(server.url).get("a")
    server.execute("REPLICAOF", "NO", "ONE")
    assert await store.swap("a", {"answer": 1}, {"answer": 2})
    assert store._connections > 1  # after a failover, another machine may have the address


async def test_a_full_redis_is_an_error_only_for_writes(server: Server, store: RedisStore) -> None:
    """Records can still be read and deleted."""
    await store.put("first", {})
    server.execute("CONFIG", "SET", "maxmemory", server.execute("INFO", "memory")["used_memory"] + 500_000)
    message = None
    for saved in range(1000):
        try:
            await store.add(f"much/{saved}", {"answer": "x" * 10_000})
        except ConfigurationError as error:
            message = str(error)
            break
    assert re.search(r"no memory left.*not saved.*maxmemory", str(message))
    assert saved > 5
    server.execute("CONFIG", "SET", "maxmemory", "1")
    for each in (store, RedisStore(server.url)):
        assert len([key async for key, _ in each.scan("much/")]) == saved
        with pytest.raises(ConfigurationError, match="no memory left"):
            await each.swap("first", {}, {"a": 1})
    await RedisStore(server.url).delete(*(f"much/{index}" for index in range(saved)))
    server.execute("CONFIG", "SET", "maxmemory", "0")
    assert await store.swap("first", {}, {"a": 1})
    server.execute("FLUSHALL")
    server.execute("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(ConfigurationError, match="no memory left"):  # a new store cannot even begin
        await RedisStore(server.url).get("a")


async def test_an_eviction_policy_is_warned_about_once(server: Server) -> None:
    with warnings.catch_warnings(record=True) as quiet:
        warnings.simplefilter("always")
        await RedisStore(server.url).put("a", {})
    assert [str(each.message) for each in quiet if each.category is RuntimeWarning] == []
    server.execute("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    store = RedisStore(server.url)
    with pytest.warns(RuntimeWarning, match=r"paid for.*maxmemory-policy: allkeys-lru.*noeviction"):
        await store.put("a", {})
    store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await store.put("a", {})


# --- Passwords ------------------------------------------------------------------------------------------------------


async def test_a_password_is_used_and_not_shown(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server.kill()
    server.start("--requirepass", PASSWORD)
    store = RedisStore(server.url.replace("//", f"//:{QUOTED}@"))
    await store.put("a", {})
    for wrong in ("", "//:s3cret-too@", "//s3cret:s3cret@"):
        with pytest.raises(
            ConfigurationError, match=r"requires another user name or password.*redis://user:"
        ) as caught:
            await RedisStore(server.url.replace("//", wrong or "//")).get("a")
        assert "s3cret" not in str(caught.value)
        assert caught.value.__context__ is None
    server.kill()
    with pytest.raises(ConfigurationError) as caught:
        await store.get("a")
    assert "s3cret" not in f"{caught.value} {caught.value!r} {store!r} {vars(caught.value)} {caplog.text}"


async def test_missing_permissions_are_named(server: Server) -> None:
    server.execute("ACL", "SETUSER", "reader", "on", ">s3cret", "~pollux:*", "+get", "+select")
    with pytest.raises(ConfigurationError, match=r"does not allow this user.*\+evalsha") as caught:
        await RedisStore(server.url.replace("//", "//reader:s3cret@")).get("a")
    assert "s3cret" not in str(caught.value)
    # The permissions in the hint are sufficient.
    allowed = str(caught.value).partition("Allow them: ")[2].split()
    server.execute("ACL", "SETUSER", "writer", "on", ">s3cret", *allowed)
    store = RedisStore(server.url.replace("//", "//writer:s3cret@"))
    assert await store.add("a", {}, ttl_s=60)
    assert await store.swap("a", {}, {"a": 1})
    assert await list_keys(store) == ["a"]
    await store.delete("a")


async def test_an_unknown_eviction_policy_is_warned_about(server: Server) -> None:
    server.execute("ACL", "SETUSER", "quiet", "on", "nopass", "~*", "+@all", "-info")
    with pytest.warns(RuntimeWarning, match="maxmemory-policy: unknown"):
        await RedisStore(server.url.replace("//", "//quiet:any@")).put("a", {})


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            r"returned an error.*HTTP/1\.1 400.*address of a Redis",
        ),
        (b"-ERR unknown command `AUTH`, with args beginning with: `s3cret` \r\n", r"unknown command `AUTH`\)"),
        (b"-ERR what is s3cret?\r\n", r"what is \*\*\*"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "is still loading its data"),
        (b"-ERR max number of clients reached\r\n", "cannot be reached .*max number of clients reached"),
        (b"$5\r\nhe", "does not answer in time"),
        (b"$what\r\n", "returned an error"),
    ],
)
async def test_errors_show_the_text_of_redis_without_the_password(
    reply: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "_RETRIES", 0)
    with serve_reply(reply) as place, pytest.raises(ConfigurationError, match=words) as caught:
        await RedisStore(f"redis://:s3cret@{place}").get("a")
    assert "s3cret" not in str(caught.value)


async def test_tls_certificates_are_checked(server: Server, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on this machine to make a certificate with")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)  # noqa: ASYNC221
    server.kill()
    port = find_free_port()
    files = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate]
    server.start("--tls-port", str(port), "--tls-auth-clients", "no", *files)
    url = f"rediss://127.0.0.1:{port}"
    store = RedisStore(f"{url}?ssl_ca_certs={certificate}")
    await store.put("a", {})
    assert await store.get("a") == {}
    with pytest.raises(ConfigurationError, match=r"cannot be reached .*CERTIFICATE_VERIFY_FAILED"):
        await RedisStore(url).get("a")


async def test_tls_to_a_server_without_it_is_an_error(server: Server) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be reached|answer in time"):
        await RedisStore(server.url.replace("redis://", "rediss://")).get("a")
