"""Tests of estimates of tables: all rows are read, and a sample of them is estimated."""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pollux_flows import Config, ConfigurationError, Estimate, Options, run_many
from pollux_flows.estimation import rows
from pollux_flows.estimation.api import estimate_table
from pollux_flows.mapping.spec import MapSpec
from pollux_flows.pipeline.terms import Reuse, Terms
from pollux_flows.simulator import Simulator
from tests.loopback import MakeConfig


def write_table(file: Path, found: Sequence[Mapping[str, str]]) -> str:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return str(file)


async def estimate_rows(
    table: str, prompt: str, config: Config, *, source_columns: Sequence[str] = (), reuse: Reuse = "always"
) -> Estimate:
    folder = str(Path(table).parent)
    spec = MapSpec(
        prompt=prompt,
        source_columns=list(source_columns),
        target=config.target,
        options=Options(max_tokens=50),
        folders=[folder],
    )
    return await estimate_table(table, spec, config=config, terms=Terms(reuse=reuse))


async def test_an_estimate_counts_duplicate_reused_and_unusable_rows(
    sim: Simulator, config: MakeConfig, tmp_path: Path
) -> None:
    """Equal rows are asked once, answered ones not at all, and one with an empty cell cannot be asked."""
    made = config("gemini")
    found = [{"id": str(number), "text": f"text {number % 40}"} for number in range(50)] + [{"id": "50", "text": ""}]
    table = write_table(tmp_path / "t.csv", found)
    await run_many([f"Summarize text {number}" for number in range(5)], config=made, options=Options(max_tokens=50))
    sim.reset()
    expected = await estimate_rows(table, "Summarize {text}", made)
    assert (expected.calls, expected.duplicates, expected.reused, expected.unusable) == (51, 10, 5, 1)
    assert expected.to_ask == 35
    assert {each.operation for each in sim.requests} == {"count_tokens"}
    again = await estimate_rows(table, "Summarize {text}", made, reuse="never")
    assert (again.reused, again.to_ask) == (0, 40)
    assert again.output_tokens.expected == pytest.approx(40 * 9, abs=40)  # as the five answers were


async def test_a_sample_of_a_long_table_is_estimated(
    sim: Simulator, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of the sample is close to that of all rows that are to be asked."""
    monkeypatch.setattr(rows, "_SAMPLE", 100)
    rng = random.Random(5)  # noqa: S311 (not for secrets)
    found = [{"text": f"{number} " + "x" * rng.randint(10, 2_000)} for number in range(3_000)]
    found = [each for row in found for each in (row, row)]  # every other row is a duplicate
    expected = await estimate_rows(write_table(tmp_path / "t.csv", found), "{text}", config("gemini"))
    tokens = sum(-(-len(row["text"]) // 4) for row in found) / 2
    assert (expected.calls, expected.duplicates, expected.to_ask, expected.counted) == (6_000, 3_000, 3_000, 20)
    assert expected.input_tokens.expected == pytest.approx(tokens, rel=0.15)
    assert len(sim.requests) == 20
    assert any("calls represents all 3,000" in line for line in expected.assumptions)


async def test_the_sources_of_a_sample_are_opened(
    sim: Simulator, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row with a missing file is unusable, and the sample stands for all rows."""
    monkeypatch.setattr(rows, "_SAMPLE_WITH_SOURCES", 10)
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text("x" * 400)
    found = [{"file": str(tmp_path / f"{number}.txt")} for number in range(40)]
    found[20] = {"file": str(tmp_path / "missing.txt")}
    table = write_table(tmp_path / "t.csv", found)
    expected = await estimate_rows(table, "Summarize it.", config("anthropic"), source_columns=["file"])
    assert (expected.calls, expected.unusable, expected.to_ask) == (40, 4, 36)
    assert expected.input_tokens.expected == 36 * (100 + 4)
    assert not sim.files
    assert "Answers were looked up, and sources opened, for 10 rows." in expected.assumptions


async def test_a_table_that_cannot_be_mapped_is_refused(sim: Simulator, config: MakeConfig, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{"text": "x"}])
    with pytest.raises(ConfigurationError, match="no column 'txt'"):
        await estimate_rows(table, "Summarize {txt}", config("gemini"))
    assert not sim.requests
