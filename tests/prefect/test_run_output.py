"""Tests of `output=`: a run writes its answers and failures to a file, and an unusable output is refused before."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from pydantic import BaseModel

from pollux_flows import APIError, ConfigurationError, Options, Source
from pollux_flows.answer_rows import CSV_COLUMNS
from pollux_flows.blocks import PolluxProvider
from pollux_flows.cli import app
from pollux_flows.flows import acollect, afan_out, asubmit, broadcast, converse, fan_in, fan_out, realtime
from pollux_flows.output import Manifest
from pollux_flows.simulator import Fault, Simulator
from tests.prefect.counting import count_calls
from tests.prefect.jobs import PROMPTS, SaveProvider, no_jobs_are_left, save_provider
from tests.prefect.runs import find_newest_run, read_pages, wait_until

__all__ = ["no_jobs_are_left", "save_provider"]

SOURCES = [Source.from_text("Ada was there.", identifier="one"), Source.from_text("Bob was there.", identifier="two")]


class City(BaseModel):
    name: str


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_manifest(path: Path) -> Manifest:
    return Manifest.model_validate_json(path.read_bytes())


def run_flow(kind: str, provider: PolluxProvider, output: str) -> Any:
    match kind:
        case "realtime":
            return realtime("one", provider, output=output)
        case "converse":
            return converse("one", provider, output=output)
        case "fan-in":
            return fan_in("one", SOURCES, provider, output=output)
        case "broadcast":
            return broadcast(["one", "two"], SOURCES, provider, output=output)
        case _:
            return fan_out(["one", "two"], provider, output=output)


ROWS: dict[str, list[tuple[int, int | None, str | None, str]]] = {
    "realtime": [(1, None, None, "one")],
    "converse": [(1, None, None, "one")],
    "fan-in": [(1, None, None, "one")],
    "fan-out": [(1, None, None, "one"), (2, None, None, "two")],
    "broadcast": [(1, 1, "one", "one"), (2, 1, "one", "two"), (1, 2, "two", "one"), (2, 2, "two", "two")],
}


@pytest.mark.parametrize("kind", ROWS)
async def test_every_flow_writes_a_row_per_prompt(kind: str, provider: PolluxProvider, tmp_path: Path) -> None:
    """The page of the run names the file."""
    output = tmp_path / "out" / "answers.jsonl"
    await asyncio.to_thread(run_flow, kind, provider, str(output))
    rows = read_lines(output)
    assert [(row["number"], row["source"], row["source_name"], row["prompt"]) for row in rows] == ROWS[kind]
    assert {(row["status"], row["answer"]) for row in rows} == {
        ("answered", f"Simulated answer to: {row['prompt']}") for row in rows
    }
    assert all(row["cost_usd"] > 0 and row["usage"]["input_tokens"] > 0 for row in rows)
    manifest = read_manifest(output.with_name("answers.manifest.json"))
    assert (manifest.submitted, manifest.succeeded, manifest.output) == (len(rows), len(rows), str(output))
    assert manifest.cost_usd == pytest.approx(sum(row["cost_usd"] for row in rows))
    (page,) = await read_pages(await find_newest_run(kind))
    assert f"| Output | {output} |" in str(page.data)


@pytest.mark.parametrize("output", ["answers.txt", "file/answers.csv", "s3://a:b@c/answers.csv"])
@pytest.mark.parametrize("kind", ROWS)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_asked(
    kind: str, output: str, provider: PolluxProvider, simulator: Simulator, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"ends with none of|cannot be written to|password"):
        run_flow(kind, provider, output if "://" in output else str(tmp_path / output))
    assert simulator.requests == []


def test_a_failed_run_writes_its_failures_and_a_retry_completes_the_file(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path
) -> None:
    output = tmp_path / "answers.csv"
    simulator.fail(Fault(status=400, message="not now"), contains="two", times=2)
    for retries, expected in ((0, "api_error"), (1, "answered")):
        run = fan_out.with_options(retries=retries, retry_delay_seconds=0)
        try:
            run(["one", "two"], provider, output=str(output))
        except APIError:
            assert expected == "api_error"
        rows = list(csv.DictReader(io.StringIO(output.read_text())))
        assert [row["status"] for row in rows] == ["answered", expected]
        manifest = read_manifest(tmp_path / "answers.csv.manifest.json")
        assert (manifest.succeeded, manifest.failed) == ((2, 0) if expected == "answered" else (1, 1))
        if expected == "api_error":
            assert "not now" in rows[1]["error"]
            assert rows[1]["answer"] == ""
    assert count_calls(simulator) == 5, "a retry asks only what failed"


async def test_answers_that_cannot_be_written_are_not_lost(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path
) -> None:
    """The run fails, its page says why, and a retry writes them without asking."""
    simulator.fail(Fault(kind="slow", delay_s=0.5), times=None)
    pages: list[str] = []
    folder = tmp_path / "out"

    async def is_asked() -> bool:
        return count_calls(simulator) == 2

    def put_a_file_in_the_way() -> None:
        folder.rmdir()
        folder.touch()

    @flow(retries=1, retry_delay_seconds=0)
    async def parent() -> None:
        if pages:
            folder.unlink()
        asking = asyncio.create_task(afan_out(["one", "two"], provider, output=str(folder / "answers.jsonl")))
        if not pages:
            await wait_until(is_asked)
            put_a_file_in_the_way()
        try:
            await asking
        finally:
            pages.append(str((await read_pages(await find_newest_run("fan-out")))[0].data))

    await parent()
    assert "| Output | not written: The answers of this run could not be written to" in pages[0]
    assert "> Simulated answer to: one" in pages[0]
    assert [row["status"] for row in read_lines(folder / "answers.jsonl")] == ["answered"] * 2
    assert count_calls(simulator) == 2


def test_an_output_folder_gets_a_file_per_run(provider: PolluxProvider, tmp_path: Path) -> None:
    for _ in range(2):
        realtime("one", provider, output=f"{tmp_path}/out/")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.jsonl"))
    assert len(files) == 2
    assert f"realtime-{asyncio.run(find_newest_run('realtime')).id}.jsonl" in files


def test_the_log_names_the_output_and_quotes_no_answer(
    provider: PolluxProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("prefect.flow_runs"), "propagate", True)
    fan_out(["one secret", "two secret"], provider, output=str(tmp_path / "answers.csv"))
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert f"Wrote 2 rows to {tmp_path}/answers.csv." in lines
    assert not any("Simulated answer" in line for line in lines)


# --- Rows of files, and of `pollux-flows answers` -----------------------------------------------------------


def run_answers(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    app(["answers", *words], result_action="return_value")
    return capsys.readouterr().out


def test_the_answers_command_prints_the_content_of_the_output(
    provider: PolluxProvider, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both formats include structured answers, names of sources and reused answers."""
    for ending, option in (("jsonl", "--json"), ("csv", "--csv")):
        output = tmp_path / f"answers.{ending}"
        broadcast(
            ["one", "two"],
            SOURCES,
            provider,
            Options(response_schema=City),
            output=str(output),
            reuse="always",
        )
        file = output.read_bytes().decode()
        assert run_answers(capsys, str(asyncio.run(find_newest_run("broadcast")).id), option) == file
        assert '{"name":' in file.replace('""', '"')


