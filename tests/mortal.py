"""Processes that work until they kill themselves, at a place in our code or at any moment.

Each is forked from one that has imported everything, and dies by a real SIGKILL, so that no handler runs and nothing is
cleaned up.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from inspect import iscoroutinefunction
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from pollux_flows.providers.anthropic import batch as anthropic
from pollux_flows.providers.batches import BatchLimits
from pollux_flows.providers.gemini import batch as gemini
from pollux_flows.providers.lines import Lines
from pollux_flows.providers.openai import batch as openai
from tests.hurry import retry_quickly

# A forked process has these modules already, and does not import them once it works.
for _name in (
    "pollux_flows.flows", "pollux_flows.providers.anthropic.generate", "pollux_flows.providers.gemini.generate",
    "pollux_flows.providers.openai.generate", "anthropic.resources", "anthropic.types", "openai.resources",
    "openai.types", "google.genai", "prefect.flow_engine", "prefect.task_engine", "prefect.concurrency.asyncio",
    "fastapi", "graphviz", "httpcore2", "anyio._backends._asyncio", "opentelemetry.metrics", "truststore",
):  # fmt: skip
    import_module(_name)

ROOT: Final = Path(__file__).parents[1]
ROWS_A_BATCH: Final = 3
_SETTLED_S: Final = 1.0
_context: Final = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Death:
    """The moment when a process dies: before or after its nth call of a function, or some time after its start."""

    function: str = ""
    """Written as `module:name`, where callers look the function up."""
    when: Literal["before", "after"] = "before"
    nth: int = 1
    after_s: float | None = None

    def __str__(self) -> str:
        if self.after_s is not None:
            return f"{self.after_s:.2f} s after its start"
        return f"{self.when} call {self.nth} of {self.function.rpartition(':')[2]}"


@dataclass
class Mortal:
    """A started process, and the file with its output."""

    process: ForkServerProcess
    log: Path

    async def runs_to_completion(self, within_s: float) -> bool:
        """Wait for the end of the process, and return False if it was killed. Fail after an error or a timeout."""
        deadline = time.monotonic() + within_s
        while self.process.exitcode is None:
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"the process hangs:\n{self.log.read_text()}")
            await asyncio.sleep(0.02)
        assert self.process.exitcode in {0, -signal.SIGKILL}, self.log.read_text()
        return self.process.exitcode == 0


@dataclass(frozen=True)
class _Environment:
    """The environment of a process: its state, its output, its Prefect server, and whether batches are small."""

    home: Path
    log: Path
    api: str | None
    split: bool


def start_process(
    work: Callable[..., Any], *arguments: Any, death: Death | None, home: Path, log: Path, split: bool = False
) -> Mortal:
    """Do this work in a new process, which writes its output to the file `log`."""
    environment = _Environment(home, log, PREFECT_API_URL.value(), split)
    process = _context.Process(target=_work_in_process, args=(work, arguments, death, environment))
    _fork(process)
    return Mortal(process, log)


@contextmanager
def retry_quickly_without_logs() -> Iterator[None]:
    """Retry requests to a busy Prefect server quickly, and send it no logs."""
    with retry_quickly(), temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield


def _fork(process: ForkServerProcess) -> None:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        # pytest too: a new process imports what its ancestor was started with.
        _context.set_forkserver_preload(["pytest", "tests.mortal", "tests.processes.life"])
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _work_in_process(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    death: Death | None,
    environment: _Environment,
) -> None:
    with environment.log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["POLLUX_HOME"] = str(environment.home)
    random.seed()  # or all processes would wait for the same times
    patch = pytest.MonkeyPatch()
    patch.setattr("pollux_flows.deferred.reconcile.SETTLED_S", _SETTLED_S)
    if environment.split:
        for module in (openai, anthropic, gemini):
            patch.setattr(module, "LIMITS", BatchLimits(ROWS_A_BATCH, module.LIMITS.size_bytes))
    if death is not None:
        _arrange_death(death)
    try:
        with temporary_settings({PREFECT_API_URL: environment.api}), retry_quickly_without_logs():
            asyncio.run(work(*arguments))
    except BaseException:  # noqa: BLE001 (every error is printed)
        traceback.print_exc()
        sys.exit(1)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def find_function(step: str) -> tuple[Any, str]:
    """Return the module or class that has a function, and the function's name; raise if it has none."""
    module, _, path = step.partition(":")
    owner: Any = import_module(module)
    *outer, name = path.split(".")
    for each in outer:
        owner = getattr(owner, each)
    getattr(owner, name)
    return owner, name


def _arrange_death(death: Death) -> None:
    if death.after_s is not None:
        timer = threading.Timer(death.after_s, _die)
        timer.daemon = True
        timer.start()
        return
    owner, name = find_function(death.function)
    function, calls = getattr(owner, name), itertools.count(1)

    async def call_async(*arguments: Any, **named: Any) -> Any:
        dies = next(calls) == death.nth
        if dies and death.when == "before":
            _die()
        result = await function(*arguments, **named)
        if dies:
            _die()
        return result

    def call(*arguments: Any, **named: Any) -> Any:
        dies = next(calls) == death.nth
        if dies and death.when == "before":
            _die()
        result = function(*arguments, **named)
        if dies:
            if isinstance(arguments[0], Lines):
                into = arguments[0]._into
                getattr(into, "_into", into).flush()  # so that some of the lines are on the disk, also below a redactor
            _die()
        return result

    setattr(owner, name, call_async if iscoroutinefunction(function) else call)
