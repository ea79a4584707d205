"""Redis servers for tests: a shared one, private ones, and a proxy that loses replies."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from redis import Redis
from redis.exceptions import RedisError

SHARED: Final = "redis://127.0.0.1:6379/15"


@contextlib.contextmanager
def connect(url: str) -> Iterator[Redis]:
    """Connect to this server, bypassing the store."""
    client = Redis.from_url(url, socket_connect_timeout=1, socket_timeout=2, retry=None)
    try:
        yield client
    finally:
        client.close()


def is_redis_running(url: str) -> bool:
    with connect(url) as redis, contextlib.suppress(RedisError):
        return bool(redis.ping())
    return False


def delete_keys(url: str, prefix: str) -> None:
    with connect(url) as redis:
        for key in redis.scan_iter(prefix + "*", count=1000):
            redis.delete(key)


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Server:
    """A redis-server that can be paused, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = find_free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = folder / "s"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("there is no redis-server on this machine")
        self.folder.mkdir(exist_ok=True)
        always = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket), "--save", ""]
        self._process = subprocess.Popen(
            [program, *always, "--dir", str(self.folder), "--logfile", "log", *options], stdout=subprocess.DEVNULL
        )
        give_up = time.monotonic() + 10
        while b"Ready to accept" not in self.read_log() or not self.is_listening():
            assert time.monotonic() < give_up, self.read_log()
            time.sleep(0.005)

    def read_log(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_bytes()
        return b""

    def is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def execute(self, *command: Any) -> Any:
        """Execute a command, bypassing the store."""
        with connect(self.url) as redis:
            return redis.execute_command(*command)  # type: ignore[no-untyped-call]

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()  # SIGKILL also ends a paused process
            self._process.wait()
            self._process = None


class BadLine:
    """A proxy that cuts the connection instead of passing on some of the replies."""

    def __init__(self, port: int) -> None:
        self.cuts = 0
        """How many replies will be lost."""
        self.passes = 0
        """How many replies pass before that."""
        self.losses = 0
        self.pause_s = 0.0
        """A pause after each few bytes of a reply."""
        self._port = port
        self._near: socket.socket | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def lose_reply(self, count: int = 1, *, after: int = 0) -> None:
        """Cut the connection instead of passing on the next `count` replies, once `after` replies have passed."""
        self.cuts, self.passes = count, after

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with contextlib.suppress(OSError):
            if self._near is not None:
                self._near.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _serve(self) -> None:
        """Serve one connection after another: a store has only one."""
        while True:
            try:
                self._near, _ = self._listening.accept()
            except OSError:
                return
            near = self._near
            with near, socket.create_connection(("127.0.0.1", self._port)) as far, contextlib.suppress(OSError):
                back = threading.Thread(target=self._back, args=(far, near))
                back.start()
                while data := near.recv(2**16):
                    far.sendall(data)
                far.shutdown(socket.SHUT_WR)
                back.join()

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(2**16):
                if self.passes:
                    self.passes -= 1
                elif self.cuts:
                    self.cuts -= 1
                    self.losses += 1
                    break
                step = 4 if self.pause_s else len(data)
                for start in range(0, len(data), step):
                    time.sleep(self.pause_s)
                    near.sendall(data[start : start + step])
            near.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serve_reply(reply: bytes) -> Iterator[str]:
    """Serve one connection that gets this reply to its first request, and yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            near, _ = listening.accept()
            with near, contextlib.suppress(OSError):
                near.recv(10_000)
                near.sendall(reply)
                near.recv(10_000)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()
