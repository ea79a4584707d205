"""The simulator on a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pollux_flows.simulator.exchange import ABORT

if TYPE_CHECKING:
    import uvicorn

    from pollux_flows.simulator.simulator import Simulator

HOST = "127.0.0.1"


@contextmanager
def serve(simulator: Simulator, port: int = 0) -> Iterator[str]:
    """Serve `simulator` on loopback from a thread; yield its origin, e.g. `http://127.0.0.1:4210`."""
    with _listen(port) as listener:
        server, ready = _server(simulator)
        # Daemon: an interrupted test run must not hang on its simulator.
        thread = threading.Thread(target=_run, args=(server, listener, ready), name="simulator", daemon=True)
        thread.start()
        ready.wait()
        if not server.started:
            raise RuntimeError("the simulator did not start; its log says why")
        try:
            yield _origin(listener)
        finally:
            server.should_exit = True
            thread.join()


def run(simulator: Simulator, port: int = 4210, *, announce: Callable[[str], None] | None = None) -> None:
    """Serve `simulator` on loopback until the process receives a signal to stop.

    `announce` is called with its origin, such as http://127.0.0.1:4210, once connections to it are accepted.
    """
    with _listen(port) as listener:
        if announce is not None:
            announce(_origin(listener))
        server, ready = _server(simulator)
        _run(server, listener, ready)


def _listen(port: int) -> socket.socket:
    # The protocol is passed because asyncio disables Nagle's algorithm only with it: otherwise, an answer in two
    # writes waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        # Listening before the server runs means that no connection to the known port is ever refused.
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def _origin(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}"


def _run(server: uvicorn.Server, listener: socket.socket, ready: threading.Event) -> None:
    try:
        server.run(sockets=[listener])
    finally:
        ready.set()


def _server(simulator: Simulator) -> tuple[uvicorn.Server, threading.Event]:
    # Imported here because in-process use needs no server.
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    ready = threading.Event()

    class AbortableProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """Puts its connection's abort function into the ASGI state of every request on it."""

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.app_state: dict[str, Any] = {**self.app_state, ABORT: transport.abort}

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready.set()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # A request that hangs on purpose would block a graceful shutdown.
            for connection in list(self.server_state.connections):
                transport: Any = connection.transport
                transport.abort()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        simulator.app,
        http=AbortableProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        # Longer than the idle timeout of any client, so that the client closes the connection:
        # else a request may be sent on a connection that is just being closed.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )
    return Server(config), ready
