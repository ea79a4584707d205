"""pollux-flows from a shell: blocks applied, prompts asked, jobs followed."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from pollux_flows import ResultEnvelope
from pollux_flows.blocks import PolluxProvider
from pollux_flows.cli import app
from pollux_flows.deferred.report import CollectReport
from pollux_flows.jobs.store import BlockJobStore
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
    assert set(pollux("apply", str(folder)).splitlines()) == {line.replace("created", "unchanged") for line in told}


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
        ("pollux-thing/x: {a: 1}", "there is no block type 'pollux-thing'. Write one of"),
        (
            "pollux-provider/x: {provider: gemini}",
            "blocks.yaml, pollux-provider/x: PolluxProvider is not usable: model is",
        ),
        ("pollux-provider/x: {provider: gemini, modle: m}", "modle is not among its fields"),
        (
            "pollux-provider/x: {provider: gemini, model: m, api_key: sk-123}",
            "api_key is a secret, and is written in the file",
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
    Path("prompts.csv").write_text("id,question\n1,Why?\n2,How?\n")
    assert ask("run", "--prompts", "prompts.csv#question", "-p", "cli") == read
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\nHow?\n"))
    assert ask("run", "--prompts", "-", "-p", "cli") == read


def test_answers_are_written_as_well(ask: Command) -> None:
    assert ask("run", "Why?", "-p", "cli", "--output", "answers.csv") == "Simulated answer to: Why?\n"
    assert "1,,,Why?,answered,Simulated answer to: Why?," in Path("answers.csv").read_text()
    assert "ends with none of .jsonl, .ndjson, .csv" in ask("run", "Why?", "-p", "cli", "--output", "answers.xlsx")


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
        (["run", "Why?", "--prompts", "x.txt", "-p", "cli"], "There are prompts and a file with prompts"),
        (["run", "--prompts", "x.txt", "-p", "cli"], "x.txt cannot be read"),
        (["run", "Why?", "-p", "nobody"], "There is no PolluxProvider named 'nobody' on this server. Save it"),
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


def ended(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the command; return its exit code, and what it printed on standard output and on standard error."""
    with pytest.raises(SystemExit) as left:
        app(list(words))
    printed = capsys.readouterr()
    return int(left.value.code or 0), printed.out, printed.err


@pytest.mark.usefixtures("ask")
@pytest.mark.parametrize(
    ("words", "code", "last"),
    [
        (["run", "Why?", "-p", "cli"], 0, ""),
        (["run", "Why?", "[[simulate: status=400]]", "-p", "cli"], 1, "1 of 2 prompts were not answered."),
        (["run", "Why?"], 2, 'Command "run" parameter --provider requires an argument. See pollux-flows run --help.'),
        (["run", "Why?", "-p", "nobody"], 2, "There is no PolluxProvider named 'nobody' on this server."),
        (["jobs", "--watch"], 2, "--watch is for a terminal."),
    ],
)
def test_how_a_command_ends(capsys: pytest.CaptureFixture[str], words: list[str], code: int, last: str) -> None:
    """With a code for scripts, one line for people, and nothing of a log in a pipe."""
    found, _, errors = ended(capsys, *words)
    assert found == code
    if last:
        (line,) = errors.splitlines()
        assert line.startswith(last)


@pytest.mark.usefixtures("pollux")
@pytest.mark.parametrize("command", ["jobs", "collect", "caches", "apply", "doctor"])
def test_a_server_that_does_not_answer(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("blocks").mkdir()
    Path("blocks/one.yaml").write_text("pollux-provider/x: {provider: gemini, model: m}")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        code, out, errors = ended(capsys, command)
    assert code == 3
    assert "http://127.0.0.1:9/api does not answer" in out + errors
    if command == "doctor":
        assert out.splitlines()[-1].startswith("Next: prefect server start, or ")


@pytest.mark.usefixtures("pollux")
@pytest.mark.parametrize("command", ["jobs", "collect", "caches", "run Why? -p cli", "answers x", "apply", "doctor"])
def test_an_address_that_is_not_that_of_an_api(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """There, nothing at all is found: that is not to be read as "no jobs"."""
    Path("blocks").mkdir()
    Path("blocks/one.yaml").write_text("pollux-provider/x: {provider: gemini, model: m}")
    with temporary_settings({PREFECT_API_URL: str(PREFECT_API_URL.value()).removesuffix("/api")}):
        code, out, errors = ended(capsys, *command.split())
    assert code == 3
    assert re.search("PREFECT_API_URL.* it ends in /api", out + errors)
    if command != "doctor":
        assert (out, errors.count("\n")) == ("", 1)


def test_a_missing_key_is_named_before_a_run_is_started(
    pollux: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    applied(pollux, "pollux-provider/no-key: {provider: openai, model: m}")
    code, _, errors = ended(capsys, "run", "Why?", "-p", "no-key")
    assert code == 2
    assert errors.startswith('PolluxProvider "no-key", field api_key: there is no API key for openai')


@pytest.mark.usefixtures("ask")
def test_a_terminal_shows_how_far_a_run_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error: the answers can be piped on."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    _, out, errors = ended(capsys, "run", "Why?", "How?", "-p", "cli")
    bar = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", errors)
    assert re.search(r"Answered .* 2/2 · [1-9]\d* tokens · \$0\.0+[1-9]\d* · left ", bar)
    assert out == "# Why?\n\nSimulated answer to: Why?\n\n# How?\n\nSimulated answer to: How?\n\n"


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


def test_jobs_are_watched_until_ctrl_c(ask: Command, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the server is restarted."""
    simulator.batch_s = 3600
    name = ask("submit", "Why?", "-p", "cli").strip()
    list_jobs = BlockJobStore.list_jobs
    events: list[BaseException | None] = [None, httpx.ConnectError("refused"), KeyboardInterrupt()]

    async def list_or_fail(store: BlockJobStore) -> Any:
        if (event := events.pop(0)) is not None:
            raise event
        return await list_jobs(store)

    monkeypatch.setattr(BlockJobStore, "list_jobs", list_or_fail)
    monkeypatch.setattr("pollux_flows.cli.jobs._WATCH_EVERY_S", 0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = ask("jobs", "--watch")
    assert shown.count(name) >= 2
    assert "The Prefect server does not answer." in shown
    assert events == []


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
