"""Tests of `pollux-flows` in a shell: apply, run, submit, jobs, collect, cancel, doctor and serve."""

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
    """Return a function that runs `pollux-flows …` and returns its output, or `refused:` and the message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app(list(words))
        printed = capsys.readouterr()
        return printed.out if caught.value.code in (None, 0) else f"refused: {caught.value} {printed.out}"

    return command


@pytest.fixture
def pollux_with_provider(pollux: Command, world: tuple[Simulator, str], simulator: Simulator) -> Command:
    """Return the function `pollux` once a provider named `cli` is saved."""
    simulator.batch_s = 0
    address = simulator.base_url("openai", origin=world[1])
    fields = f"provider: openai, model: gpt-4.1-mini, base_url: {address!r}, api_key: {{env: CLI_KEY}}"
    apply_blocks(pollux, f"pollux-provider/cli: {{{fields}}}")
    return pollux


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLI_KEY", "sk-from-the-environment")


def apply_blocks(pollux: Command, text: str) -> str:
    Path("blocks.yaml").write_text(text)
    return pollux("apply", "blocks.yaml")


def load_provider(name: str = "cli") -> PolluxProvider:
    return cast(PolluxProvider, PolluxProvider.load(name))


# --- apply --------------------------------------------------------------------------------------------------


def test_the_block_files_of_the_repository_can_be_applied(pollux: Command) -> None:
    folder = Path(__file__).parents[2] / "blocks"
    printed = pollux("apply", str(folder)).splitlines()
    assert "pollux-provider/simulated: created" in printed
    assert set(pollux("apply", str(folder)).splitlines()) == {line.replace("created", "unchanged") for line in printed}


def test_applying_a_file_lists_changed_fields_and_keeps_the_key(pollux_with_provider: Command) -> None:
    first = load_provider()
    assert first.api_key is not None
    assert first.api_key.get_secret_value() == "sk-from-the-environment"
    printed = apply_blocks(
        pollux_with_provider, "pollux-provider/cli: {provider: openai, model: gpt-4.1, request_concurrency: 3}"
    )
    assert printed == "pollux-provider/cli: changed (model, base_url, request_concurrency)\n"
    again = load_provider()
    assert (again.model, again.base_url, again.api_key) == ("gpt-4.1", None, first.api_key)
    apply_blocks(pollux_with_provider, "pollux-provider/cli: {provider: openai, model: gpt-4.1, api_key: null}")
    assert load_provider().api_key is None


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_an_invalid_file_is_refused_before_anything_is_saved(pollux: Command, text: str, message: str) -> None:
    good = "pollux-provider/first: {provider: gemini, model: m}\n"
    printed = apply_blocks(pollux, f"{good}{text}" if text.startswith("pollux-provider/x: {") else text)
    assert message in printed
    assert "sk-123" not in printed
    with pytest.raises(Exception, match="first"):
        load_provider("first")


def test_apply_without_a_file_is_refused(pollux: Command) -> None:
    assert "There is no file blocks, nor a folder of that name" in pollux("apply")


# --- run and submit -----------------------------------------------------------------------------------------


def test_run_takes_prompts_from_arguments_files_and_standard_input(
    pollux_with_provider: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pollux_with_provider("run", "Why?", "--provider", "cli") == "Simulated answer to: Why?\n"
    assert "# Why?\n\nSimulated answer to: Why?\n\n# How?" in pollux_with_provider("run", "Why?", "How?", "-p", "cli")
    Path("prompts.txt").write_text("Why?\n\nHow?\n")
    read = pollux_with_provider("run", "--prompts", "prompts.txt", "-p", "cli")
    Path("prompts.json").write_text('["Why?", "How?"]')
    assert pollux_with_provider("run", "--prompts", "prompts.json", "-p", "cli") == read
    Path("prompts.csv").write_text("id,question\n1,Why?\n2,How?\n")
    assert pollux_with_provider("run", "--prompts", "prompts.csv#question", "-p", "cli") == read
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\nHow?\n"))
    assert pollux_with_provider("run", "--prompts", "-", "-p", "cli") == read


def test_run_also_writes_its_answers_to_the_output(pollux_with_provider: Command) -> None:
    assert pollux_with_provider("run", "Why?", "-p", "cli", "--output", "answers.csv") == "Simulated answer to: Why?\n"
    assert "1,,,Why?,answered,Simulated answer to: Why?," in Path("answers.csv").read_text()
    assert "ends with none of .jsonl, .ndjson, .csv" in pollux_with_provider(
        "run", "Why?", "-p", "cli", "--output", "answers.xlsx"
    )


def test_run_prints_an_envelope_as_json(pollux_with_provider: Command, simulator: Simulator) -> None:
    Path("city.json").write_text('{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}')
    Path("notes.txt").write_text("Bern has 134,000 people.")
    words = ["Which?", "-p", "cli", "--schema", "city.json", "--source", "notes.txt", "--system", "Be short."]
    envelope = ResultEnvelope.model_validate_json(pollux_with_provider("run", *words, "--json"))
    assert envelope.structured is not None
    assert envelope.structured[0].keys() == {"name"}
    sent = json.dumps([entry.body for entry in simulator.log.entries()])
    assert "134,000 people" in sent
    assert "Be short." in sent


def test_run_prints_answers_and_failures_of_a_partial_run(pollux_with_provider: Command) -> None:
    printed = pollux_with_provider("run", "Why?", "[[simulate: status=400]] How?", "-p", "cli")
    assert printed.startswith("refused: 1 of 2 prompts were not answered")
    assert "Simulated answer to: Why?" in printed
    assert "(no answer: openai answered 400: " in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "-p", "cli"], "There is no prompt"),
        (["run", "Why?", "--prompts", "x.txt", "-p", "cli"], "There are prompts and a file with prompts"),
        (["run", "--prompts", "x.txt", "-p", "cli"], "x.txt cannot be read"),
        (["run", "Why?", "-p", "unknown"], "There is no PolluxProvider named 'unknown' on this server. Save it"),
        (["run", "Why?", "-p", "cli", "-s", "missing.pdf"], "There is no file 'missing.pdf' to read"),
        (["run", "Why?", "-p", "cli", "--schema", "missing.json"], "missing.json cannot be read"),
        (["cancel", "nothing"], "nothing"),
        (["collect", "nothing"], "nothing"),
    ],
)
def test_invalid_arguments_are_refused_with_a_message(
    pollux_with_provider: Command, words: list[str], message: str
) -> None:
    printed = pollux_with_provider(*words)
    assert printed.startswith("refused: ")
    assert message in printed


def run_command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the command; return its exit code, and what it printed on standard output and on standard error."""
    with pytest.raises(SystemExit) as caught:
        app(list(words))
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


