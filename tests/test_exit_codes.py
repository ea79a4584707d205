"""The exit codes of the command: their documentation, and the code of each error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pollux_flows import APIError, ConfigurationError, PolluxError, ResultEnvelope, SourceError
from pollux_flows.cli.exit_codes import MEANINGS, ExitCode, exit_code_of

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def test_the_documentation_lists_all_exit_codes() -> None:
    listed = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert listed == [(str(int(code)), MEANINGS[code]) for code in ExitCode]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("wrong"), ExitCode.USAGE),
        (SourceError("missing"), ExitCode.USAGE),
        (APIError("down"), ExitCode.FAILED),
    ],
)
def test_each_error_has_its_exit_code(error: PolluxError, code: ExitCode) -> None:
    assert exit_code_of(error) is code


def test_a_refusal_after_some_answers_exits_as_a_failed_run() -> None:
    """Some prompts were answered before one was refused, so the usage was not wrong."""
    error = ConfigurationError("wrong")
    error.envelope = ResultEnvelope(status="partial", answers=["yes", ""], confidence=0.5)
    assert exit_code_of(error) is ExitCode.FAILED


def test_a_command_whose_output_is_no_longer_read_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from pollux_flows.cli import main; main()", "state"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.PIPE_CLOSED, "")
