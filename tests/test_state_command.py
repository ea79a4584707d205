"""pollux-flows state: what a person sees of what is kept, and removes of it."""

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
def state(home: Path, capsys: pytest.CaptureFixture[str]) -> Command:  # noqa: ARG001 (where it is)
    """What `pollux-flows state …` prints, or says on its way out."""

    def command(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app(["state", *words])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return printed.out if left.value.code in (None, 0) else f"refused: {left.value} {printed.out}"

    return command


async def ran(name: str, days_ago: float, answers: int = 10, cost: float | None = 0.01) -> None:
    """A run, which was answered."""
    clock = Clock(time.time() - days_ago * DAY)
    journal = Journal(open_store(), name, clock)
    await journal.begin()
    for index in range(answers):
        answer = Answer(text="x" * 2000, finish_reason="stop")
        outcome = Outcome(index=0, identity="a", answer=answer, attempts=1, cost_usd=cost)
        await journal.save_answer(f"{name} {index}", outcome)
        clock.now += 0.001


def three_runs() -> None:
    for name, days_ago, cost in (("long ago", 60, None), ("[bold]last week", 7, 0.5), ("today", 0.1, 0.01)):
        asyncio.run(ran(name, days_ago, cost=cost))


# --- Showing ------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_shown(state: Command, home: Path) -> None:
    """Where, how much, how many, since when, and the last runs with what they cost, in a person's words."""
    three_runs()
    said = state()
    assert said == state("show")
    assert f"{home}/state: " in said
    assert "of at most 2.0 GB. Answers are stored for 90 days." in said
    assert "Answers              │ 30 " in said
    runs = said[said.index("The last runs") :]
    assert [name in runs for name in ("today", "[bold]last week", "long ago")] == [True] * 3
    assert runs.index("today") < runs.index("[bold]last week") < runs.index("long ago")
    assert "$5.00" in runs
    assert "unknown of 10" in runs
    assert "long ago" not in state("--runs", "2")


def test_what_is_kept_is_told_to_machines(state: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in numbers."""
    three_runs()
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "1GB")
    monkeypatch.setenv("POLLUX_STATE_KEEP_DAYS", "30")
    told = json.loads(state("--json"))
    assert told["records"] == {"run": 3, "answer": 30, "pointer": 30}
    assert (told["max_size_bytes"], told["kept_days"], told["unreadable"]) == (1_000_000_000, 30.0, 0)
    assert [run["name"] for run in told["runs"]] == ["today", "[bold]last week", "long ago"]
    assert told["runs"][1]["cost_usd"] == pytest.approx(5.0)
    assert told["newest_at"] - told["oldest_at"] == pytest.approx(59.9 * DAY, abs=60)
    assert told["size_bytes"] > 60_000


def test_where_nothing_is_kept_that_is_said(state: Command, home: Path) -> None:
    """And nothing is made."""
    assert state() == "Nothing is stored yet.\n"
    assert state("--json") == "null\n"
    assert state("prune", "--older-than", "30d") == "Nothing is stored yet.\n"
    assert not home.exists()


def test_a_redis_is_shown_without_its_password(state: Command, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what bounds it there."""
    server.tell("CONFIG", "SET", "requirepass", "s3cret")
    monkeypatch.setenv("POLLUX_STATE_URL", server.url.replace("//", "//:s3cret@"))
    three_runs()
    said = state()
    assert server.url.removeprefix("redis://") in said
    assert "In Redis, answers are removed only by age" in said
    assert "Answers              │ 30 " in said
    assert "Removed 10 answers" in state("prune", "--older-than", "30d")
    assert "s3cret" not in said + state("--json") + state("prune", "--max-size", "1kB")
    server.kill()
    assert state().startswith(f"refused: The Redis at {server.url.removeprefix('redis://')} cannot be reached")


# --- Pruning ------------------------------------------------------------------------------------------------------


def test_who_says_nothing_is_told_what_there_is(state: Command) -> None:
    """Nothing goes that was not asked for."""
    three_runs()
    for words in ([], ["--dry-run"]):
        said = state("prune", *words)
        assert said.startswith("refused: Choose what to remove")
        assert all(option in said for option in ("--older-than", "--max-size", "--run", "--damaged", "--dry-run"))
    assert json.loads(state("--json"))["records"]["answer"] == 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--older-than", "30"], "--older-than is not an age: '30'. Write it as 90m, 12h, 30d or 8w."),
        (["--max-size", "half"], "--max-size is not a size: 'half'. Write it as 500MB or 2GiB."),
        (["--run", "a", "--older-than", "3d"], "--run removes all answers of that run"),
        (["--run", "today", "--max-size", "1GB"], "--run removes all answers of that run"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(state: Command, words: list[str], said: str) -> None:
    three_runs()
    assert state("prune", *words).startswith(f"refused: {said}")
    assert json.loads(state("--json"))["records"]["answer"] == 30


def test_old_answers_are_pruned(state: Command) -> None:
    """After a look at what would go."""
    three_runs()
    for words, did in ((["--dry-run"], "Would remove"), ([], "Removed"), ([], "Removed 0 answers")):
        said = state("prune", "--older-than", "30d", *words)
        assert said.startswith(did)
        assert ("10 answers, 1 run without answers, and 10 other records, which " in said) is ("0 answers" not in did)
    assert [run["name"] for run in json.loads(state("--json"))["runs"]] == ["today", "[bold]last week"]


def test_the_oldest_are_pruned(state: Command) -> None:
    three_runs()
    assert state("prune", "--max-size", "120 kB").startswith("Removed ")
    told = json.loads(state("--json"))
    assert told["size_bytes"] <= 120_000
    assert told["runs"][0]["name"] == "today"
    assert told["records"]["answer"] >= 10


def test_a_run_is_pruned(state: Command) -> None:
    three_runs()
    assert state("prune", "--run", "today").startswith("Removed 10 answers, 1 run without answers")
    assert json.loads(state("--json"))["records"]["answer"] == 20
    assert state("prune", "--run", "today").startswith("refused: No answers of a run named 'today' are stored.")


def test_a_damaged_answer_is_asked_for_again_once_it_is_pruned(
    state: Command, config: MakeConfig, sim: Simulator, home: Path
) -> None:
    """Until then the run refuses, and pays for nothing. All others are still there."""

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


def test_damage_that_stays_is_named(state: Command, home: Path) -> None:
    """With what to do about it."""
    three_runs()
    damaged = {"upload/1": b"{", "hash/1": b"{"}
    for key, data in damaged.items():
        asyncio.run(open_store().put(key, {}))
        damage(f"disk:{home / 'state'}", key, data)
    assert "2 records cannot be read: pollux-flows state prune --damaged --dry-run lists the damaged ones." in state()
    said = state("prune", "--damaged", "--older-than", "30d").splitlines()
    assert said[:2] == ["Removed 1 damaged record.", "hash/1"]
    assert said[2].startswith("Left 1 damaged record, as these say which files are still at a provider. Restore")
    assert said[3] == "upload/1"
    assert said[4].startswith("Removed 10 answers")


def test_a_run_at_work_is_named(state: Command) -> None:
    """Its answers stay."""
    three_runs()

    async def at_work(*words: str) -> str:
        async with places.at_work(open_store(), "today"):
            return await asyncio.to_thread(state, "prune", *words)

    assert "less than a day ago: 1 run." in asyncio.run(at_work("--older-than", "0d"))
    assert asyncio.run(at_work("--run", "today")).startswith("refused: The run today is still running.")
    assert [run["name"] for run in json.loads(state("--json"))["runs"]] == ["today"]


def test_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (([], "state"), (["state"], "prune"), (["state", "prune"], "--older-than")):
        with pytest.raises(SystemExit):
            app([*words, "--help"])
        assert named in capsys.readouterr().out
