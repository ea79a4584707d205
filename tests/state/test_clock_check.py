"""Expiry: expired records are removed, and a wrong clock costs no answer."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from pollux_flows.result import Answer, Outcome
from pollux_flows.state import disk, maintenance, process
from pollux_flows.state.clock_check import APART_S, LARGEST_JUMP_S, Expiry
from pollux_flows.state.disk import DiskStore
from pollux_flows.state.journal import Journal
from pollux_flows.state.maintenance import prune
from pollux_flows.state.store import Store
from tests.state.places import DAY, Clock, list_keys, open_store_at

HOUR = 3600.0
ANSWER = Outcome(index=0, identity="a", answer=Answer(text="x" * 2000, finish_reason="stop"), attempts=1)


class Machine:
    """A machine with a wall clock and a monotonic clock."""

    def __init__(self) -> None:
        self.wall, self.monotonic = Clock(), Clock(1000.0)

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.wall.now += seconds
        self.monotonic.now += seconds

    def open_expiry(self, file: Path | None = None, ahead_s: float = 0.0) -> Expiry:
        """Return the expiry check of a process whose wall clock is `ahead_s` ahead."""
        return Expiry(file, clock=lambda: self.wall.now + ahead_s, monotonic=self.monotonic)

    def open_store(self, folder: Path, ahead_s: float = 0.0) -> DiskStore:
        return DiskStore(folder, clock=lambda: self.wall.now + ahead_s, monotonic=self.monotonic)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def _clean_at_each_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_CLEAN_EVERY", 0)


async def write_and_clean_up(store: Store, *keys: str) -> None:
    """Write another record, so that the store removes what has expired."""
    for key in keys or ("other",):
        await store.put(key, {})
    await store.get("other")  # the store's thread reads it after the removal, before the clock moves on


async def save_answers(store: Store, clock: Clock) -> Journal:
    """Save five answers of a run."""
    journal = Journal(store, "run", clock)
    await journal.begin()
    for call in "abcde":
        await journal.save_answer(call, ANSWER.model_copy(update={"identity": call}))
    return journal


# --- The rule -----------------------------------------------------------------------------------------------------


def test_two_checks_an_hour_apart_confirm_the_clock(machine: Machine) -> None:
    """Records that had expired at the first check may then be removed."""
    expiry, first = machine.open_expiry(), machine.wall.now
    assert expiry.cutoff() is None
    machine.advance(APART_S - 1)
    assert expiry.cutoff() is None
    machine.advance(1)
    assert expiry.cutoff() == first
    machine.advance(60)
    assert expiry.cutoff() == first
    machine.advance(HOUR)
    assert expiry.cutoff() == first + HOUR


@pytest.mark.parametrize("jump", [LARGEST_JUMP_S + 1, 100 * DAY, -100 * DAY])
def test_after_a_jump_of_the_clock_the_wait_starts_over(
    machine: Machine, jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    """There is one warning for all jumps."""
    expiry = machine.open_expiry()
    expiry.cutoff()
    machine.advance(2 * HOUR)
    assert expiry.cutoff() is not None
    with caplog.at_level(logging.WARNING, "pollux_flows"):
        for sign in (1, -1):
            machine.wall.now += sign * jump
            assert expiry.cutoff() is None
            machine.advance(HOUR - 1)
            assert expiry.cutoff() is None
    assert len(caplog.records) == 1
    assert "clock has jumped" in caplog.text
    machine.advance(1)
    assert expiry.cutoff() == machine.wall.now - HOUR


def test_a_small_correction_of_the_clock_is_no_jump(machine: Machine) -> None:
    expiry = machine.open_expiry()
    expiry.cutoff()
    machine.advance(HOUR)
    machine.wall.now -= DAY
    assert expiry.cutoff() == machine.wall.now  # the earlier of the two


def test_short_processes_share_their_checks_in_a_file(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "state" / "clock.json"
    first = machine.wall.now
    assert machine.open_expiry(file).cutoff() is None
    machine.advance(HOUR)
    assert machine.open_expiry(file).cutoff() == first
    machine.advance(60)
    assert machine.open_expiry(file).cutoff() == first
    assert machine.open_expiry(file, ahead_s=100 * DAY).cutoff() is None
    machine.advance(HOUR)
    assert machine.open_expiry(file).cutoff() is None  # they disagree about the time
    assert [path.name for path in file.parent.iterdir()] == ["clock.json"]


def test_after_a_restart_the_wait_starts_over(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that keeps running does not start over."""
    file = tmp_path / "clock.json"
    running = machine.open_expiry(file)
    running.cutoff()
    monkeypatch.setattr("pollux_flows.state.clock_check.boot_id", lambda: "another boot")
    machine.advance(HOUR)
    assert machine.open_expiry(file).cutoff() is None
    assert json.loads(file.read_text())["boot"] == "another boot"
    monkeypatch.undo()
    assert running.cutoff() is not None


@pytest.mark.parametrize("content", ["{", "[]", '{"boot": "BOOT"}', '{"boot": "BOOT", "wall": "soon"}'])
def test_a_damaged_file_of_clock_checks_is_replaced(machine: Machine, tmp_path: Path, content: str) -> None:
    file = tmp_path / "clock.json"
    file.write_text(content.replace("BOOT", process.boot_id()))
    assert machine.open_expiry(file).cutoff() is None
    machine.advance(HOUR)
    assert machine.open_expiry(file).cutoff() is not None


