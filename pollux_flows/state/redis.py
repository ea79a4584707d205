"""Redis: the store that machines share, for `POLLUX_STATE_URL`.

A thread per store has the one connection, which so belongs to no event loop. What has gathered while it was busy goes
out in its next pipeline, in the order in which it was asked for.

A connection may break when a command was sent and its answer has not come. Then it is asked again, on a new one. To
make that harmless, Redis remembers the name of each write for a minute, from the same script that does it: a write
that was done and is asked for again is not done twice, and its answer is that it was done.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import math
import os
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from typing import Any, Final, Literal
from uuid import uuid4

from redis.connection import Connection, parse_url
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as Dropped
from redis.exceptions import TimeoutError as Silent

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.store import STATE_URL, Json, LostError, Row, decode_record, encode_record, try_decode_record

Command = tuple[str | bytes, ...]

_CONNECT_S: Final = 3.0
_SILENCE_S: Final = 5.0  # until the next part of an answer
_PATIENCE_S: Final = 30.0  # for all of a pipeline, and for trying it again: well under the minute of what was asked
_PAUSES: Final = (0.0, 0.1, 0.3, 0.6)  # long enough for a Redis that is restarted, or a balancer that thinks again
_TOGETHER: Final = 250  # commands in a pipeline

_WRITE: Final = """
local record, asked = KEYS[1], KEYS[2]
local when, old, new, ttl = unpack(ARGV)
if redis.call('EXISTS', asked) == 1 then return 1 end
if when == 'absent' and redis.call('EXISTS', record) == 1 then return 0 end
if when == 'same' then
  local now = redis.call('GET', record)
  if now ~= old then return now end
end
if when == 'listed' then
  local now = redis.call('GET', record)
  if not now or redis.sha1hex(now) ~= old then return 0 end
end
if new == '' then redis.call('DEL', record)
elseif ttl == '' then redis.call('SET', record, new)
else redis.call('SET', record, new, 'PX', ttl) end
redis.call('SET', asked, 1, 'PX', 60000)
return 1
"""

_RUNS: Final = f"See that it runs and that {STATE_URL} says where, then run again: it goes on from what is there."
# By what a Redis, or its client, says no: what that means, and what to do.
_WORDS: Final = {
    "OOM": (
        "has no memory left: this was not recorded.",
        "Give it more maxmemory, or remove what is not needed: pollux-flows state prune.",
    ),
    "READONLY": ("is a read-only replica: this was not recorded.", f"Set {STATE_URL} to the address of the primary."),
    "MISCONF": ("cannot save to its disk: this was not recorded.", "See its log, and make room."),
    "AuthenticationError": (
        "wants another user name or password.",
        f"{STATE_URL} says them: redis://user:password@host:6379/0, with / ? # @ % as %2F %3F %23 %40 %25.",
    ),
    "NOPERM": (
        "does not allow this user what a store needs.",
        "Allow it: ~pollux:* +get +set +del +exists +eval +scan +info +select",
    ),
    "MOVED|CLUSTERDOWN|CROSSSLOT": ("is part of a cluster, which a store cannot span.", "Use one that is not."),
    "BusyLoadingError": (
        "is still loading its data.",
        "Run again when it has: it goes on from what is recorded there.",
    ),
    "TimeoutError": ("does not answer in time. If the last write was done is not known.", _RUNS),
    "ConnectionError": ("cannot be reached ({said}). If the last write was done is not known.", _RUNS),
    "": (
        "did not do what it was asked to ({said}).",
        f"See that {STATE_URL} is that of a Redis, and what its log says.",
    ),
}


@dataclass
class _Work:
    """Commands that wait for the store's thread."""

    commands: list[Command]
    done: Future[list[Any]] = field(default_factory=Future)


