"""The simulator in a process of its own. A number on a line of its input puts its clock forward by so many seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.child import Child, start_child
from pollux_flows.simulator import Simulator, serve


@dataclass
class Simulated:
    """A running simulator, and the process that it is in."""

    origin: str
    child: Child

    def base_url(self, provider: str) -> str:
        return Simulator.base_url(provider, origin=self.origin)

    def forward(self, seconds: float) -> None:
        """Put its clock forward."""
        self.child.ask(str(seconds))


@contextmanager
def simulated(batch_s: float) -> Iterator[Simulated]:
    """Start a new simulator, where a batch takes so long."""
    with start_child("benchmarks.simulated", batch_s) as child:
        yield Simulated(child.greeting, child)


def main(batch_s: float) -> None:
    ahead = 0.0
    # Its log of requests would keep all prompts.
    simulator = Simulator(clock=lambda: time.time() + ahead, batch_s=batch_s, keep_requests=10)
    with serve(simulator) as origin:
        print(origin, flush=True)
        for line in sys.stdin:
            ahead += float(line)
            print(ahead, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
