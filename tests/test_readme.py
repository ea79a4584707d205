"""The README: its table is the code's, and its examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pollux_flows.capabilities import MATRIX
from pollux_flows.simulator import Simulator, serve

README = Path(__file__).parents[1] / "README.md"
SIGNS = {"yes": "✅", "no": "❌", "model": "⚠️"}


def test_the_capability_table_is_the_code() -> None:
    """Every row of the matrix stands in the README, in order, and nothing else does."""
    rows = [f"| {row.title} | " + " | ".join(SIGNS[cell] for cell in row.support) + " |" for row in MATRIX.values()]
    written = [line for line in README.read_text().splitlines() if line.startswith("| ") and line[-3] in "✅❌️"]
    assert written == rows


@pytest.mark.timeout(120)
def test_the_examples_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other, in one namespace, against the simulator, on a Prefect server."""
    from prefect.testing.utilities import prefect_test_harness

    simulator = Simulator()
    with serve(simulator) as origin, prefect_test_harness(server_startup_timeout=120):
        monkeypatch.setenv("GEMINI_API_KEY", "k")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", simulator.base_url("gemini", origin=origin))
        namespace: dict[str, object] = {"__name__": "readme"}
        for example in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
            exec(compile(example, str(README), "exec"), namespace)  # noqa: S102 (the README is ours)
    printed = capsys.readouterr().out
    assert "Simulated answer to: Which plant made more?" in printed
    assert "Simulated answer from the results of: get_weather" in printed
