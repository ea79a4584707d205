"""The demo: a fan-out and a broadcast, offline, on a temporary Prefect server."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

_REPORTS = {
    "north": "The north plant made 1,200 pumps in March, 4% fewer than planned. Two presses stood still for a week.",
    "south": "The south plant made 1,650 pumps in March, a record. The new shift model starts in May.",
}
_PROMPTS = ["How many pumps were made?", "What should the board know?", "Give three keywords."]


def run_demo() -> None:
    """Run both flows and print their results."""
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
            # The server would print a traceback when it is stopped while it writes its temporary records.
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
    title = f"fan-out · {together.status} · {together.usage['total_tokens']} tokens"
    console.print(_table(title, ["Prompt", "Answer"], zip(_PROMPTS, together.answers, strict=True)))
    rows = [(plant, *envelope.answers) for plant, envelope in zip(_REPORTS, each, strict=True)]
    console.print(_table(f"broadcast · {' · '.join(e.status for e in each)}", ["Source", *_PROMPTS[:2]], rows))
    console.print(
        f"{together.metrics['n_calls']} + {sum(e.metrics['n_calls'] for e in each)} calls, answered by the simulator "
        "at no cost. With a key in the environment, leave use_mock out and the same flows ask the real provider."
    )


def _table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table
