"""Redis: stores records in a Redis that machines share, for `POLLUX_STATE_URL`.

Each store has one thread with one connection, which belongs to no event loop. Commands that arrive while the thread
waits for Redis are sent in its next pipeline, in their order.

If a connection breaks after a command was sent and before its reply has arrived, the command is sent again on a new
one. So that no write is done twice, the script that writes also stores the id of the write for a minute: a write with
a stored id is only reported as done.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import chain, count, islice
from typing import Any, Final, Literal
from uuid import uuid4

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.client import Pipeline
from redis.connection import AbstractConnection, Connection, ConnectionPool, parse_url
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.batching import Batcher
from pollux_flows.state.store import (
    STATE_URL,
    Json,
    Row,
    StateLostError,
    Store,
    decode_record,
    encode_record,
    try_decode_record,
)

Command = Callable[[Pipeline], object]
"""A function that adds one command to a pipeline."""

_CONNECT_S: Final = 3.0
_SILENCE_S: Final = 5.0  # until the next part of a reply
_PATIENCE_S: Final = 30.0  # for a pipeline and its retries: well under the minute for which Redis remembers writes
_RETRIES: Final = 4  # they take 1.3 s, long enough for a restart of Redis, or a failover
_BACKOFF: Final = ExponentialBackoff(cap=0.6, base=0.05)
_BATCH: Final = 250  # commands in a pipeline

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

_UNREACHABLE: Final = f"Check that it runs at the address in {STATE_URL}, then run again: saved answers are reused."
# The message and the hint for an error, by a pattern for its class or its text.
_MESSAGES: Final = {
    "OOM": (
        "has no memory left: the record was not saved.",
        "Raise its maxmemory, or remove records that are not needed: pollux-flows state prune.",
    ),
    "READONLY": (
        "is a read-only replica: the record was not saved.",
        f"Set {STATE_URL} to the address of the primary.",
    ),
    "MISCONF": ("cannot save to its disk: the record was not saved.", "See its log, and free some disk space."),
    "AuthenticationError": (
        "requires another user name or password.",
        f"{STATE_URL} contains them: redis://user:password@host:6379/0, with / ? # @ % as %2F %3F %23 %40 %25.",
    ),
    "NOPERM": (
        "does not allow this user the commands of a store.",
        "Allow them: ~pollux:* +get +set +del +exists +evalsha +script +scan +info +select",
    ),
    "MOVED|CLUSTERDOWN|CROSSSLOT": ("is part of a cluster, which is not supported.", "Use a Redis without a cluster."),
    "BusyLoadingError": (
        "is still loading its data.",
        "Run again when it is ready: the answers saved there are reused.",
    ),
    "TimeoutError": ("does not answer in time. It is not known whether the last write was done.", _UNREACHABLE),
    "ConnectionError": (
        "cannot be reached ({error}). It is not known whether the last write was done.",
        _UNREACHABLE,
    ),
    "": (
        "returned an error ({error}).",
        f"Check that {STATE_URL} is the address of a Redis, and see its log.",
    ),
}


class _TimedPipeline(Pipeline):
    """A pipeline with a deadline for all its replies: the socket's timeout only limits each part of a reply."""

    deadline = math.inf

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        if time.monotonic() > self.deadline:
            raise RedisTimeoutError("Too slow")
        return super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]


