"""Tests of `pollux-flows answers`, which lists every prompt of a run with its answer."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from pollux_flows import APIError, ConfigurationError, Source
from pollux_flows.blocks import PolluxProvider
from pollux_flows.cli import app
from pollux_flows.flows import acollect, asubmit, broadcast, fan_out
from pollux_flows.run_answers import load_answers
from pollux_flows.simulator import Fault, Simulator
from tests.prefect.jobs import ANSWERS, PROMPTS, SaveProvider, no_jobs_are_left, save_provider
from tests.prefect.runs import find_newest_run

__all__ = ["no_jobs_are_left", "save_provider"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))


def run_answers(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    app(["answers", *arguments], result_action="return_value")
    return capsys.readouterr().out


async def read_rows(flow_name: str) -> list[dict[str, Any]]:
    run = await find_newest_run(flow_name)
    return [row.model_dump() for row in await load_answers(str(run.id))]


async def test_a_failed_run_lists_all_prompts(provider: PolluxProvider, simulator: Simulator) -> None:
    """The page of the run shows fewer."""
    simulator.fail(Fault(status=400, message="not now"), contains="number 7?")
    prompts = [f"What is number {number}?" for number in range(60)]
    with pytest.raises(APIError):
        fan_out(prompts, provider)
    rows = await read_rows("fan-out")
    assert [row["prompt"] for row in rows] == prompts
    assert [row["number"] for row in rows] == list(range(1, 61))
    assert {row["number"] for row in rows if row["status"] != "answered"} == {8}
    assert rows[0]["answer"] == "Simulated answer to: What is number 0?"


async def test_the_latest_attempt_of_a_run_is_listed(provider: PolluxProvider, simulator: Simulator) -> None:
    simulator.fail(Fault(status=400, message="not now"), contains="two")

    @flow(retries=1, retry_delay_seconds=0)
    def parent() -> None:
        fan_out(["one", "two"], provider)

    parent()
    assert [row["status"] for row in await read_rows("fan-out")] == ["answered", "answered"]


async def test_a_broadcast_numbers_the_prompts_of_each_source(provider: PolluxProvider) -> None:
    broadcast(["one", "two"], [Source.from_text("a"), Source.from_text("b")], provider)
    rows = await read_rows("broadcast")
    assert [(row["source"], row["number"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]


async def test_reused_answers_are_listed(provider: PolluxProvider) -> None:
    for _ in range(2):
        fan_out(["one", "two"], provider, reuse="always")
    assert [row["status"] for row in await read_rows("fan-out")] == ["answered", "answered"]
    with pytest.raises(ConfigurationError, match=r"Several runs are named .*Pass the id of one"):
        await load_answers((await find_newest_run("fan-out")).name)


async def test_a_deferred_run_lists_the_answers_of_its_job(save_provider: SaveProvider) -> None:
    await asubmit(PROMPTS, await save_provider("openai"))
    await acollect()
    assert [(row["prompt"], row["answer"]) for row in await read_rows("submit")] == list(
        zip(PROMPTS, ANSWERS, strict=True)
    )


def test_answers_are_printed_as_text_json_or_csv(provider: PolluxProvider, capsys: pytest.CaptureFixture[str]) -> None:
    fan_out(['say "hi",\nplease', "two"], provider)
    name = asyncio.run(find_newest_run("fan-out")).name
    lines = [json.loads(line) for line in run_answers(capsys, name, "--json").splitlines()]
    assert [line["prompt"] for line in lines] == ['say "hi",\nplease', "two"]
    rows = list(csv.DictReader(io.StringIO(run_answers(capsys, name, "--csv"))))
    assert rows[0]["prompt"] == 'say "hi",\nplease'
    assert rows[1]["answer"] == "Simulated answer to: two"
    assert "2. two\n   Simulated answer to: two\n" in run_answers(capsys, name)


def test_a_run_that_is_unknown_or_has_its_answers_elsewhere_is_refused(
    provider: PolluxProvider, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="has no flow run 'nope'"):
        run_answers(capsys, "nope")
    fan_out(["asked here alone"], provider)
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(SystemExit, match="has no answers of the run"):
        run_answers(capsys, "asked here alone · fan-out · gpt-4.1-mini")
