"""The simulator in a process of its own. A number on a line of its input puts its clock forward by so many seconds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pollux_flows.simulator import Simulator, serve


@dataclass
class Simulated:
    """It, for whoever started it."""

    origin: str
    process: subprocess.Popen[str]

    def base_url(self, provider: str) -> str:
        return Simulator.base_url(provider, origin=self.origin)

    def forward(self, seconds: float) -> None:
        """Put its clock forward."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(seconds, file=self.process.stdin, flush=True)
        self.process.stdout.readline()


@contextmanager
def simulated(batch_s: float) -> Iterator[Simulated]:
    """A new simulator, where a batch takes so long."""
    command = [sys.executable, "-m", "benchmarks.simulated", str(batch_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Simulated(process.stdout.readline().strip(), process)
        finally:
            process.kill()


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
