"""Exit codes of the commands, for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

import httpx

from pollux_flows.errors import ConfigurationError, PlanningError, PolluxError, SourceError


class ExitCode(IntEnum):
    """The exit codes. Usage errors, Ctrl-C and closed pipes have the numbers that cyclopts and shells use for them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_SERVER = 3
    INTERRUPTED = 130
    PIPE_CLOSED = 141


MEANINGS: Final[Mapping[ExitCode, str]] = {
    ExitCode.DONE: "Done.",
    ExitCode.FAILED: "Some prompts have no answer, or a job, the provider or the stored state failed. "
    "The other answers are printed and saved.",
    ExitCode.USAGE: "Wrong usage or configuration: an argument, a file, a saved provider, a key. Nothing was sent.",
    ExitCode.NO_SERVER: "The Prefect server does not answer, or refuses the request.",
    ExitCode.INTERRUPTED: "Interrupted with Ctrl-C.",
    ExitCode.PIPE_CLOSED: "The program that reads the output has ended, as in `head`.",
}


def exit_code_of(error: PolluxError) -> ExitCode:
    """Return the exit code of a command that ends with this error."""
    if isinstance(error.__cause__, httpx.HTTPError):  # only Prefect's client speaks httpx; the SDKs speak httpx2
        return ExitCode.NO_SERVER
    if error.envelope is None and isinstance(error, ConfigurationError | SourceError | PlanningError):
        return ExitCode.USAGE
    return ExitCode.FAILED
