"""The command `pollux-flows simulator`."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from pollux_flows import Config, run
from pollux_flows.config import PROVIDERS


def test_the_command_prints_working_base_urls() -> None:
    """The command prints a base URL for each provider once the simulator listens."""
    command = [sys.executable, "-c", "from pollux_flows.cli import app; app()", "simulator", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline().split() for _ in range(9)]
            urls = {line[0]: line[1] for line in lines if len(line) == 2}
            config = Config(provider="local", model="any", base_url=urls["local"])
            answer = asyncio.run(run("Who?", config=config))
        finally:
            process.terminate()
    assert set(urls) == set(PROVIDERS)
    assert answer.status == "ok"
