"""A provider that always answers the same after a while, and costs the machine next to nothing.

It runs in a process of its own, and writes how many requests have come for each line of its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.child import Child, start_child

MODEL = "gpt-4.1-mini"
ANSWER = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": MODEL,
    "output": [
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "An answer of some words. " * 10, "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 10,
        "output_tokens": 50,
        "total_tokens": 60,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    },
}
_BODY = json.dumps(ANSWER).encode()
_REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


@dataclass
class Server:
    """A running server, and the process that it is in."""

    address: str
    child: Child

    @property
    def requests(self) -> int:
        """The number of requests that have come."""
        return int(self.child.ask())


@contextmanager
def serve(latency_s: float) -> Iterator[Server]:
    """Start one that answers after so long."""
    with start_child("benchmarks.server", latency_s) as child:
        yield Server(child.greeting, child)


async def main(latency_s: float) -> None:
    requests = 0

    def tell() -> None:
        sys.stdin.readline()
        print(requests, flush=True)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
                requests += 1
                await asyncio.sleep(latency_s)
                writer.write(_REPLY)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    asyncio.get_running_loop().add_reader(sys.stdin, tell)
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
