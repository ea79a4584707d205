"""Tests that a key that every flow has used is neither stored nor printed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pollux_flows.simulator import Fault, Simulator, serve

KEY = "sk-sentinel-7c1e55a0b2"
ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(420)
def test_a_key_is_neither_stored_nor_printed(tmp_path: Path) -> None:
    """Prefect's database (where it is encrypted), results, logs, POLLUX_HOME, errors, reprs and output are searched."""
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_PROFILES_PATH": str(tmp_path / "prefect" / "profiles.toml"),
        "POLLUX_HOME": str(tmp_path / "pollux"),
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("PREFECT_API_URL", None)
    environment.pop("PREFECT_API_DATABASE_CONNECTION_URL", None)
    simulator = Simulator()
    # The provider echoes the key that it was called with.
    simulator.fail(Fault(status=400, message=f"bad key {KEY}"), times=None, contains="Echo it.")
    with serve(simulator) as origin:
        done = subprocess.run(
            [sys.executable, "-m", "tests.processes.sentinel_run", KEY, origin],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "every flow ran" in done.stdout
    assert "[REDACTED]" in done.stdout  # the echo arrived, and the key was redacted
    (tmp_path / "output").write_text(done.stdout + done.stderr)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name.startswith("prefect.db") for path in files)
    assert [str(path) for path in files if KEY.encode() in path.read_bytes()] == []


def test_the_search_finds_a_key_in_a_database(tmp_path: Path) -> None:
    """Otherwise the test above could never fail."""
    with sqlite3.connect(tmp_path / "prefect.db") as database:
        database.execute("create table logs (message text)")
        database.execute("insert into logs values (?)", (f"sent with {KEY}",))
    assert KEY.encode() in (tmp_path / "prefect.db").read_bytes()
