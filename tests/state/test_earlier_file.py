"""Files that version 0.1.0 wrote through diskcache are read, written and pruned without a conversion."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from diskcache import Cache

from pollux_flows.state.disk import DiskStore
from pollux_flows.state.journal import Journal
from pollux_flows.state.ledger import Ledger
from pollux_flows.state.maintenance import prune, survey
from tests.state.places import DAY, Clock, list_keys, list_rows

# Written by version 0.1.0: a run with two answers, an upload that a job owns, and a record with a minute to live.
EARLIER = Path(__file__).parent / "data" / "state-0.1.0.db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    shutil.copy(EARLIER, tmp_path / "state" / "cache.db")
    return tmp_path / "state"


@pytest.fixture
def clock() -> Clock:
    """The clock of the run that wrote the file."""
    return Clock(1_790_000_000.0)


async def test_answers_and_uploads_of_an_earlier_file_are_found(folder: Path, clock: Clock) -> None:
    store = DiskStore(folder)
    outcomes = await Journal(store, "nightly", clock).load_own(["a", "b", "c"])
    assert {call: outcome.answer and outcome.answer.text for call, outcome in outcomes.items()} == {
        "a": "Answer a",
        "b": "Answer b",
    }
    assert (await Journal(store, "other", clock).load_reusable(["a"], DAY)).keys() == {"a"}
    (due,) = await Ledger(store, clock).release("job")
    assert due.uploaded is not None
    assert due.uploaded.file_id == "file-1"


async def test_an_earlier_file_can_be_written_to_and_pruned(folder: Path, clock: Clock) -> None:
    store = DiskStore(folder)
    await store.put("new", {"at": clock()})
    assert await store.swap("short", {"ends": True}, {"ends": False})
    assert await store.add("short", {}) is False
    clock.now += 2 * DAY
    pruned = await prune(store, older_than_s=DAY, clock=clock)
    assert (pruned.answers, pruned.runs) == (2, 1)
    assert {key.partition("/")[0] for key in await list_keys(store)} == {"new", "owner", "short", "upload"}


async def test_an_earlier_file_can_be_surveyed(folder: Path) -> None:
    found = await survey(DiskStore(folder))
    assert found.records == {"run": 1, "answer": 2, "pointer": 2, "owner": 1, "upload": 1}
    assert (found.expired, found.unreadable) == (1, 0)


async def test_an_earlier_version_can_share_a_new_file(tmp_path: Path) -> None:
    """The table has the layout of diskcache."""
    store = DiskStore(tmp_path / "state")
    await store.put_many({"a": {"n": 1}, "b": {"n": 2}})
    with Cache(str(tmp_path / "state"), eviction_policy="none", cull_limit=0) as earlier:
        assert earlier.get("a") == b'{"n":1}'
        earlier.set("b", b'{"n":3}')
        earlier.set("c", b'{"n":4}')
    assert [(row.key, row.record) for row in await list_rows(store)] == [
        ("a", {"n": 1}),
        ("b", {"n": 3}),
        ("c", {"n": 4}),
    ]