class RedisStore(Store):
    """The Store in a Redis. It connects at its first operation.

    `<prefix>record:<key>` is a record, `<prefix>asked:<id>` a write that was done in the last minute, and
    `<prefix>store` the id of the store. If that id changes, the records that this process relies on are lost.
    """

    def __init__(self, url: str, prefix: str = "pollux:") -> None:
        self._options = _parse_options(url)
        self._prefix = prefix.encode()
        self._id: bytes | None = None
        self._has_warned = False
        probe = self._options["connection_class"](**_without_class(self._options))  # nothing is connected yet
        self._password = probe.password
        self.where = getattr(probe, "path", None) or f"{probe.host}:{probe.port}/{probe.db}"  # no other part of the URL
        self._batcher: Batcher[list[Command]] = Batcher(
            self._execute_batch, limit=_BATCH, size_of=len, after_fork=self._start
        )
        self._start()

    def __repr__(self) -> str:
        return f"RedisStore({self.where!r})"

    async def get_many(self, keys: Iterable[str]) -> dict[str, Json]:
        found: dict[str, Json] = {}
        remaining = iter(keys)
        while part := list(islice(remaining, _BATCH)):
            found |= {key: decode_record(key, data, self.where) for key, data in await self._load(part)}
        return found

    async def put_many(self, records: Mapping[str, Json], ttl_s: float | None = None) -> None:
        rows = [(key, encode_record(key, record)) for key, record in records.items()]
        await self._run([self._write(key, "any", b"", data, ttl_s) for key, data in rows])

    async def add(self, key: str, record: Json, ttl_s: float | None = None) -> bool:
        return await self.swap(key, None, record, ttl_s)

    async def swap(self, key: str, old: Json | None, new: Json | None, ttl_s: float | None = None) -> bool:
        data = b"" if new is None else encode_record(key, new)
        if old is None:
            (reply,) = await self._run([self._write(key, "absent", b"", data, ttl_s)])
            return bool(reply == 1)
        expected = stored = encode_record(key, old)
        while True:
            (reply,) = await self._run([self._write(key, "same", stored, data, ttl_s)])
            if reply == 1 or reply is None:
                return bool(reply)
            # The script compares bytes. A damaged record raises its error here, too. An equal record with other bytes,
            # such as one that was edited by hand, is compared once more with these bytes.
            if encode_record(key, decode_record(key, reply, self.where)) != expected:
                return False
            stored = reply

    async def swap_many(self, changes: Mapping[str, tuple[Json | None, Json]], ttl_s: float | None = None) -> set[str]:
        commands = []
        for key, (old, new) in changes.items():
            expected = b"" if old is None else encode_record(key, old)
            when: Literal["absent", "same"] = "absent" if old is None else "same"
            commands.append(self._write(key, when, expected, encode_record(key, new), ttl_s))
        replies = dict(zip(changes, await self._run(commands), strict=True))
        unequal = [key for key, reply in replies.items() if isinstance(reply, bytes)]  # in bytes: `swap` compares more
        swapped = {key for key, reply in replies.items() if reply == 1}
        return swapped | {key for key in unequal if await self.swap(key, *changes[key], ttl_s)}

    async def delete(self, *keys: str) -> None:
        await self._run([self._write(key, "any", b"", b"", None) for key in keys])

    async def list_keys(self, prefix: str) -> AsyncIterator[str]:
        for key in await self._find_keys(prefix):
            yield key

    async def scan(self, prefix: str) -> AsyncIterator[tuple[str, Json]]:
        keys = await self._find_keys(prefix)
        for start in range(0, len(keys), _BATCH):
            for key, record in (await self.get_many(keys[start : start + _BATCH])).items():
                yield key, record

    async def list_rows(self) -> AsyncIterator[Row]:
        keys = await self._find_keys("")
        for start in range(0, len(keys), _BATCH):
            for key, data in await self._load(keys[start : start + _BATCH]):
                yield Row(key, try_decode_record(data), len(key.encode()) + len(data), _hash(data))

    async def delete_rows(self, rows: Sequence[Row]) -> list[Row]:
        # A row without a version has another type, or is empty: no store wrote it, so no store has changed it since.
        commands = [
            self._write(row.key, "listed" if row.version else "any", str(row.version).encode(), b"", None)
            for row in rows
        ]
        return [row for row, reply in zip(rows, await self._run(commands), strict=True) if reply == 1]

    async def size(self) -> None:
        return None

    def close(self) -> None:
        """Close the connection once all operations are done. The next operation opens another."""
        self._batcher.close(self._client.close)
        self._start()

    # --- Commands -------------------------------------------------------------------------------------------

    def _key(self, kind: str, name: str) -> bytes:
        return self._prefix + f"{kind}:{name}".encode()

    def _write(
        self, key: str, when: Literal["any", "absent", "same", "listed"], old: bytes, new: bytes, ttl_s: float | None
    ) -> Command:
        """Return the command that sets the record to `new`, or deletes it if `new` is empty."""
        ttl = "" if ttl_s is None else str(int(min(max(ttl_s * 1000, 1), 10**15)))
        keys = [self._key("record", key), self._key("asked", f"{self._writer}-{next(self._writes)}")]
        return lambda pipeline: self._script(keys, [when, old, new, ttl], client=pipeline)

    async def _load(self, keys: Sequence[str]) -> list[tuple[str, bytes]]:
        # Not with MGET, which treats a key of another type as absent.
        names = [self._key("record", key) for key in keys]
        replies = await self._run([lambda pipeline, name=name: pipeline.get(name) for name in names])  # type: ignore[misc]
        return [(key, data) for key, data in zip(keys, replies, strict=True) if data is not None]

    async def _find_keys(self, prefix: str) -> list[str]:
        """Return all keys with this prefix, sorted, as Redis returns them in no order."""
        while True:
            connections, keys = self._connections, await self._scan_keys(prefix)
            if connections == self._connections:  # on a new connection, perhaps to a replica, the cursor was not valid
                return keys

    async def _scan_keys(self, prefix: str) -> list[str]:
        start = self._key("record", "")
        pattern = re.sub(rb"[\\*?\[\]]", rb"\\\g<0>", start + prefix.encode()) + b"*"
        cursor, names = 0, set[bytes]()
        while True:
            command: Command = lambda pipeline, at=cursor: pipeline.scan(at, pattern, count=1000)  # type: ignore[misc]  # noqa: E731
            ((cursor, found),) = await self._run([command])
            names.update(found)
            if cursor == 0:
                # A name that is not text was not written by a store, and cannot be read by one.
                return [name[len(start) :].decode(errors="replace") for name in sorted(names)]

    async def _run(self, commands: list[Command]) -> list[Any]:
        parts = [commands[start : start + _BATCH] for start in range(0, len(commands), _BATCH)]
        return [self._check_reply(reply) for part in parts for reply in await self._batcher.run(part)]

    def _check_reply(self, reply: Any) -> Any:
        if not isinstance(reply, ResponseError):
            return reply
        if "WRONGTYPE" in str(reply):
            return b""  # a value of another type, not a record
        raise self._translate(reply)

    # --- The connection, on the batcher's thread --------------------------------------------------------------

    def _start(self) -> None:
        """Create a client for this process, as connections cannot be shared with a fork. It does not connect yet."""
        self._writer, self._writes = uuid4().hex, count()
        self._connections, self._is_greeted = 0, False
        # The retries are for whole pipelines, in `_execute`. Retries of connections would multiply them.
        retry = Retry(NoBackoff(), 0)
        options = {**self._options, "retry": retry, "redis_connect_func": self._on_connect}
        self._client = Redis.from_pool(ConnectionPool(max_connections=1, **options))
        self._script = self._client.register_script(_WRITE)

    def _on_connect(self, connection: AbstractConnection) -> None:
        connection.on_connect()  # type: ignore[no-untyped-call]
        self._connections += 1
        self._is_greeted = False

    def _execute_batch(self, batch: list[list[Command]]) -> list[Any]:
        replies = iter(self._execute(list(chain.from_iterable(batch))))
        return [list(islice(replies, len(commands))) for commands in batch]

    def _execute(self, commands: list[Command]) -> list[Any]:
        deadline = time.monotonic() + _PATIENCE_S
        retry = Retry(_BACKOFF, _RETRIES, supported_errors=(RedisConnectionError,))
        try:
            replies = retry.call_with_retry(
                lambda: self._attempt(commands, deadline),
                lambda _: self._disconnect(),
                is_retryable=lambda error: not isinstance(error, AuthenticationError) and time.monotonic() < deadline,
            )
        except ConfigurationError:
            self._disconnect()
            raise
        except (RedisError, OSError, ValueError) as error:
            self._disconnect()
            failure = self._translate(error)
        else:
            if any("READONLY" in _describe(reply) for reply in replies):
                self._disconnect()  # after a failover, another machine may have the address
            return replies
        # Raised outside the handler, as the client's error may quote a password and must not become the context.
        raise failure

    def _attempt(self, commands: list[Command], deadline: float) -> list[Any]:
        if not self._is_greeted:
            self._greet(deadline)
        *replies, store_id = self._pipeline(
            [*commands, lambda pipeline: pipeline.get(self._prefix + b"store")], deadline
        )
        self._check_id(store_id)
        return replies

    def _greet(self, deadline: float) -> None:
        key = self._prefix + b"store"
        set_id, store_id, memory = self._pipeline(
            [
                lambda pipeline: pipeline.set(key, uuid4().hex, nx=True),
                lambda pipeline: pipeline.get(key),
                lambda pipeline: pipeline.info("memory"),
            ],
            deadline,
        )
        # A process that cannot write must not call a provider. A store without memory is still needed, for pruning.
        if isinstance(set_id, ResponseError) and ("READONLY" in _describe(set_id) or not isinstance(store_id, bytes)):
            raise self._translate(set_id)
        self._check_id(store_id)
        self._is_greeted = True
        policy = memory.get("maxmemory_policy") if isinstance(memory, dict) else None
        if not self._has_warned and policy != "noeviction":
            self._has_warned = True
            warnings.warn(
                f"The Redis at {self.where} may remove answers that were paid for when its memory is full"
                f" (maxmemory-policy: {policy or 'unknown'}). Set it to noeviction.",
                RuntimeWarning,
                stacklevel=1,
            )

    def _pipeline(self, commands: Sequence[Command], deadline: float) -> list[Any]:
        client = self._client
        pipeline = _TimedPipeline(client.connection_pool, client.response_callbacks, transaction=False, shard_hint=None)
        with pipeline:
            pipeline.deadline = deadline
            for command in commands:
                command(pipeline)
            return pipeline.execute(raise_on_error=False)

    def _disconnect(self) -> None:
        self._client.connection_pool.disconnect()
        self._is_greeted = False

    def _check_id(self, store_id: Any) -> None:
        if isinstance(store_id, ResponseError):
            raise self._translate(store_id)
        self._id = self._id or store_id
        if store_id != self._id:
            raise StateLostError(
                f"The Redis at {self.where} has lost the records that were saved there.",
                hint="Restore its data. If that is not possible, restart the running processes, which start without"
                " saved records. Let Redis save its data (appendonly yes), and do not flush it.",
            )

    def _translate(self, error: Exception) -> ConfigurationError:
        """Return an error with a readable message: it quotes Redis, but not the commands that were sent."""
        description = _describe(error)
        message, hint = next(
            words for pattern, words in _MESSAGES.items() if re.search(rf"\b(?:{pattern})\b", description)
        )
        text = str(error).partition(", with args")[0].rstrip(".")
        if self._password:
            text = text.replace(self._password, "***")
        return ConfigurationError(f"The Redis at {self.where} {message.format(error=text)}", hint=hint)