def test_an_answer_that_does_not_fit_the_schema_is_marked_as_invalid(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator.fail(Fault(kind="invalid_json"))
    output = tmp_path / "answers.jsonl"
    realtime("one", provider, options=Options(response_schema=City), output=str(output))
    (row,) = read_lines(output)
    assert (row["status"], row["structured"]) == ("invalid_output", None)
    assert row["answer"]
    assert "does not fit response_schema" in row["error"]
    assert run_answers(capsys, str(asyncio.run(find_newest_run("realtime")).id), "--json") == output.read_text()


async def test_a_deferred_job_writes_the_same_rows(
    save_provider: SaveProvider, simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator.batch(end="partial", answered=0.5)
    output = tmp_path / "answers.csv"
    await asubmit(PROMPTS, await save_provider("openai"), output=str(output))
    await acollect()
    rows = list(csv.DictReader(io.StringIO(output.read_bytes().decode(), newline="")))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [(row["number"], row["prompt"]) for row in rows] == [(str(n), p) for n, p in enumerate(PROMPTS, start=1)]
    assert [row["status"] for row in rows] == ["answered", "answered", "api_error", "api_error"]
    run = str((await find_newest_run("submit")).id)
    assert await asyncio.to_thread(run_answers, capsys, run, "--csv") == output.read_bytes().decode()
