"""Fallback files: answers that the store does not accept are saved in files, and later in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from pollux_flows.result import Answer, Outcome
from pollux_flows.state.fallback_files import save_fallback_files, write_fallback_file
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import Store
from tests.state.places import Clock


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "elsewhere"))
    return tmp_path / "home"


def make_outcome(text: str) -> Outcome:
    return Outcome(index=0, identity="a", answer=Answer(text=text, finish_reason="stop"), attempts=1)


async def load_text(journal: Journal) -> str:
    answer = (await journal.load_own(["a"]))["a"].answer
    assert answer is not None
    return answer.text


async def test_an_answer_is_saved_from_its_file_once(store: Store, clock: Clock) -> None:
    """Other users cannot read the file."""
    journal = Journal(store, "run", clock)
    path = write_fallback_file(journal.make_records("a", make_outcome("one")))
    assert path is not None
    assert path.stat().st_mode & 0o077 == 0
    assert await save_fallback_files(store) == 1
    assert await load_text(journal) == "one"
    assert not path.exists()
    assert await save_fallback_files(store) == 0


async def test_a_later_answer_is_not_replaced_by_a_file(store: Store, clock: Clock) -> None:
    journal = Journal(store, "run", clock)
    write_fallback_file(journal.make_records("a", make_outcome("earlier")))
    await journal.save_answer("a", make_outcome("later"))
    assert await save_fallback_files(store) == 0
    assert await load_text(journal) == "later"


async def test_a_file_is_written_to_another_disk_if_the_first_is_full(home: Path, store: Store, clock: Clock) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file where the folder should be")  # noqa: ASYNC240 (a few bytes)
    path = write_fallback_file(Journal(store, "run", clock).make_records("a", make_outcome("one")))
    assert path is not None
    assert path.is_relative_to(home.parent / "elsewhere")
    assert await save_fallback_files(store) == 1


async def test_a_damaged_file_is_renamed_and_does_not_stop_others(home: Path, store: Store, clock: Clock) -> None:
    write_fallback_file(Journal(store, "run", clock).make_records("a", make_outcome("one")))
    (home / "spill" / "0.json").write_text("{")
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert await save_fallback_files(store) == 1
    assert [path.name for path in (home / "spill").iterdir()] == ["0.damaged"]