def _hash(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest() if data else ""


def _describe(reply: Any) -> str:
    return f"{type(reply).__name__} {getattr(reply, 'status_code', '')} {reply}" if isinstance(reply, Exception) else ""


def _parse_options(url: str) -> dict[str, Any]:
    """Return the options of a connection; the URL is not shown in errors, as it may contain a password."""
    try:
        # If the password contains / ? or #, a part of it would be parsed as a host or a port, and be shown.
        if re.match(r"\w+://[^@/?#]*[/?#].*@", url):
            raise ValueError  # noqa: TRY301
        options = {"socket_connect_timeout": _CONNECT_S, "socket_timeout": _SILENCE_S, **parse_url(url)}  # type: ignore[no-untyped-call]
        options = {"connection_class": Connection, **options, "protocol": 2, "decode_responses": False}
        options["connection_class"](**_without_class(options))  # raises for wrong options; does not connect
    except (TypeError, ValueError, RedisError):
        raise ConfigurationError(
            f"{STATE_URL} is not the address of a Redis.",
            hint="Use redis://user:password@host:6379/0, rediss:// for TLS, or unix:///path, with options of redis-py"
            " after a ?. In the user and the password, write / ? # @ % as %2F %3F %23 %40 %25.",
        ) from None
    return options


def _without_class(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "connection_class"}
