from __future__ import annotations

from pathlib import Path

import pytest

from tests.loopback import config, sim, world

__all__ = ["config", "sim", "world"]


@pytest.fixture(autouse=True)
def _fresh_state_and_short_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own state, and search for lost batches only briefly."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))
    # The simulator lists a batch at once: further searches would find no more.
    monkeypatch.setattr("pollux_flows.deferred.submit._SEARCH_PAUSES_S", (0.0, 0.01))
