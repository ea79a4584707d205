"""Tests of map_rows: one prompt for each row of a table, asked once, and a table with the answers."""

from __future__ import annotations

import asyncio
import csv
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_async
from pydantic import BaseModel

from pollux_flows import ConfigurationError, Options, PolluxError
from pollux_flows.blocks import PolluxProvider
from pollux_flows.cli import app
from pollux_flows.flows import acollect, amap_rows, map_rows
from pollux_flows.flows.chunks import MapRun, map_chunk
from pollux_flows.mapping.report import MapReport
from pollux_flows.mapping.spec import MapSpec
from pollux_flows.pipeline.terms import Terms
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.slots import RunScope
from pollux_flows.tables.table import scan_table
from tests.loopback import until
from tests.object_store import ObjectStore, object_store
from tests.prefect.jobs import SaveProvider, no_jobs_are_left, save_provider
from tests.prefect.runs import find_newest_run, read_pages

__all__ = ["no_jobs_are_left", "object_store", "save_provider"]

PROMPT = "Summarize {title}: {body}"
REVIEWS = [{"title": f"T{number}", "body": f'line "{number}",\nand more'} for number in range(25)]


class Review(BaseModel):
    stars: int
    summary: str


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def write_csv(name: str, rows: Sequence[dict[str, Any]]) -> str:
    with Path(name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return name


def write_lines(name: str, rows: Sequence[dict[str, Any]]) -> str:
    Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return name


def read_csv(name: str) -> list[dict[str, str]]:
    with Path(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def has_output(name: str) -> bool:
    return Path(name).exists()


def read_prompts(simulator: Simulator, since: int = 0) -> list[str]:
    bodies = [request.body for request in simulator.requests if request.operation == "generate"][since:]
    return [str(body["input"][-1]["content"][-1]["text"]) for body in bodies]


def check_sums(report: MapReport) -> None:
    counts = (report.asked, report.reused, report.duplicates, report.not_asked, report.unusable)
    assert sum(counts) == sum(report.statuses.values()) == report.rows


def test_the_output_has_the_rows_of_the_table_in_order_with_an_answer_each(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    report = map_rows(write_csv("in.csv", REVIEWS), PROMPT, provider, "out.csv", rows_per_chunk=10)
    rows = read_csv("out.csv")
    assert [{name: row[name] for name in ("title", "body")} for row in rows] == REVIEWS
    assert all(row["title"] in row["answer"] and row["answer_status"] == "answered" for row in rows)
    assert len(read_prompts(simulator)) == report.asked == report.answered == 25
    assert report.cost_usd == pytest.approx(sum(float(row["answer_cost_usd"]) for row in rows))
    assert MapReport.model_validate_json(Path("out.csv.manifest.json").read_bytes()) == report
    check_sums(report)


def test_equal_rows_are_asked_once_in_all_chunks(provider: PolluxProvider, simulator: Simulator) -> None:
    rows = [{"word": word} for word in ["a", "b", "a", "c", "a", "b", "a", "a"]]
    for reuse in ("always", "run", "never"):
        simulator.reset()
        report = map_rows(
            write_csv("in.csv", rows), "Define {word}", provider, "out.jsonl", rows_per_chunk=3, reuse=reuse
        )
        assert Counter(read_prompts(simulator)) == {f"Define {word}": 1 for word in "abc"}, reuse
        assert (report.asked, report.duplicates) == (3, 5)
        assert len({row["answer"] for row in read_lines("out.jsonl")}) == 3
        check_sums(report)


def test_a_second_run_asks_only_new_and_unanswered_rows(provider: PolluxProvider, simulator: Simulator) -> None:
    simulator.fail(Fault(status=400, message="not now"), contains="T3:", times=1)
    first = map_rows(write_csv("in.csv", REVIEWS), PROMPT, provider, "out.csv")
    assert (first.answered, first.statuses["api_error"]) == (24, 1)
    assert "not now" in read_csv("out.csv")[3]["answer_error"]
    longer = [{"title": "new", "body": "one"}, *reversed(REVIEWS)]
    second = map_rows(write_csv("in.csv", longer), PROMPT, provider, "out.csv")
    assert sorted(read_prompts(simulator, 25)) == ['Summarize T3: line "3",\nand more', "Summarize new: one"]
    assert (second.asked, second.reused, second.unanswered) == (2, 24, 0)
    assert Counter(row["answer_reused"] for row in read_csv("out.csv")) == {"true": 24, "false": 2}
    assert map_rows("in.csv", PROMPT, provider, "out.csv").asked == 0
    assert len(read_prompts(simulator)) == 27
    aged = map_rows("in.csv", PROMPT, provider, "out.csv", max_age=0.0)
    assert aged.asked == 26


def test_a_retried_run_asks_only_rows_without_an_answer(provider: PolluxProvider, simulator: Simulator) -> None:
    table = write_csv("in.csv", REVIEWS)
    for reuse in ("run", "never"):
        simulator.reset()
        run = map_rows.with_options(retries=1, retry_delay_seconds=0)
        simulator.fail(Fault(status=400), contains="T4:", times=1)
        report = run(
            table,
            PROMPT,
            provider,
            f"{reuse}.csv",
            reuse=reuse,
            on_partial="fail",
            rows_per_chunk=10,
            if_exists="error",
        )
        assert (report.asked, report.unanswered) == (25, 0)
        assert Counter(read_prompts(simulator)).most_common(2)[0][1] == 2
        assert len(read_prompts(simulator)) == 26
        with pytest.raises(ConfigurationError, match="exists already"):
            run.with_options(retries=0)(table, PROMPT, provider, f"{reuse}.csv", if_exists="error")


def test_rows_that_cannot_be_asked_have_a_reason_and_do_not_fail_the_others(provider: PolluxProvider) -> None:
    rows: list[dict[str, Any]] = [{"title": "a", "n": 1}, {"title": None, "n": 2}, {"title": "c"}]
    rows.append({"title": "d", "n": 4.5})
    report = map_rows(write_lines("in.jsonl", rows), "{title} {n}", provider, "out.jsonl")
    found = read_lines("out.jsonl")
    assert [row["answer_status"] for row in found] == ["answered", "unusable_row", "unusable_row", "answered"]
    assert "'title'" in found[1]["answer_error"]
    assert found[1]["answer"] is None
    assert (report.unusable, report.unanswered) == (2, 2)
    check_sums(report)


@pytest.mark.parametrize(
    ("prompt", "more", "problem"),
    [
        ("{0.__class__}", {}, "attribute"),
        ("{title:>10}", {}, "format"),
        ("{titel}", {}, "title"),
        ("{title}", {"id_column": "kind"}, "same id"),
        ("{title}", {"limit": 0}, "limit is 0"),
        ("{title}", {"rows_per_chunk": 0}, "rows_per_chunk is 0"),
        ("{title}", {"source_columns": ["photo"]}, "no column 'photo'"),
        ("{title}", {"output": "out.txt"}, "ends with none of"),
        ("{title}", {"answer_column": "title"}, "has a column 'title' already"),
        ("{title}", {"options": Options(tools=[{"name": "look"}])}, "tools cannot be used"),
        ("{title}", {"output": "there.csv", "if_exists": "error"}, "exists already"),
        ("{title}", {"columns": ["tittle"]}, "no column 'tittle'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_asked(
    prompt: str, more: dict[str, Any], problem: str, provider: PolluxProvider, simulator: Simulator
) -> None:
    write_csv("in.csv", [{"title": "a", "kind": "x"}, {"title": "b", "kind": "x"}])
    Path("there.csv").touch()
    with pytest.raises(PolluxError) as caught:
        map_rows("in.csv", prompt, provider, more.pop("output", "out.csv"), **more)
    assert problem in str(caught.value)
    assert caught.value.hint
    assert simulator.requests == []
    assert not Path("out.csv").exists()


def test_an_output_that_cannot_be_looked_up_is_refused_before_anything_is_asked(
    provider: PolluxProvider, simulator: Simulator, object_store: ObjectStore
) -> None:
    object_store.is_readable = False
    with pytest.raises(ConfigurationError, match="may exist already, and cannot be read"):
        map_rows(write_csv("in.csv", REVIEWS), PROMPT, provider, "s3://lake/out.csv", if_exists="error")
    assert simulator.requests == []


def test_an_empty_table_is_refused(provider: PolluxProvider) -> None:
    Path("in.csv").write_text("title\n")
    with pytest.raises(PolluxError, match="no rows"):
        map_rows("in.csv", "{title}", provider, "out.csv")


def test_fields_of_the_response_schema_are_typed_columns(provider: PolluxProvider) -> None:
    map_rows(
        write_csv("in.csv", REVIEWS[:3]),
        PROMPT,
        provider,
        "out.parquet",
        columns=["title"],
        answer_column="review",
        options=Options(response_schema=Review),
    )
    table = pq.read_table("out.parquet")
    assert table.column_names[:4] == ["title", "review", "review.stars", "review.summary"]
    assert [str(table.schema.field(name).type) for name in ("review.stars", "review.summary")] == ["int64", "string"]
    rows = table.to_pylist()
    assert [json.loads(row["review"])["stars"] for row in rows] == [row["review.stars"] for row in rows]
    assert {row["review_status"] for row in rows} == {"answered"}


def test_sources_come_from_columns_and_stay_within_the_working_folder(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path
) -> None:
    Path("note.txt").write_text("the note")
    (tmp_path / "secret.txt").write_text("the secret")
    rows: list[dict[str, Any]] = [
        {"about": "a text of some words"},
        {"about": "./note.txt"},
        {"about": ["./note.txt", "and a text"]},
        {"about": {"uri": "./note.txt", "mime_type": "text/plain"}},
        {"about": "../secret.txt"},
        {"about": str(tmp_path / "secret.txt")},
        {"about": "./missing.txt"},
        {"about": None},
        {"about": 7},
    ]
    report = map_rows(
        write_lines("in.jsonl", rows), "What is it?", provider, "out.jsonl", source_columns=["about"], rows_per_chunk=5
    )
    statuses = [row["answer_status"] for row in read_lines("out.jsonl")]
    assert statuses == ["answered"] * 4 + ["unusable_row"] * 5
    sent = json.dumps([request.body for request in simulator.requests])
    assert "the note" in sent
    assert "the secret" not in sent
    assert report.answered == 4
    check_sums(report)
    assert map_rows("in.jsonl", "What is it?", provider, "out.jsonl", source_columns=["about"]).asked == 0


def test_a_budget_is_never_exceeded_and_names_the_rows_that_were_not_asked(
    provider: PolluxProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"n": number, "text": "a word " * (number % 9)} for number in range(1, 200)]
    options, table = Options(max_tokens=60), write_csv("in.csv", rows)
    bill = map_rows(table, "{n} {text}", provider, "out.csv", options=options).cost_usd
    assert bill is not None
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "another"))
    report = map_rows(
        table, "{n} {text}", provider, "out.csv", options=options, max_cost_usd=bill / 2, rows_per_chunk=30
    )
    found = read_csv("out.csv")
    spent = sum(float(row["answer_cost_usd"] or 0) for row in found)
    assert report.cost_usd == pytest.approx(spent)
    assert (
        bill / 2 - 0.0004 < spent <= bill / 2
    )  # 60 tokens of this model cost 0.0001, and a request of 600 bytes 0.0003
    assert Counter(row["answer_status"] for row in found) == report.statuses
    assert report.not_asked == report.statuses["budget"] > 50
    with pytest.raises(PolluxError, match="max_cost_usd"):
        map_rows(table, "Again: {n} {text}", provider, "out.csv", options=options, max_cost_usd=1e-6)
    check_sums(report)


async def test_calls_under_way_when_a_run_fails_are_completed_and_saved(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    """Writing the first rows fails at a date that Python cannot represent, while other rows are asked."""
    days = pa.array([4_000_000, *range(24)], pa.date32())
    pq.write_table(pa.Table.from_pylist(REVIEWS).append_column("day", days), "in.parquet")
    simulator.fail(Fault(kind="slow", delay_s=0.3), times=None)
    with pytest.raises(PolluxError, match="date value out of range"):
        await amap_rows("in.parquet", PROMPT, provider, "out.parquet", rows_per_chunk=5)
    assert [task for task in asyncio.all_tasks() if "answer" in str(task.get_coro())] == []
    count = len(read_prompts(simulator))
    assert not has_output("out.parquet")
    simulator.reset()
    report = await amap_rows("in.parquet", PROMPT, provider, "out.parquet", columns=["title"])
    assert (report.reused, report.asked) == (count, 25 - count)


async def test_the_other_rows_are_not_asked_if_no_row_is_answered(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    simulator.fail(Fault(status=401), times=None)
    rows = [{"n": number} for number in range(100)]
    run = await amap_rows(write_csv("in.csv", rows), "{n}", provider, "out.csv", rows_per_chunk=10, return_state=True)
    assert run.is_failed()
    assert len(read_prompts(simulator)) <= 30
    statuses = Counter(row["answer_status"] for row in read_csv("out.csv"))
    assert statuses["not_asked"] >= 70
    assert statuses.total() == 100
    (page,) = [each for each in await read_pages(await find_newest_run("map-rows")) if each.type == "markdown"]
    assert "without a usable answer" in str(page.data)


def test_a_chunk_of_a_single_row_that_fails_does_not_stop_the_table(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    simulator.fail(Fault(status=400), contains="T1:", times=1)
    report = map_rows(write_csv("in.csv", REVIEWS[:8]), PROMPT, provider, "out.csv", rows_per_chunk=1)
    assert report.statuses == {"answered": 7, "api_error": 1}


def test_requests_that_may_have_been_billed_are_counted(provider: PolluxProvider, simulator: Simulator) -> None:
    simulator.fail(Fault(kind="drop_after"), contains="T1:", times=1)
    report = map_rows(write_csv("in.csv", [*REVIEWS[:3], REVIEWS[1]]), PROMPT, provider, "out.csv")
    assert (report.answered, report.unknown_attempts, len(read_prompts(simulator))) == (4, 1, 4)
    assert map_rows("in.csv", PROMPT, provider, "out.csv").unknown_attempts == 0


def test_a_table_without_an_output_is_written_to_the_result_storage(provider: PolluxProvider) -> None:
    report = map_rows(write_csv("in.csv", REVIEWS[:2]), PROMPT, provider)
    assert "pollux-tables" in report.output
    assert len(read_csv(report.output)) == 2


def test_a_parent_flow_gets_the_report_and_its_retry_pays_for_no_row_twice(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    table = write_csv("in.csv", REVIEWS)
    attempts: list[int] = []

    @flow(retries=1, retry_delay_seconds=0)
    def nightly() -> MapReport:
        report = map_rows(table, PROMPT, provider, "out.csv", reuse="run")
        attempts.append(report.rows)
        if len(attempts) == 1:
            raise RuntimeError("after it was paid")
        return report

    assert nightly().answered == 25
    assert len(read_prompts(simulator)) == 25


def test_the_costs_of_all_reports_add_up_to_the_bill(provider: PolluxProvider, simulator: Simulator) -> None:
    """Two tables of one flow share answers, and equal rows of several chunks are asked again if they were blocked."""
    first = write_csv("first.csv", [{"n": n} for n in [1, 7, 7, 3, 4, 7]])
    second = write_csv("second.csv", [{"n": n} for n in [7, 4, 3, 5, 1, 7]])
    simulator.fail(Fault(kind="blocked"), contains="number 7", times=None)

    @flow
    def map_both() -> list[MapReport]:
        return [
            map_rows(table, "Say number {n}", provider, f"{table}l.jsonl", reuse="run", rows_per_chunk=3)
            for table in (first, second)
        ]

    reports = map_both()
    assert [(report.asked, report.reused, report.duplicates) for report in reports] == [(4, 0, 2), (2, 3, 1)]
    assert len(read_prompts(simulator)) == 8
    blocked = next(row for row in read_lines("first.csvl.jsonl") if row["answer_status"] == "blocked")
    answered = [row["answer_cost_usd"] for row in read_lines("first.csvl.jsonl") if row["answer"]]
    assert reports[0].cost_usd == pytest.approx(sum(answered) + 2 * blocked["answer_cost_usd"])
    assert reports[1].cost_usd == pytest.approx(answered[0] + 2 * blocked["answer_cost_usd"])
    for report in reports:
        check_sums(report)


async def test_a_worker_with_another_state_is_refused(provider: PolluxProvider, simulator: Simulator) -> None:
    """Such a worker would pay again for rows that others have answered."""
    spec = MapSpec(prompt="{title}", target=(await provider.config()).target)
    run = MapRun(spec, Terms(reuse="always"), RunScope("r"), store="of another machine", provider=None)
    (chunk,) = scan_table(write_csv("in.csv", REVIEWS), rows_per_chunk=100).chunks
    with pytest.raises(ConfigurationError, match="a different state"):
        await map_chunk(chunk, run, "rows")
    assert simulator.requests == []


async def test_a_deployed_run_is_suspended_while_its_batch_is_answered(
    simulator: Simulator, save_provider: SaveProvider
) -> None:
    """The resumed flow starts from its first line, here with a changed table: each answer stays with its row."""
    provider = await save_provider("openai")
    simulator.batch_s = 3600
    table = write_csv("in.csv", REVIEWS)
    parameters = {"table": table, "prompt": PROMPT, "provider": provider.reference, "output": "out.csv"}
    async with get_client() as client:
        deployment = await client.create_deployment(
            await client.create_flow(amap_rows), f"map-{uuid4()}", parameters={**parameters, "delivery": "deferred"}
        )
        run = await client.create_flow_run_from_deployment(deployment)
        with pytest.raises(Pause):  # ends the process of the run
            await run_flow_async(cast(Any, amap_rows), flow_run=run, parameters=run.parameters)
        assert not has_output("out.csv")
        for batch in simulator.batches:
            batch.takes_s = 0.0
        write_csv("in.csv", [{"title": "late", "body": "row"}, *reversed(REVIEWS)])
        await acollect()
        run = await client.read_flow_run(run.id)
        report: Any = await run_flow_async(cast(Any, amap_rows), flow_run=run, parameters=run.parameters)
        await client.delete_deployment(deployment)
    assert (report.rows, report.asked, report.statuses) == (26, 26, {"answered": 25, "missing": 1})
    assert all(row["title"] in row["answer"] for row in read_csv("out.csv")[1:])


async def test_a_table_is_answered_in_batches(simulator: Simulator, save_provider: SaveProvider) -> None:
    provider = await save_provider("openai")
    simulator.fail(Fault(status=400), contains="T3:", times=1)
    rows = [*REVIEWS, REVIEWS[0], {"title": "", "body": "x"}]
    table = write_csv("in.csv", rows)
    report = await amap_rows(table, PROMPT, provider, "out.jsonl", rows_per_chunk=10, delivery="deferred")
    assert (report.rows, report.asked, report.duplicates, report.unusable) == (27, 25, 1, 1)
    assert read_prompts(simulator) == []
    found = read_lines("out.jsonl")
    assert all(row["title"] in row["answer"] for row in found if row["answer_status"] == "answered")
    again = await amap_rows(table, PROMPT, provider, "out.jsonl", rows_per_chunk=10)
    assert again.asked == 25 - report.answered + report.duplicates
    assert again.unanswered == 1
    check_sums(report)


async def test_rows_in_a_batch_of_another_run_are_not_submitted_again(
    simulator: Simulator, save_provider: SaveProvider
) -> None:
    provider = await save_provider("openai")
    simulator.batch_s = 3600
    run = partial(amap_rows, prompt=f"Overlapping: {PROMPT}", provider=provider, delivery="deferred")
    first = asyncio.create_task(run(write_csv("first.csv", REVIEWS), output="out-1.csv"))
    await until(lambda: len(simulator.batches) == 1, within_s=30)
    longer = [{"title": "new", "body": "one"}, *REVIEWS]
    second = asyncio.create_task(run(write_csv("second.csv", longer), output="out-2.csv"))
    await until(lambda: len(simulator.batches) == 2, within_s=30)
    for batch in simulator.batches:
        batch.takes_s = 0.0
    reports = await asyncio.gather(first, second)
    assert [batch.rows for batch in simulator.batches] == [25, 1]
    assert [(report.answered, report.asked, report.reused) for report in reports] == [(25, 25, 0), (26, 1, 25)]
    assert all(row["title"] in row["answer"] for row in read_csv("out-2.csv"))
    for report in reports:
        check_sums(report)


async def test_a_resumed_run_waits_for_no_batch_that_was_submitted_after_it_began(
    simulator: Simulator, save_provider: SaveProvider
) -> None:
    """The rows in that batch are not submitted a second time."""
    provider = await save_provider("openai")
    simulator.batch_s = 3600
    table = write_csv("in.csv", REVIEWS)
    parameters = {"table": table, "prompt": f"Resumed: {PROMPT}", "provider": provider.reference, "output": "out.csv"}
    async with get_client() as client:
        deployment = await client.create_deployment(
            await client.create_flow(amap_rows), f"map-{uuid4()}", parameters={**parameters, "delivery": "deferred"}
        )
        run = await client.create_flow_run_from_deployment(deployment)
        with pytest.raises(Pause):
            await run_flow_async(cast(Any, amap_rows), flow_run=run, parameters=run.parameters)
        write_csv("in.csv", [*REVIEWS, {"title": "new", "body": "one"}])
        later = asyncio.create_task(amap_rows(table, f"Resumed: {PROMPT}", provider, "later.csv", delivery="deferred"))
        await until(lambda: len(simulator.batches) == 2, within_s=30)
        simulator.batches[0].takes_s = 0.0
        await acollect()
        run = await client.read_flow_run(run.id)
        report: Any = await run_flow_async(cast(Any, amap_rows), flow_run=run, parameters=run.parameters)
        await client.delete_deployment(deployment)
    simulator.batches[1].takes_s = 0.0
    assert (report.rows, report.statuses) == (26, {"answered": 25, "missing": 1})
    assert [batch.rows for batch in simulator.batches] == [25, 1]
    last = await later
    assert (last.asked, last.reused, last.statuses) == (1, 25, {"answered": 26})


async def test_a_retry_submits_failed_rows_and_the_cost_includes_both_batches(
    simulator: Simulator, save_provider: SaveProvider
) -> None:
    provider = await save_provider("openai")
    words = ["a", "b", "no [[simulate: blocked times=1]]", "no [[simulate: blocked times=1]]", "c"]
    table = write_csv("in.csv", [{"word": word} for word in words])
    run = amap_rows.with_options(retries=1, retry_delay_seconds=0)
    for on_partial, answered, batches in (("complete", 3, [4]), ("fail", 5, [4, 1])):
        report = await run(
            table,
            f"{on_partial} {{word}}",
            provider,
            "out.jsonl",
            delivery="deferred",
            rows_per_chunk=2,
            on_partial=cast(Any, on_partial),
        )
        assert (report.answered, report.asked, report.duplicates) == (answered, 4, 1)
        assert [batch.rows for batch in simulator.batches] == batches
        rows = read_lines("out.jsonl")
        cost = sum(rows[number]["answer_cost_usd"] for number in (0, 1, 2, 4))
        if on_partial == "complete":
            blocked = rows[2]["answer_cost_usd"]
            assert report.cost_usd == pytest.approx(cost)
        else:
            assert report.cost_usd == pytest.approx(cost + blocked, rel=0.05)  # of a prompt two tokens longer
        simulator.reset()


async def test_each_row_of_a_batch_has_its_own_source(simulator: Simulator, save_provider: SaveProvider) -> None:
    provider = await save_provider("anthropic")
    rows = [{"text": f"This is about number {number}."} for number in range(4)]
    report = await amap_rows(
        write_csv("in.csv", rows),
        "What is it?",
        provider,
        "out.jsonl",
        source_columns=["text"],
        delivery="deferred",
        options=Options(max_tokens=100),
    )
    assert report.answered == 4
    sent = [json.dumps(request.body) for request in simulator.requests if request.operation == "batch.create"]
    assert sum(body.count("This is about number") for body in sent) == 4


def test_the_command_maps_a_table(save_provider: SaveProvider, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(save_provider("openai"))
    write_csv("in.csv", REVIEWS[:3])
    words = ["map", "in.csv", "--prompt", PROMPT, "-p", "deferred-openai", "-o", "out.csv"]
    with pytest.raises(SystemExit) as caught:
        app([*words, "--json"])
    assert caught.value.code == 0
    assert MapReport.model_validate_json(capsys.readouterr().out).answered == 3
    with pytest.raises(SystemExit) as caught:
        app([*words[:3], "{nope}", *words[4:]])
    assert caught.value.code == 2
    assert "no column 'nope'" in capsys.readouterr().err
