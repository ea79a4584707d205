"""Commands that tests run in their own process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pollux_flows.cli import app

Command = Callable[..., str]


@pytest.fixture
def caches(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `pollux-flows caches …`; return its output, or `refused:` and the message."""

    def run_command(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app(["caches", *words])
        printed = capsys.readouterr()
        return printed.out if caught.value.code in (None, 0) else f"refused: {caught.value} {printed.out}"

    return run_command
