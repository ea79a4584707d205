"""Test of the README's capability table: it is the code's."""

from __future__ import annotations

from pathlib import Path

from pollux_flows.capabilities import MATRIX

README = Path(__file__).parents[1] / "README.md"
SIGNS = {"yes": "✅", "no": "❌", "model": "⚠️"}


def test_the_capability_table_is_the_code() -> None:
    """Every row of the matrix stands in the README, in order, and nothing else does."""
    rows = [f"| {row.title} | " + " | ".join(SIGNS[cell] for cell in row.support) + " |" for row in MATRIX.values()]
    written = [line for line in README.read_text().splitlines() if line.startswith("| ") and line[-3] in "✅❌️"]
    assert written == rows
