"""One HTTP exchange, from the first byte of the request to the last of the answer."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

from pollux_flows.simulator.directives import BadDirectiveError
from pollux_flows.simulator.faults import ANSWER_KINDS, Fault
from pollux_flows.simulator.incoming import ClientGone, Incoming
from pollux_flows.simulator.schema_check import malformed
from pollux_flows.simulator.wire import Call, Operation, Provider, Refused, Reply

if TYPE_CHECKING:
    from pollux_flows.simulator.log import Logged
    from pollux_flows.simulator.world import Simulator

#: Under this name the server puts a connection's abort function into the ASGI state (see server.py).
ABORT = "abort_connection"


@dataclass(frozen=True)
class Exchange:
    """The ASGI application for one operation of one provider."""

    world: Simulator
    provider: Provider
    operation: Operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        provider = self.provider
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        entry = self.world.log.add(provider.name, self.operation.name, scope["method"], scope["path"], headers)
        request_id = provider.request_id(self.world.number())
        incoming = Incoming(receive)
        call = self._call(scope, headers)
        try:
            try:
                await self._take_in(call, incoming, entry)
            finally:
                await incoming.drain()
                if self.world.latency_s:
                    await asyncio.sleep(self.world.latency_s)
            self._understand(call)
            fault = self._fault_for(call)
            if fault is not None:
                entry.fault = fault.kind
                await asyncio.sleep(fault.delay_s)
            if fault is not None and fault.kind in ("drop", "hang"):
                await _never_answer(fault.kind, scope, receive)
                return
            reply = self._reply(call, fault, request_id)
        except ClientGone:
            return
        except Refused as refused:
            reply = Reply(provider.error(refused, request_id), refused.status, refused.headers)
        finally:
            if call.upload is not None and call.stored is None:
                call.upload.spool.close()
        entry.stored = call.stored
        content = reply.body if isinstance(reply.body, bytes) else orjson.dumps(reply.body)
        # Logged before the bytes leave: whoever holds an answer must find its request in the log.
        entry.answered(reply.status)
        if _fault_of(entry) == "drop_after":
            await _never_answer("drop", scope, receive)
            return
        if _fault_of(entry) == "malformed":
            content = content[: len(content) // 2]
        reply.headers = {**self.operation.headers, **reply.headers}
        await _send(send, reply, provider.headers(request_id), content)

    def _call(self, scope: Scope, headers: dict[str, str]) -> Call:
        pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
        return Call(
            world=self.world,
            headers=headers,
            params=scope.get("path_params", {}),
            query=dict(pairs),
            query_pairs=pairs,
            body=None,
            origin=f"{scope.get('scheme', 'http')}://{headers.get('host', '')}",
        )

    async def _take_in(self, call: Call, incoming: Incoming, entry: Logged) -> None:
        """Key and body: JSON is read whole, anything longer by its operation."""
        if self.operation.needs_key:
            key = self.provider.authenticate(call.headers)
            call.account = hashlib.sha256(key.encode()).hexdigest()[:16]
        if self.operation.receive is not None:
            entry.body = call.body = await self.operation.receive(call, incoming)
        elif raw := await incoming.whole():
            try:
                entry.body = call.body = orjson.loads(raw)
            except orjson.JSONDecodeError:
                raise Refused(400, "We could not parse the JSON body of your request.") from None

    def _understand(self, call: Call) -> None:
        """The provider's own checks of a generate request."""
        if self.operation.read is None:
            return
        call.asked = ask = self.operation.read(call)
        if ask.input_tokens > ask.context_window:
            raise self.provider.overflow(ask)
        for schema in (ask.schema, *ask.tools.values()):
            if isinstance(schema, dict) and (problem := malformed(schema)):
                raise Refused(400, problem)

    def _fault_for(self, call: Call) -> Fault | None:
        """The fault that waits for this request; one that was refused has not met its fault yet."""
        fault = self.world.faults.take(self.provider.name, self.operation.name, call.body)
        if fault is not None or call.asked is None:
            return fault
        try:
            return self.world.directive_counts.take(call.asked.prompt)
        except BadDirectiveError as problem:
            raise Refused(400, str(problem)) from None

    def _reply(self, call: Call, fault: Fault | None, request_id: str) -> Reply:
        if fault is None:
            return self.operation.answer(call)
        if fault.kind == "status" and fault.status is not None:
            raise Refused(fault.status, fault.message, kind=fault.error_type, headers=fault.error_headers)
        if fault.kind == "context_overflow":
            raise self.provider.overflow(call.asked)
        if fault.kind == "error_200":
            return Reply(self.provider.error_in_200(fault, call, request_id), headers=fault.error_headers)
        if fault.kind in ANSWER_KINDS:
            call.fault = fault
        reply = self.operation.answer(call)
        reply.headers |= fault.headers
        return reply


def _fault_of(entry: Logged) -> str | None:
    """The fault of a request that its provider answered well."""
    return entry.fault if entry.status == HTTPStatus.OK else None


async def _never_answer(kind: str, scope: Scope, receive: Receive) -> None:
    """Close the connection ("drop"), or wait until the client does ("hang")."""
    abort = scope.get("state", {}).get(ABORT)
    if kind == "drop":
        if abort is None:
            raise _connection_error()
        abort()
    # The server takes a silent return for a bug and answers 500, so wait until the client is gone.
    while (await receive())["type"] != "http.disconnect":
        pass


def _connection_error() -> Exception:
    """What a dropped connection looks like where there is no socket.

    An ASGITransport hands an application's exception to its client as it is. So the exception is made
    of the one that each HTTP library in this process raises when a server closes the socket: to all
    of them, and to the SDKs on top, it is a network error like any other.
    """
    loaded = [sys.modules[name] for name in ("httpx2", "httpx") if name in sys.modules]
    bases = tuple(library.RemoteProtocolError for library in loaded) or (ConnectionError,)
    made: Exception = type("RemoteProtocolError", bases, {})("Server disconnected without sending a response.")
    return made


async def _send(send: Send, reply: Reply, headers: dict[str, str], content: bytes) -> None:
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
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
    await send({"type": "http.response.body", "body": content})
