"""Test of the README's examples: they run as they stand."""

from __future__ import annotations

import re

import pytest

from pollux_flows.simulator import Simulator
from tests.test_readme import README


@pytest.mark.timeout(120)
def test_the_examples_run(
    world: tuple[Simulator, str],
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One after the other, in one namespace, against the simulator, on a Prefect server."""
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", simulator.base_url("gemini", origin=world[1]))
    namespace: dict[str, object] = {"__name__": "readme"}
    for example in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(example, str(README), "exec"), namespace)  # noqa: S102 (the README is ours)
    printed = capsys.readouterr().out
    assert "Simulated answer to: Which plant made more?" in printed
    assert "Simulated answer from the results of: get_weather" in printed
