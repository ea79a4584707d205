"""The demo: a fan-out and a broadcast, offline, on a Prefect server that is gone afterwards."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pollux_flows.result import ResultEnvelope

_REPORTS = {
    "north": "The north plant made 1,200 pumps in March, 4% fewer than planned. Two presses stood still for a week.",
    "south": "The south plant made 1,650 pumps in March, a record. The new shift model starts in May.",
}
_PROMPTS = ["How many pumps were made?", "What should the board know?", "Give three keywords."]


def run_demo() -> None:
    """Run both flows and print what they returned."""
    with tempfile.TemporaryDirectory(prefix="pollux-demo-") as home:
        # Before Prefect is imported: the demo must not touch the user's server, profiles or results, and its own
        # server is not behind a proxy.
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            del os.environ[name]
        os.environ |= {
            "NO_PROXY": "127.0.0.1,localhost",
            "PREFECT_HOME": home,
            "PREFECT_PROFILES_PATH": f"{home}/profiles.toml",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "INFO",
            # Stopped in the middle of writing its own records, which are gone then, it would print a traceback.
            "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        }
        from prefect.testing.utilities import prefect_test_harness

        from pollux_flows.blocks import PolluxProvider
        from pollux_flows.flows import broadcast, fan_out
        from pollux_flows.source import Source

        console = Console()
        console.print("Starting a Prefect server for the demo …")
        with prefect_test_harness(server_startup_timeout=120):
            provider = PolluxProvider(provider="gemini", model="gemini-2.5-flash-lite", use_mock=True)
            sources = [Source.from_text(text, identifier=plant) for plant, text in _REPORTS.items()]
            together = fan_out(_PROMPTS, provider, sources=sources)
            each = broadcast(_PROMPTS[:2], sources, provider)
    console.print(_fan_out_table(together))
    console.print(_broadcast_table(list(_REPORTS), each))
    console.print(
        f"{together.metrics['n_calls']} + {sum(e.metrics['n_calls'] for e in each)} calls, answered by the simulator "
        "at no cost. With a key in the environment, leave use_mock out and the same flows ask the real provider."
    )


def _fan_out_table(envelope: ResultEnvelope) -> Table:
    table = Table(title=f"fan-out · {envelope.status} · {envelope.usage['total_tokens']} tokens", title_justify="left")
    table.add_column("Prompt")
    table.add_column("Answer")
    for prompt, answer in zip(_PROMPTS, envelope.answers, strict=True):
        table.add_row(prompt, answer)
    return table


def _broadcast_table(names: list[str], envelopes: list[ResultEnvelope]) -> Table:
    table = Table(title=f"broadcast · {' · '.join(e.status for e in envelopes)}", title_justify="left")
    table.add_column("Source")
    for prompt in _PROMPTS[:2]:
        table.add_column(prompt)
    for name, envelope in zip(names, envelopes, strict=True):
        table.add_row(name, *envelope.answers)
    return table
