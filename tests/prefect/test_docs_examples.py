"""Test of the examples in the documents: they run unchanged, on a Prefect server, with the simulator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pollux_flows.blocks import PolluxProvider
from pollux_flows.simulator import Simulator
from tests.prefect.jobs import no_jobs_are_left
from tests.test_docs import PAGES, README

__all__ = ["no_jobs_are_left"]

OUTPUTS = {
    "README.md": "Simulated answer to: What fell short?",
    "ask.md": "Simulated answer to: Which plant made more?",
    "tables.md": "Valve,It holds.,Simulated answer to: Summarize Valve: It holds.",
    "conversations.md": "Simulated answer from the results of: get_weather",
}


def find_examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.usefixtures("no_jobs_are_left", "no_caches_are_left", "simulator")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("page", [page for page in PAGES if find_examples(page)], ids=lambda page: page.name)
def test_the_examples_of_a_page_run(
    page: Path,
    world: tuple[Simulator, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The examples run one after the other, in one namespace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as a script in this folder has it
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", world[0].base_url("gemini", origin=world[1]))
    if page != README:
        PolluxProvider(provider="gemini", model="gemini-2.5-flash-lite").save("gemini", overwrite=True)
    namespace: dict[str, object] = {"__name__": page.stem}
    for example in find_examples(page):
        exec(compile(example, str(page), "exec"), namespace)  # noqa: S102 (the pages are ours)
    assert OUTPUTS.get(page.name, "") in capsys.readouterr().out
