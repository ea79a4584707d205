"""Printing: the output of all commands, and their errors: one line, with an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final, NoReturn

import httpx
from cyclopts import Parameter

from pollux_flows.cli.exit_codes import ExitCode, exit_code_of
from pollux_flows.errors import PolluxError

Flag = Annotated[bool, Parameter(show_default=False)]
Json = Annotated[Flag, Parameter(help="Print JSON.")]


# The errors of Prefect's client when no server answers.
NO_SERVER: Final = (httpx.TransportError, RuntimeError)


class Refusal(SystemExit):
    """The exit of a failed command, whose message has been printed."""

    def __init__(self, words: str, code: ExitCode) -> None:
        super().__init__(words)
        self.code = int(code)


def refuse(words: str, code: ExitCode = ExitCode.USAGE) -> NoReturn:
    """Print a message on standard error, and end the command."""
    sys.stdout.flush()  # so that earlier output comes first if both are redirected to one file
    sys.stderr.write(f"{words}\n")
    raise Refusal(words, code) from None


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """End the command with a message instead of a traceback, for errors that a user can act on."""
    try:
        yield
    except PolluxError as error:
        refuse(str(error), exit_code_of(error))
    except httpx.HTTPStatusError as error:
        from pollux_flows.jobs.connection import describe_refusal  # not above: it loads Prefect, which takes a second

        refuse(describe_refusal(error), ExitCode.NO_SERVER)
    except NO_SERVER as error:
        if not is_silence(error):
            raise
        from pollux_flows.jobs.connection import describe_silence

        refuse(describe_silence(error), ExitCode.NO_SERVER)


def is_silence(error: BaseException) -> bool:
    """Return whether the error means that no Prefect server answers."""
    return isinstance(error, NO_SERVER) and (not isinstance(error, RuntimeError) or "reach API" in str(error))


def say(words: str) -> None:
    """Print a line on standard output, for people and for programs."""
    sys.stdout.write(f"{words}\n")
