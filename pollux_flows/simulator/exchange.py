"""HTTP exchanges, from the first byte of a request to the last byte of its response."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

from pollux_flows.simulator.answering import make_reply, read_request, take_fault
from pollux_flows.simulator.faults import Fault
from pollux_flows.simulator.request_body import ClientGone, RequestBody
from pollux_flows.simulator.spool import Spool
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Provider, Refusal, Reply

if TYPE_CHECKING:
    from pollux_flows.simulator.log import Logged
    from pollux_flows.simulator.simulator import Simulator

#: Under this name the server puts a connection's abort function into the ASGI state (see server.py).
ABORT = "abort_connection"


@dataclass(frozen=True)
class Exchange:
    """The ASGI application for one operation of one provider."""

    simulator: Simulator
    provider: Provider
    operation: Operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        provider = self.provider
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        entry = self.simulator.log.add(provider.name, self.operation.name, scope["method"], scope["path"], headers)
        request_id = provider.request_id.format(self.simulator.next_number())
        incoming = RequestBody(receive)
        call = self._call(scope, headers)
        try:
            try:
                await self._receive(call, incoming, entry)
            finally:
                await incoming.drain()
                if self.simulator.latency_s:
                    await asyncio.sleep(self.simulator.latency_s)
            fault = await self._check(call, entry)
            if fault is not None and fault.kind in ("drop", "hang"):
                await _never_answer(fault.kind, scope, receive)
                return
            reply = make_reply(call, self.operation, fault, request_id)
        except ClientGone:
            return
        except Refusal as refusal:
            reply = Reply(provider.error(refusal, request_id), refusal.status, refusal.headers)
        finally:
            if call.stored is None:
                for spool in call.spools:
                    spool.close()
        entry.stored = call.stored
        # Logged before the response is sent: a client that has the response must find its request in the log.
        entry.record_response(reply.status)
        fault_kind = _fault_of(entry)
        if fault_kind == "drop_after":
            await _never_answer("drop", scope, receive)
            return
        reply.headers = {**self.operation.headers, **reply.headers}
        await _send(send, reply, {provider.request_id_header: request_id, **provider.headers}, fault_kind)
        if fault_kind == "cut":
            await _never_answer("drop", scope, receive)

    def _call(self, scope: Scope, headers: dict[str, str]) -> Call:
        pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
        return Call(
            simulator=self.simulator,
            provider=self.provider,
            headers=headers,
            params=scope.get("path_params", {}),
            query=dict(pairs),
            query_pairs=pairs,
            body=None,
            arrival=self.simulator.prefixes.arrive(),
            origin=f"{scope.get('scheme', 'http')}://{headers.get('host', '')}",
        )

    async def _receive(self, call: Call, incoming: RequestBody, entry: Logged) -> None:
        """Authenticate the request and read its body: as JSON, or by the operation's own `receive`."""
        if self.operation.needs_key:
            key = self.provider.authenticate(call.headers)
            call.account = hashlib.sha256(key.encode()).hexdigest()[:16]
        if self.operation.receive is not None:
            entry.body = call.body = await self.operation.receive(call, incoming)
        elif raw := await incoming.read_all():
            try:
                entry.body = call.body = orjson.loads(raw)
            except orjson.JSONDecodeError:
                raise BadRequest("We could not parse the JSON body of your request.") from None

    async def _check(self, call: Call, entry: Logged) -> Fault | None:
        """Run the provider's own checks, and return the fault that applies to the request, if any."""
        if self.operation.prepare is not None:
            await asyncio.to_thread(self.operation.prepare, call)
        read_request(call, self.operation)
        fault = take_fault(call, self.operation.name)
        if fault is not None:
            entry.fault = fault.kind
            await asyncio.sleep(fault.delay_s)
        return fault


def _fault_of(entry: Logged) -> str | None:
    """Return the fault of a request whose response has the status 200."""
    return entry.fault if entry.status == HTTPStatus.OK else None


async def _never_answer(kind: str, scope: Scope, receive: Receive) -> None:
    """Close the connection ("drop"), or wait until the client does ("hang")."""
    abort = scope.get("state", {}).get(ABORT)
    if kind == "drop":
        if abort is None:
            raise _connection_error()
        abort()
    # The server treats a return without a response as a bug and answers 500, so wait until the client disconnects.
    while (await receive())["type"] != "http.disconnect":
        pass


def _connection_error() -> Exception:
    """Return the exception of a dropped connection, for in-process clients without a socket.

    An ASGITransport raises an application's exception unchanged in its client. So the exception inherits from the
    one that each HTTP library in this process raises when a server closes the socket: to all of them, and to the
    SDKs, it is an ordinary network error.
    """
    loaded = [sys.modules[name] for name in ("httpx2", "httpx") if name in sys.modules]
    bases = tuple(library.RemoteProtocolError for library in loaded) or (ConnectionError,)
    error: Exception = type("RemoteProtocolError", bases, {})("Server disconnected without sending a response.")
    return error


async def _send(send: Send, reply: Reply, headers: dict[str, str], fault_kind: str | None) -> None:
    size, pieces = _content(reply.body)
    sent = size // 2 if fault_kind in ("malformed", "cut") else size
    headers = {
        "content-type": "application/json",
        # A malformed body has the length announced; a cut one is shorter.
        "content-length": str(sent if fault_kind == "malformed" else size),
        **headers,
        **reply.headers,
    }
    await send(
        {
            "type": "http.response.start",
            "status": reply.status,
            "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
        }
    )
    for piece in pieces:
        body, sent = piece[:sent], sent - min(sent, len(piece))
        is_last = sent == 0
        await send({"type": "http.response.body", "body": body, "more_body": not is_last or fault_kind == "cut"})
        if is_last:
            return


def _content(body: Any) -> tuple[int, Iterator[bytes]]:
    """Return the size of a body, and the pieces to send it in: at least one."""
    if isinstance(body, Spool) and body.size:
        return body.size, body.chunks()
    content = b"" if isinstance(body, Spool) else body if isinstance(body, bytes) else orjson.dumps(body)
    return len(content), iter((content,))