@pytest.mark.usefixtures("pollux_with_provider")
@pytest.mark.parametrize(
    ("words", "code", "last"),
    [
        (["run", "Why?", "-p", "cli"], 0, ""),
        (["run", "Why?", "[[simulate: status=400]]", "-p", "cli"], 1, "1 of 2 prompts were not answered."),
        (["run", "Why?"], 2, 'Command "run" parameter --provider requires an argument. See pollux-flows run --help.'),
        (["run", "Why?", "-p", "unknown"], 2, "There is no PolluxProvider named 'unknown' on this server."),
        (["jobs", "--watch"], 2, "--watch is for a terminal."),
    ],
)
def test_a_command_ends_with_an_exit_code_and_at_most_one_line_of_error(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, last: str
) -> None:
    """A pipe gets no lines of a log."""
    found, _, errors = run_command(capsys, *words)
    assert found == code
    if last:
        (line,) = errors.splitlines()
        assert line.startswith(last)


@pytest.mark.usefixtures("pollux")
@pytest.mark.parametrize("command", ["jobs", "collect", "caches", "apply", "doctor"])
def test_a_command_names_a_server_that_does_not_answer(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("blocks").mkdir()
    Path("blocks/one.yaml").write_text("pollux-provider/x: {provider: gemini, model: m}")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        code, out, errors = run_command(capsys, command)
    assert code == 3
    assert "http://127.0.0.1:9/api does not answer" in out + errors
    if command == "doctor":
        assert out.splitlines()[-1].startswith("Next: prefect server start, or ")


@pytest.mark.usefixtures("pollux")
@pytest.mark.parametrize("command", ["jobs", "collect", "caches", "run Why? -p cli", "answers x", "apply", "doctor"])
def test_an_address_without_the_path_of_the_api_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is found at such an address, which must not be read as "no jobs"."""
    Path("blocks").mkdir()
    Path("blocks/one.yaml").write_text("pollux-provider/x: {provider: gemini, model: m}")
    with temporary_settings({PREFECT_API_URL: str(PREFECT_API_URL.value()).removesuffix("/api")}):
        code, out, errors = run_command(capsys, *command.split())
    assert code == 3
    assert re.search("PREFECT_API_URL.* it ends in /api", out + errors)
    if command != "doctor":
        assert (out, errors.count("\n")) == ("", 1)


def test_run_names_a_missing_key_before_it_starts(
    pollux: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    apply_blocks(pollux, "pollux-provider/no-key: {provider: openai, model: m}")
    code, _, errors = run_command(capsys, "run", "Why?", "-p", "no-key")
    assert code == 2
    assert errors.startswith('PolluxProvider "no-key", field api_key: there is no API key for openai')


@pytest.mark.usefixtures("pollux_with_provider")
def test_run_shows_a_progress_bar_on_standard_error_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard output has only the answers, so that they can be piped."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    _, out, errors = run_command(capsys, "run", "Why?", "How?", "-p", "cli")
    bar = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", errors)
    assert re.search(r"Answered .* 2/2 · [1-9]\d* tokens · \$0\.0+[1-9]\d* · left ", bar)
    assert out == "# Why?\n\nSimulated answer to: Why?\n\n# How?\n\nSimulated answer to: How?\n\n"


# --- Jobs ---------------------------------------------------------------------------------------------------


def test_jobs_are_submitted_listed_collected_and_cancelled(pollux_with_provider: Command, simulator: Simulator) -> None:
    assert pollux_with_provider("jobs") == "No job is under way.\n"
    simulator.batch_s = 3600
    name = pollux_with_provider("submit", *PROMPTS, "-p", "cli", "--output", "answers/").strip()
    assert name in pollux_with_provider("jobs")
    assert "0 collected, 1 under way." in pollux_with_provider("collect")
    simulator.batch_s = 0
    other = pollux_with_provider("submit", *PROMPTS, "-p", "cli", "--output", "answers/").strip()
    (row,) = CollectReport.model_validate_json(pollux_with_provider("collect", other, "--json")).rows
    assert (row.job, row.collected, row.succeeded) == (other, True, 4)
    (file,) = Path("answers").glob("*.jsonl")
    assert [json.loads(line)["answer"] for line in file.read_text().splitlines()] == ANSWERS
    assert other not in pollux_with_provider("jobs")
    assert "4 of 4" in pollux_with_provider("jobs", "--all")
    assert pollux_with_provider("cancel", name).startswith(f"{name}: cancel")


def test_jobs_are_watched_until_ctrl_c(
    pollux_with_provider: Command, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not answer for a while does not end the watch."""
    simulator.batch_s = 3600
    name = pollux_with_provider("submit", "Why?", "-p", "cli").strip()
    list_jobs = BlockJobStore.list_jobs
    events: list[BaseException | None] = [None, httpx.ConnectError("refused"), KeyboardInterrupt()]

    async def list_or_fail(store: BlockJobStore) -> Any:
        if (event := events.pop(0)) is not None:
            raise event
        return await list_jobs(store)

    monkeypatch.setattr(BlockJobStore, "list_jobs", list_or_fail)
    monkeypatch.setattr("pollux_flows.cli.jobs._WATCH_EVERY_S", 0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = pollux_with_provider("jobs", "--watch")
    assert shown.count(name) >= 2
    assert "The Prefect server does not answer." in shown
    assert events == []


# --- doctor -------------------------------------------------------------------------------------------------


def test_doctor_lists_a_usable_provider_state_and_server(pollux_with_provider: Command) -> None:
    lines = pollux_with_provider("doctor").splitlines()
    assert "ok  Provider cli: openai gpt-4.1-mini, with a key" in lines
    assert any(line.startswith("ok  State: ") for line in lines)
    assert any(line.startswith("ok  Server: http://127.0.0.1:") for line in lines)
    assert lines[-1] == "Next: pollux-flows serve"


def test_doctor_reports_jobs_without_a_schedule_of_collect(pollux_with_provider: Command, simulator: Simulator) -> None:
    simulator.batch_s = 3600
    pollux_with_provider("submit", "Why?", "-p", "cli")
    assert "?   Deferred jobs: 1 under way, but collect is not on a schedule" in pollux_with_provider("doctor")


def test_doctor_reports_a_state_that_cannot_be_written_to(
    pollux_with_provider: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "file"))
    printed = pollux_with_provider("doctor")
    assert printed.startswith("refused: 2 ")
    assert "NO  State: " in printed
    assert printed.splitlines()[-1].startswith("Next: make the state writable")


def test_serve_adds_allowed_folders_to_those_of_the_environment(
    pollux: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs inherit the variable with these folders."""
    seen = []
    monkeypatch.setattr("prefect.serve", lambda *_, **__: seen.append(os.environ["POLLUX_ALLOW_PATHS"]))
    monkeypatch.setenv("POLLUX_ALLOW_PATHS", "/data")
    pollux("serve", "--allow", "more", "--allow", "s3://bucket/answers")
    assert seen == [f"/data:{Path.cwd()}/more:s3://bucket/answers"]