class RedisStore:
    """The Store in a Redis, which is connected to at the first operation.

    `<prefix>record:<name>` is a record, `<prefix>asked:<name>` a write that was done in the last minute, and
    `<prefix>store` the name of the whole: whoever finds another there knows that what it relied on is gone.
    """

    def __init__(self, url: str, prefix: str = "pollux:") -> None:
        self._connection_of = _connection_of(url)
        self._prefix = prefix.encode()
        self._name: bytes | None = None
        self._warned = False
        self._lock = threading.Lock()
        self._start()
        at = self._connection
        self.where = getattr(at, "path", None) or f"{at.host}:{at.port}/{at.db}"  # and nothing else of the URL

    def __repr__(self) -> str:
        return f"RedisStore({self.where!r})"

    async def get(self, key: str) -> Json | None:
        return (await self.get_many([key])).get(key)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Json]:
        found: dict[str, Json] = {}
        wanted = iter(keys)
        while some := list(islice(wanted, _TOGETHER)):
            found |= {key: decode_record(key, data, self.where) for key, data in await self._data(some)}
        return found

    async def put(self, key: str, record: Json, ttl_s: float | None = None) -> None:
        await self.put_many({key: record}, ttl_s)

    async def put_many(self, records: Mapping[str, Json], ttl_s: float | None = None) -> None:
        rows = [(key, encode_record(key, record)) for key, record in records.items()]
        await self._write([self._writing(key, "any", b"", data, ttl_s) for key, data in rows])

    async def add(self, key: str, record: Json, ttl_s: float | None = None) -> bool:
        return await self.swap(key, None, record, ttl_s)

    async def swap(self, key: str, old: Json | None, new: Json | None, ttl_s: float | None = None) -> bool:
        data = b"" if new is None else encode_record(key, new)
        if old is None:
            (done,) = await self._write([self._writing(key, "absent", b"", data, ttl_s)])
            return bool(done == 1)
        expected = spelled = encode_record(key, old)
        while True:
            (now,) = await self._write([self._writing(key, "same", spelled, data, ttl_s)])
            if now == 1 or now is None:
                return bool(now)
            # Only what was read can be compared: a damaged record is an error here, too. And one that somebody put
            # there by hand, spelled in another way, is still what it says.
            if encode_record(key, decode_record(key, now, self.where)) != expected:
                return False
            spelled = now

    async def swap_many(self, changes: Mapping[str, tuple[Json | None, Json]], ttl_s: float | None = None) -> set[str]:
        commands = []
        for key, (old, new) in changes.items():
            expected = b"" if old is None else encode_record(key, old)
            commands.append(
                self._writing(key, "absent" if old is None else "same", expected, encode_record(key, new), ttl_s)
            )
        replies = dict(zip(changes, await self._write(commands), strict=True))
        # One that is spelled in another way, put there by hand perhaps, is still what it says: `swap` compares that.
        odd = [key for key, reply in replies.items() if isinstance(reply, bytes)]
        swapped = {key for key, reply in replies.items() if reply == 1}
        return swapped | {key for key in odd if await self.swap(key, *changes[key], ttl_s)}

    async def delete(self, *keys: str) -> None:
        await self._write([self._writing(key, "any", b"", b"", None) for key in keys])

    async def list_keys(self, prefix: str) -> AsyncIterator[str]:
        for name in await self._names(prefix):
            yield name

    async def scan(self, prefix: str) -> AsyncIterator[tuple[str, Json]]:
        names = await self._names(prefix)
        for start in range(0, len(names), _TOGETHER):
            for key, record in (await self.get_many(names[start : start + _TOGETHER])).items():
                yield key, record

    async def list_rows(self) -> AsyncIterator[Row]:
        # Redis knows no order, so each is asked when it was written; and then read again, as all at once are too much.
        names = await self._names("")
        ages: list[tuple[float, str]] = []
        for start in range(0, len(names), _TOGETHER):
            found = await self._data(names[start : start + _TOGETHER])
            ages += [(_at(try_decode_record(data)), key) for key, data in found]
        ages.sort()
        for start in range(0, len(ages), _TOGETHER):
            for key, data in await self._data([key for _, key in ages[start : start + _TOGETHER]]):
                yield Row(key, try_decode_record(data), len(key.encode()) + len(data), _stamp(data))

    async def delete_rows(self, rows: Sequence[Row]) -> list[Row]:
        # What has no stamp is of another type, or empty: no store wrote that, so none has written it again.
        commands = [
            self._writing(row.key, "listed" if row.version else "any", str(row.version).encode(), b"", None)
            for row in rows
        ]
        return [row for row, done in zip(rows, await self._write(commands), strict=True) if done == 1]

    async def size(self) -> None:
        return None

    def close(self) -> None:
        """Let go of the connection, once nobody waits for anything. The next operation opens another."""
        self._executor.shutdown(wait=True)
        self._connection.disconnect()
        self._start()

    # --- Commands -------------------------------------------------------------------------------------------

    def _key(self, kind: str, name: str) -> bytes:
        return self._prefix + f"{kind}:{name}".encode()

    async def _data(self, keys: Sequence[str]) -> list[tuple[str, bytes]]:
        # Not MGET: to that, a key of another type is absent.
        replies = await self._ask([("GET", self._key("record", key)) for key in keys])
        pairs = zip(keys, replies, strict=True)
        return [(key, data) for key, each in pairs if (data := self._well(each)) is not None]

    def _writing(
        self, key: str, when: Literal["any", "absent", "same", "listed"], old: bytes, new: bytes, ttl_s: float | None
    ) -> Command:
        """Make the record `new`, empty for none."""
        ttl = "" if ttl_s is None else str(int(min(max(ttl_s * 1000, 1), 10**15)))
        asked = self._key("asked", f"{self._me}-{next(self._count)}")
        return ("EVAL", _WRITE, "2", self._key("record", key), asked, when, old, new, ttl)

    async def _write(self, commands: list[Command]) -> list[Any]:
        parts = [commands[start : start + _TOGETHER] for start in range(0, len(commands), _TOGETHER)]
        return [self._well(reply) for part in parts for reply in await self._ask(part)]

    async def _names(self, prefix: str) -> list[str]:
        """All at once: Redis knows no order."""
        while True:
            connection, names = self._connected, await self._scanned(prefix)
            if connection == self._connected:  # to a Redis that was restarted meanwhile, the cursor meant nothing
                return names

    async def _scanned(self, prefix: str) -> list[str]:
        start = self._key("record", "")
        pattern = re.sub(rb"[\\*?\[\]]", rb"\\\g<0>", start + prefix.encode()) + b"*"
        cursor, names = b"0", set[bytes]()
        while True:
            (reply,) = await self._ask([("SCAN", cursor, "MATCH", pattern, "COUNT", "1000")])
            cursor, found = self._well(reply)
            names.update(found)
            if cursor == b"0":
                # A name that is no text is nobody's record: nobody will find it.
                return [name[len(start) :].decode(errors="replace") for name in sorted(names)]

    def _well(self, reply: Any) -> Any:
        if not isinstance(reply, ResponseError):
            return reply
        if "WRONGTYPE" in str(reply):
            return b""  # something is there, and it is no record
        raise self._no(reply)

    # --- The thread -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._process = os.getpid()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pollux-state")
        self._waiting: deque[_Work] = deque()
        self._busy = False
        self._me, self._count, self._connected = uuid4().hex, count(), 0
        self._connection = self._connection_of()

    async def _ask(self, commands: list[Command]) -> list[Any]:
        work = _Work(commands)
        work.done.set_running_or_notify_cancel()  # from here on it will be done, whoever is still waiting
        with self._lock:
            if self._process != os.getpid():  # neither thread nor connection are for a process that was forked
                self._start()
            self._waiting.append(work)
            if not self._busy:
                self._executor.submit(self._work)
                self._busy = True
        return await asyncio.wrap_future(work.done)

    def _work(self) -> None:
        while True:
            batch: list[_Work] = []
            with self._lock:
                size = 0
                while self._waiting and size < _TOGETHER:
                    batch.append(self._waiting.popleft())
                    size += len(batch[-1].commands)
                self._busy = bool(batch)
            if not batch:
                return
            try:
                replies = iter(self._together(list(chain.from_iterable(work.commands for work in batch))))
            except Exception as error:  # noqa: BLE001 (whoever waits is told; the thread goes on)
                with self._lock:  # those who came meanwhile do not each wait for the same thing again
                    batch += self._waiting
                    self._waiting.clear()
                for work in batch:
                    work.done.set_exception(copy.copy(error))
            else:
                for work in batch:
                    work.done.set_result(list(islice(replies, len(work.commands))))

    def _together(self, commands: list[Command]) -> list[Any]:
        give_up = time.monotonic() + _PATIENCE_S
        for pause in (*_PAUSES, None):
            try:
                if not self._connection.is_connected:
                    self._greet(give_up)
                *replies, name = self._exchange([*commands, ("GET", self._prefix + b"store")], give_up)
                self._check(name)
            except ConfigurationError:
                self._connection.disconnect()
                raise
            except (RedisError, OSError, ValueError) as error:
                self._connection.disconnect()
                if not isinstance(error, Dropped) or isinstance(error, AuthenticationError) or pause is None:
                    raise self._no(error) from None
                time.sleep(pause)
            else:
                if any("READONLY" in _said(each) for each in replies):
                    self._connection.disconnect()  # after a failover, another machine may have the address
                return replies
        raise AssertionError

    def _greet(self, give_up: float) -> None:
        key = self._prefix + b"store"
        made, name, info = self._exchange([("SET", key, uuid4().hex, "NX"), ("GET", key), ("INFO", "memory")], give_up)
        # Whoever can only read has no business asking anybody for anything. Without memory it is of use: to make room.
        if isinstance(made, ResponseError) and ("READONLY" in _said(made) or not isinstance(name, bytes)):
            raise self._no(made)
        self._check(name)
        self._connected += 1
        policy = re.search(rb"maxmemory_policy:([\w-]+)", info if isinstance(info, bytes) else b"")
        if not self._warned and (policy is None or policy[1] != b"noeviction"):
            self._warned = True
            warnings.warn(
                f"The Redis at {self.where} may remove answers that were paid for when its memory is full"
                f" (maxmemory-policy: {policy[1].decode() if policy else 'not told'}). Set that to noeviction.",
                RuntimeWarning,
                stacklevel=1,
            )

    def _exchange(self, commands: list[Command], give_up: float) -> list[Any]:
        self._connection.send_packed_command(self._connection.pack_commands(commands))
        replies: list[Any] = []
        while len(replies) < len(commands):
            if time.monotonic() > give_up:
                self._connection.disconnect()
                raise Silent("Too slow")
            try:
                replies.append(self._connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return replies

    def _check(self, name: Any) -> None:
        if isinstance(name, ResponseError):
            raise self._no(name)
        self._name = self._name or name
        if name != self._name:
            raise LostError(
                f"The Redis at {self.where} has lost what was recorded there.",
                hint="Give it back its data. If they are gone, start again what is running: that begins afresh."
                " Have it save them (appendonly yes), and let nobody flush it.",
            )

    def _no(self, error: Exception) -> ConfigurationError:
        """What went wrong, in words: what the Redis said, but nothing that it was told."""
        said = _said(error)
        what, hint = next(words for codes, words in _WORDS.items() if re.search(rf"\b(?:{codes})\b", said))
        shown = str(error).partition(", with args")[0].rstrip(".")
        if self._connection.password:
            shown = shown.replace(self._connection.password, "***")
        return ConfigurationError(f"The Redis at {self.where} {what.format(said=shown)}", hint=hint)


def _at(record: Json | None) -> float:
    at = (record or {}).get("at")
    return at if isinstance(at, float) and math.isfinite(at) else math.inf


def _stamp(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest() if data else ""


def _said(reply: Any) -> str:
    return f"{type(reply).__name__} {getattr(reply, 'status_code', '')} {reply}" if isinstance(reply, Exception) else ""


def _connection_of(url: str) -> Callable[[], Any]:
    """How a connection is made, or a ConfigurationError that does not show the URL: there may be a password in it."""
    try:
        # What stands before a stray / ? or # would be taken for a host, or a port, and shown.
        if re.match(r"\w+://[^@/?#]*[/?#].*@", url):
            raise ValueError  # noqa: TRY301
        said = {"socket_connect_timeout": _CONNECT_S, "socket_timeout": _SILENCE_S, **parse_url(url)}  # type: ignore[no-untyped-call]
        said |= {"protocol": 2, "decode_responses": False}
        make = partial(said.pop("connection_class", Connection), **said)
        make()  # nothing is connected yet
    except (TypeError, ValueError, RedisError):
        raise ConfigurationError(
            f"{STATE_URL} is not the address of a Redis.",
            hint="It is redis://user:password@host:6379/0, rediss:// for TLS, or unix:///path, and behind a ? what else"
            " redis-py is to know. In the user and the password, / ? # @ % are %2F %3F %23 %40 %25.",
        ) from None
    return make
