"""The command `pollux-flows state`, which shows and prunes the state."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pollux_flows import ConfigurationError, ResultEnvelope, run_many
from pollux_flows.cli import app
from pollux_flows.result import Answer, Outcome
from pollux_flows.simulator import Simulator
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import open_store
from tests.loopback import MakeConfig, asked, config, sim, world
from tests.state import places
from tests.state.conftest import redis_place, server, shared_redis
from tests.state.places import DAY, Clock, damage
from tests.state.servers import Server

__all__ = ["config", "redis_place", "server", "shared_redis", "sim", "world"]
Command = Callable[..., str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path / "home"


@pytest.fixture
def state(home: Path, capsys: pytest.CaptureFixture[str]) -> Command:  # noqa: ARG001 (the fixture sets the environment)
    """Run `pollux-flows state …`; return its output, or `refused:` and the message."""

    def run_command(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app(["state", *words])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return printed.out if caught.value.code in (None, 0) else f"refused: {caught.value} {printed.out}"

    return run_command


async def save_run(name: str, days_ago: float, answers: int = 10, cost: float | None = 0.01) -> None:
    """Save a run with this number of answers."""
    clock = Clock(time.time() - days_ago * DAY)
    journal = Journal(open_store(), name, clock)
    await journal.begin()
    for index in range(answers):
        answer = Answer(text="x" * 2000, finish_reason="stop")
        outcome = Outcome(index=0, identity="a", answer=answer, attempts=1, cost_usd=cost)
        await journal.save_answer(f"{name} {index}", outcome)
        clock.now += 0.001


def save_three_runs() -> None:
    """Save runs of today, of last week and of two months ago."""
    for name, days_ago, cost in (("long ago", 60, None), ("[bold]last week", 7, 0.5), ("today", 0.1, 0.01)):
        asyncio.run(save_run(name, days_ago, cost=cost))


# --- Showing ------------------------------------------------------------------------------------------------------


def test_show_prints_the_location_size_and_last_runs(state: Command, home: Path) -> None:
    """The output also has the limits, the number of answers and the cost of each run."""
    save_three_runs()
    output = state()
    assert output == state("show")
    assert f"{home}/state: " in output
    assert "of at most 2.0 GB. Answers are stored for 90 days." in output
    assert "Answers              │ 30 " in output
    runs = output[output.index("The last runs") :]
    assert [name in runs for name in ("today", "[bold]last week", "long ago")] == [True] * 3
    assert runs.index("today") < runs.index("[bold]last week") < runs.index("long ago")
    assert "$5.00" in runs
    assert "unknown of 10" in runs
    assert "long ago" not in state("--runs", "2")


def test_show_prints_json(state: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    save_three_runs()
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "1GB")
    monkeypatch.setenv("POLLUX_STATE_KEEP_DAYS", "30")
    data = json.loads(state("--json"))
    assert data["records"] == {"run": 3, "answer": 30, "pointer": 30}
    assert (data["max_size_bytes"], data["kept_days"], data["unreadable"]) == (1_000_000_000, 30.0, 0)
    assert [run["name"] for run in data["runs"]] == ["today", "[bold]last week", "long ago"]
    assert data["runs"][1]["cost_usd"] == pytest.approx(5.0)
    assert data["newest_at"] - data["oldest_at"] == pytest.approx(59.9 * DAY, abs=60)
    assert data["size_bytes"] > 60_000


def test_without_a_state_the_command_says_so_and_creates_nothing(state: Command, home: Path) -> None:
    assert state() == "Nothing is stored yet.\n"
    assert state("--json") == "null\n"
    assert state("prune", "--older-than", "30d") == "Nothing is stored yet.\n"
    assert not home.exists()


def test_show_prints_the_address_of_a_redis_without_its_password(
    state: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output says that answers in a Redis are removed only by age."""
    server.execute("CONFIG", "SET", "requirepass", "s3cret")
    monkeypatch.setenv("POLLUX_STATE_URL", server.url.replace("//", "//:s3cret@"))
    save_three_runs()
    output = state()
    assert server.url.removeprefix("redis://") in output
    assert "In Redis, answers are removed only by age" in output
    assert "Answers              │ 30 " in output
    assert "Removed 10 answers" in state("prune", "--older-than", "30d")
    assert "s3cret" not in output + state("--json") + state("prune", "--max-size", "1kB")
    server.kill()
    assert state().startswith(f"refused: The Redis at {server.url.removeprefix('redis://')} cannot be reached")


# --- Pruning ------------------------------------------------------------------------------------------------------


