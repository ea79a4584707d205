"""Words: what the commands have in common, when they print and when they refuse."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import httpx
from cyclopts import Parameter

from pollux_flows.errors import PolluxError
from pollux_flows.jobs.connection import describe_silence

Json = Annotated[bool, Parameter(help="For machines.", negative="")]


# What Prefect's client raises where no server answers.
NO_SERVER: Final = (httpx.TransportError, RuntimeError)


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """A person gets the message, not the way through the code."""
    try:
        yield
    except PolluxError as error:
        raise SystemExit(str(error)) from None
    except NO_SERVER as error:
        if isinstance(error, RuntimeError) and "reach API" not in str(error):
            raise
        raise SystemExit(describe_silence(error)) from None


def say(words: str) -> None:
    """A line, for people and for whatever reads on."""
    sys.stdout.write(f"{words}\n")
