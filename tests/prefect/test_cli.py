"""pollux-flows from a shell: blocks applied, prompts asked, jobs followed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from pollux_flows import ResultEnvelope
from pollux_flows.blocks import PolluxProvider
from pollux_flows.cli import app
from pollux_flows.deferred.report import CollectReport
from pollux_flows.simulator import Simulator
from tests.prefect.jobs import ANSWERS, PROMPTS, jobs_home, no_jobs_are_left

__all__ = ["jobs_home", "no_jobs_are_left"]
Command = Callable[..., str]


@pytest.fixture
def pollux(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """What `pollux-flows …` prints, or says on its way out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app(list(words))
        printed = capsys.readouterr()
        return printed.out if left.value.code in (None, 0) else f"refused: {left.value} {printed.out}"

    return command


@pytest.fixture
def ask(pollux: Command, world: tuple[Simulator, str], simulator: Simulator) -> Command:
    """The same, where a provider called `cli` was applied."""
    simulator.batch_s = 0
    address = simulator.base_url("openai", origin=world[1])
    fields = f"provider: openai, model: gpt-4.1-mini, base_url: {address!r}, api_key: {{env: CLI_KEY}}"
    applied(pollux, f"pollux-provider/cli: {{{fields}}}")
    return pollux


@pytest.fixture(autouse=True)
def a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLI_KEY", "sk-from-the-environment")


def applied(pollux: Command, text: str) -> str:
    Path("blocks.yaml").write_text(text)
    return pollux("apply", "blocks.yaml")


def saved(name: str = "cli") -> PolluxProvider:
    return cast(PolluxProvider, PolluxProvider.load(name))


# --- apply --------------------------------------------------------------------------------------------------


def test_the_files_that_come_with_this_can_be_applied(pollux: Command) -> None:
    folder = Path(__file__).parents[2] / "blocks"
    told = pollux("apply", str(folder)).splitlines()
    assert "pollux-provider/simulated: created" in told
    assert set(pollux("apply", str(folder)).splitlines()) == {line.replace("created", "as it was") for line in told}


def test_a_file_says_what_changes_and_a_key_stays(ask: Command) -> None:
    first = saved()
    assert first.api_key is not None
    assert first.api_key.get_secret_value() == "sk-from-the-environment"
    told = applied(ask, "pollux-provider/cli: {provider: openai, model: gpt-4.1, request_concurrency: 3}")
    assert told == "pollux-provider/cli: changed (model, base_url, request_concurrency)\n"
    again = saved()
    assert (again.model, again.base_url, again.api_key) == ("gpt-4.1", None, first.api_key)
    applied(ask, "pollux-provider/cli: {provider: openai, model: gpt-4.1, api_key: null}")
    assert saved().api_key is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "blocks.yaml names no blocks"),
        ("pollux-provider/x: [", "cannot be read as YAML"),
        ("gemini: {provider: gemini, model: m}", "blocks.yaml, gemini has no name"),
        ("pollux-thing/x: {a: 1}", "no block type is called 'pollux-thing'. Ours are"),
        (
            "pollux-provider/x: {provider: gemini}",
            "blocks.yaml, pollux-provider/x: PolluxProvider is not usable: model is",
        ),
        ("pollux-provider/x: {provider: gemini, modle: m}", "modle is not among its fields"),
        (
            "pollux-provider/x: {provider: gemini, model: m, api_key: sk-123}",
            "api_key is a secret, and stands in the file",
        ),
        ("pollux-provider/x: {provider: gemini, model: m, api_key: {env: NO_SUCH}}", "NO_SUCH, which is not set"),
        (
            "pollux-provider/Not A Name: {provider: gemini, model: m}",
            "blocks.yaml, pollux-provider/Not A Name has no name",
        ),
    ],
)
def test_refused_before_anything_is_saved(pollux: Command, text: str, said: str) -> None:
    good = "pollux-provider/first: {provider: gemini, model: m}\n"
    told = applied(pollux, f"{good}{text}" if text.startswith("pollux-provider/x: {") else text)
    assert said in told
    assert "sk-123" not in told
    with pytest.raises(Exception, match="first"):
        saved("first")


def test_no_files(pollux: Command) -> None:
    assert "There is no file blocks, nor a folder of that name" in pollux("apply")


# --- run and submit -----------------------------------------------------------------------------------------