def test_without_a_file_each_process_confirms_the_clock_itself(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    expiry = machine.open_expiry(tmp_path / "file" / "clock.json")
    expiry.cutoff()
    machine.advance(HOUR)
    assert expiry.cutoff() is not None


# --- On a disk ----------------------------------------------------------------------------------------------------


async def test_expired_records_are_removed_once_the_clock_is_confirmed(machine: Machine, folder: Path) -> None:
    """Before that, all processes can read expired records."""
    store = machine.open_store(folder)
    await store.put("a", {"a": 1}, ttl_s=60)
    await store.put("stays", {}, ttl_s=DAY)
    machine.advance(61)
    await write_and_clean_up(store)
    assert await store.get("a") == {"a": 1}
    assert await store.add("a", {"a": 2}) is False
    assert [key async for key in store.list_keys("a")] == ["a"]
    machine.advance(HOUR)
    await write_and_clean_up(store)
    machine.advance(HOUR)
    await write_and_clean_up(store)
    assert await list_keys(store) == ["other", "stays"]
    assert await store.add("a", {"a": 2}) is True


async def test_a_clock_that_is_100_days_ahead_removes_nothing(machine: Machine, folder: Path) -> None:
    """Neither writes nor reads of the process remove answers, and the process itself finds them."""
    right, wrong = machine.open_store(folder), machine.open_store(folder, ahead_s=100 * DAY)
    journal = await save_answers(right, machine.wall)
    for number in range(60):
        await wrong.put(f"put/{number}", {})
        await wrong.add(f"added/{number}", {})
        await wrong.swap(f"added/{number}", {}, {"a": 1})
        await wrong.swap(f"added/{number}", {"a": 1}, None)
    assert await wrong.add(f"run/{journal._name}/a", {"a": 1}) is False
    ahead = Journal(wrong, "run", lambda: machine.wall.now + 100 * DAY)
    assert len(await ahead.load_own("abcde")) == 5
    assert len(await ahead.load_reusable("abcde", None)) == 5
    assert len(await journal.load_own("abcde")) == 5
    assert len(await journal.load_reusable("abcde", None)) == 5


async def test_a_clock_that_is_set_while_a_process_runs_removes_nothing(machine: Machine, folder: Path) -> None:
    store = machine.open_store(folder)
    journal = await save_answers(store, machine.wall)
    machine.advance(2 * HOUR)
    await write_and_clean_up(store)
    machine.wall.now += 100 * DAY
    await write_and_clean_up(store)
    machine.advance(HOUR - 1)
    await write_and_clean_up(store)
    machine.wall.now -= 100 * DAY  # the clock is corrected
    machine.advance(HOUR)
    await write_and_clean_up(store)
    machine.advance(HOUR)
    await write_and_clean_up(store)
    assert len(await journal.load_own("abcde")) == 5


async def test_pruning_with_a_wrong_clock_removes_only_the_oldest(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_CHECK_EVERY_S", 0.0)
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "100kB")
    right, wrong = machine.open_store(folder), machine.open_store(folder, ahead_s=100 * DAY)
    await right.put("job/mine", {"at": machine.wall.now}, ttl_s=90 * DAY)
    for number in range(100):
        await right.put(f"run/{number:064}/a", {"at": machine.wall.now, "text": "x" * 1000}, ttl_s=90 * DAY)
        machine.advance(60)
    machine.advance(2 * DAY)
    ahead = Journal(wrong, "next", lambda: machine.wall.now + 100 * DAY)
    await ahead.begin()
    remaining = [key async for key in right.list_keys("run/0")]
    assert 20 < len(remaining) < 100
    assert remaining[-1] == f"run/{99:064}/a"
    assert await right.get("job/mine") is not None


async def test_explicit_pruning_does_not_wait_for_a_confirmed_clock(machine: Machine, folder: Path) -> None:
    store = machine.open_store(folder)
    journal = await save_answers(store, machine.wall)
    machine.advance(100 * DAY)
    assert (await prune(store, older_than_s=30 * DAY, clock=machine.wall)).answers == 5
    assert await journal.load_own("abcde") == {}


# --- In a Redis ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [100 * DAY, -100 * DAY])
async def test_a_wrong_clock_shortens_no_ttl_in_a_redis(
    redis_place: str, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Redis server counts by its own clock."""
    import time

    from tests.state.servers import connect

    now = time.time
    url, _, prefix = redis_place.partition("#")
    journal = await save_answers(open_store_at(f"redis:{redis_place}"), Clock())
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + ahead)
        wrong = open_store_at(f"redis:{redis_place}")
        other = Journal(wrong, "run")
        assert len(await other.load_own("abcde")) == 5
        await other.begin()
        await other.save_answer("f", ANSWER.model_copy(update={"identity": "f"}))
        await wrong.swap("mine", None, {"a": 1}, ttl_s=DAY)
    with connect(url) as redis:
        ttls = {key: redis.ttl(key) for key in redis.scan_iter(f"{prefix}record:*")}
    assert len(ttls) == 1 + 6 + 6 + 1
    mine = ttls.pop(f"{prefix}record:mine".encode())
    assert mine == pytest.approx(DAY, abs=60)
    assert all(ttl == pytest.approx(90 * DAY, abs=60) for ttl in ttls.values())
    assert len(await journal.load_own("abcdef")) == 6