def test_prune_without_a_criterion_is_refused(state: Command) -> None:
    """The error lists the options, and nothing is removed."""
    save_three_runs()
    for words in ([], ["--dry-run"]):
        output = state("prune", *words)
        assert output.startswith("refused: Choose what to remove")
        assert all(option in output for option in ("--older-than", "--max-size", "--run", "--damaged", "--dry-run"))
    assert json.loads(state("--json"))["records"]["answer"] == 30


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["--older-than", "30"], "--older-than is not an age: '30'. Write it as 90m, 12h, 30d or 8w."),
        (["--max-size", "half"], "--max-size is not a size: 'half'. Write it as 500MB or 2GiB."),
        (["--run", "a", "--older-than", "3d"], "--run removes all answers of that run"),
        (["--run", "today", "--max-size", "1GB"], "--run removes all answers of that run"),
    ],
)
def test_invalid_options_of_prune_are_refused(state: Command, words: list[str], output: str) -> None:
    save_three_runs()
    assert state("prune", *words).startswith(f"refused: {output}")
    assert json.loads(state("--json"))["records"]["answer"] == 30


def test_prune_removes_old_answers(state: Command) -> None:
    """A dry run first shows what would be removed."""
    save_three_runs()
    for words, action in ((["--dry-run"], "Would remove"), ([], "Removed"), ([], "Removed 0 answers")):
        output = state("prune", "--older-than", "30d", *words)
        assert output.startswith(action)
        assert ("10 answers, 1 run without answers, and 10 other records, which " in output) is (
            "0 answers" not in action
        )
    assert [run["name"] for run in json.loads(state("--json"))["runs"]] == ["today", "[bold]last week"]


def test_prune_removes_the_oldest_answers_down_to_a_size(state: Command) -> None:
    save_three_runs()
    assert state("prune", "--max-size", "120 kB").startswith("Removed ")
    data = json.loads(state("--json"))
    assert data["size_bytes"] <= 120_000
    assert data["runs"][0]["name"] == "today"
    assert data["records"]["answer"] >= 10


def test_prune_removes_the_answers_of_a_run(state: Command) -> None:
    save_three_runs()
    assert state("prune", "--run", "today").startswith("Removed 10 answers, 1 run without answers")
    assert json.loads(state("--json"))["records"]["answer"] == 20
    assert state("prune", "--run", "today").startswith("refused: No answers of a run named 'today' are stored.")


def test_a_damaged_answer_is_asked_for_again_once_it_is_pruned(
    state: Command, config: MakeConfig, sim: Simulator, home: Path
) -> None:
    """Before the pruning, the run is refused without a call. Afterwards, its other answers are reused."""

    def ask() -> ResultEnvelope:
        return asyncio.run(run_many(["first", "second", "third"], config=config("openai"), run_key="monday"))

    ask()
    with closing(sqlite3.connect(home / "state" / "cache.db")) as database:
        query = "SELECT key, value FROM Cache WHERE key LIKE 'run/%/%' ORDER BY rowid LIMIT 1"
        key, data = database.execute(query).fetchone()
    damage(f"disk:{home / 'state'}", key, data.replace(b"answer to", b"answer of"))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=rf"{key} .* is damaged.*pollux-flows state prune --damaged"):
            ask()
    assert len(asked(sim)) == 3
    assert state("prune", "--damaged", "--dry-run") == f"Would remove 1 damaged record.\n{key}\n"
    assert state("prune", "--damaged") == f"Removed 1 damaged record.\n{key}\n"
    assert ask().status == "ok"
    assert len(asked(sim)) == 4


def test_prune_reports_damaged_records_that_it_does_not_remove(state: Command, home: Path) -> None:
    """The output says what to do about them."""
    save_three_runs()
    damaged = {"upload/1": b"{", "hash/1": b"{"}
    for key, data in damaged.items():
        asyncio.run(open_store().put(key, {}))
        damage(f"disk:{home / 'state'}", key, data)
    assert "2 records cannot be read: pollux-flows state prune --damaged --dry-run lists the damaged ones." in state()
    output = state("prune", "--damaged", "--older-than", "30d").splitlines()
    assert output[:2] == ["Removed 1 damaged record.", "hash/1"]
    assert output[2].startswith("Left 1 damaged record, as these say which files are still at a provider. Restore")
    assert output[3] == "upload/1"
    assert output[4].startswith("Removed 10 answers")


def test_prune_spares_and_reports_a_run_at_work(state: Command) -> None:
    """The answers of the run stay."""
    save_three_runs()

    async def prune_during_run(*words: str) -> str:
        async with places.hold_run_lease(open_store(), "today"):
            return await asyncio.to_thread(state, "prune", *words)

    assert "less than a day ago: 1 run." in asyncio.run(prune_during_run("--older-than", "0d"))
    assert asyncio.run(prune_during_run("--run", "today")).startswith("refused: The run today is still running.")
    assert [run["name"] for run in json.loads(state("--json"))["runs"]] == ["today"]


def test_the_help_names_subcommands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (([], "state"), (["state"], "prune"), (["state", "prune"], "--older-than")):
        with pytest.raises(SystemExit):
            app([*words, "--help"])
        assert named in capsys.readouterr().out