def test_answers_are_printed(ask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("run", "Why?", "--provider", "cli") == "Simulated answer to: Why?\n"
    assert "# Why?\n\nSimulated answer to: Why?\n\n# How?" in ask("run", "Why?", "How?", "-p", "cli")
    Path("prompts.txt").write_text("Why?\n\nHow?\n")
    read = ask("run", "--prompts", "prompts.txt", "-p", "cli")
    Path("prompts.json").write_text('["Why?", "How?"]')
    assert ask("run", "--prompts", "prompts.json", "-p", "cli") == read
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\nHow?\n"))
    assert ask("run", "--prompts", "-", "-p", "cli") == read


def test_an_envelope_for_machines(ask: Command, simulator: Simulator) -> None:
    Path("city.json").write_text('{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}')
    Path("notes.txt").write_text("Bern has 134,000 people.")
    words = ["Which?", "-p", "cli", "--schema", "city.json", "--source", "notes.txt", "--system", "Be short."]
    envelope = ResultEnvelope.model_validate_json(ask("run", *words, "--json"))
    assert envelope.structured is not None
    assert envelope.structured[0].keys() == {"name"}
    sent = json.dumps([entry.body for entry in simulator.log.entries()])
    assert "134,000 people" in sent
    assert "Be short." in sent


def test_what_was_answered_is_printed_and_what_was_not_is_told(ask: Command) -> None:
    told = ask("run", "Why?", "[[simulate: status=400]] How?", "-p", "cli")
    assert told.startswith("refused: 1 of 2 prompts were not answered")
    assert "Simulated answer to: Why?" in told
    assert "(no answer: openai answered 400: " in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "-p", "cli"], "There is no prompt"),
        (["run", "Why?", "--prompts", "x.txt", "-p", "cli"], "There are prompts and a file of prompts"),
        (["run", "--prompts", "x.txt", "-p", "cli"], "x.txt cannot be read"),
        (["run", "Why?", "-p", "nobody"], "There is no PolluxProvider called 'nobody' on this server. Save it"),
        (["run", "Why?", "-p", "cli", "-s", "missing.pdf"], "There is no file 'missing.pdf' to read"),
        (["run", "Why?", "-p", "cli", "--schema", "missing.json"], "missing.json cannot be read"),
        (["cancel", "nothing"], "nothing"),
        (["collect", "nothing"], "nothing"),
    ],
)
def test_refused_in_words(ask: Command, words: list[str], said: str) -> None:
    told = ask(*words)
    assert told.startswith("refused: ")
    assert said in told


# --- Jobs ---------------------------------------------------------------------------------------------------


def test_a_job_from_its_submission_to_its_end(ask: Command, simulator: Simulator) -> None:
    assert ask("jobs") == "No job is under way.\n"
    simulator.batch_s = 3600
    name = ask("submit", *PROMPTS, "-p", "cli", "--output", "answers/").strip()
    assert name in ask("jobs")
    assert "0 collected, 1 under way." in ask("collect")
    simulator.batch_s = 0
    other = ask("submit", *PROMPTS, "-p", "cli", "--output", "answers/").strip()
    (row,) = CollectReport.model_validate_json(ask("collect", other, "--json")).rows
    assert (row.job, row.collected, row.succeeded) == (other, True, 4)
    (file,) = Path("answers").glob("*.jsonl")
    assert [json.loads(line)["answer"] for line in file.read_text().splitlines()] == ANSWERS
    assert other not in ask("jobs")
    assert "4 of 4" in ask("jobs", "--all")
    assert ask("cancel", name).startswith(f"{name}: cancel")


# --- doctor -------------------------------------------------------------------------------------------------


def test_all_is_there(ask: Command) -> None:
    lines = ask("doctor").splitlines()
    assert "ok  Provider cli: openai gpt-4.1-mini, with a key" in lines
    assert any(line.startswith("ok  State: ") for line in lines)
    assert any(line.startswith("ok  Server: http://127.0.0.1:") for line in lines)
    assert lines[-1] == "Next: pollux-flows serve"


def test_jobs_that_nobody_collects(ask: Command, simulator: Simulator) -> None:
    simulator.batch_s = 3600
    ask("submit", "Why?", "-p", "cli")
    assert "?   Deferred jobs: 1 under way, but collect is not on a schedule" in ask("doctor")


def test_a_state_that_cannot_be_written_to(ask: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "file"))
    told = ask("doctor")
    assert told.startswith("refused: 2 ")
    assert "NO  State: " in told
    assert told.splitlines()[-1].startswith("Next: make the state writable")


def test_serve_allows_folders(pollux: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides those that the setting names; runs inherit it."""
    seen = []
    monkeypatch.setattr("prefect.serve", lambda *_, **__: seen.append(os.environ["POLLUX_ALLOW_PATHS"]))
    monkeypatch.setenv("POLLUX_ALLOW_PATHS", "/data")
    pollux("serve", "--allow", "more", "--allow", "s3://bucket/answers")
    assert seen == [f"/data:{Path.cwd()}/more:s3://bucket/answers"]
