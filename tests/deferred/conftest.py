from __future__ import annotations

from pathlib import Path

import pytest

from tests.loopback import config, sim, world

__all__ = ["config", "sim", "world"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State of the test's own."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))
