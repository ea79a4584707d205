"""A program of the benchmarks in a process of its own, so that its work does not count as that which is measured."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Child:
    """A running program, which answers each line of its input with a line."""

    greeting: str
    """Its first line."""
    process: subprocess.Popen[str]

    def ask(self, line: str = "") -> str:
        """Send a line, and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline()


@contextmanager
def start_child(module: str, argument: float) -> Iterator[Child]:
    """Start a module with an argument, and end it with the block."""
    command = [sys.executable, "-m", module, str(argument)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Child(process.stdout.readline().strip(), process)
        finally:
            process.kill()
