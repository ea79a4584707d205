"""Where the embedded state lives, and what a person is told when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.disk import DiskStore
from pollux_flows.state.home import home
from pollux_flows.state.store import open_store
from tests.state.places import opened, read_only, run

SMALL_DISK_MIB = 1


# --- Where --------------------------------------------------------------------------------------------------------


def test_home_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "mine"))
    assert home() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLLUX_HOME", " mine ")
    assert home() == tmp_path / "mine"
    assert not home().exists()  # not before there is something to keep


def test_home_is_in_the_home_of_prefect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLLUX_HOME", " ")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    assert home() == tmp_path / "prefect" / "pollux"
    monkeypatch.delenv("POLLUX_HOME")
    monkeypatch.delenv("PREFECT_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".prefect" / "pollux"


def test_finding_home_takes_no_prefect() -> None:
    script = (
        "import sys; from pollux_flows.state.store import open_store; open_store(); print('prefect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


async def test_there_is_one_store_for_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "one"))
    one = open_store()
    assert open_store() is one
    await one.put("a", {"home": 1})
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "other"))
    assert await open_store().get("a") is None
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "one"))
    assert await open_store().get("a") == {"home": 1}


async def test_what_is_kept_is_private(tmp_path: Path) -> None:
    await opened(f"disk:{tmp_path / 'state'}").put("a", {})
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


# --- Where it cannot ------------------------------------------------------------------------------------------------


async def test_a_file_is_no_home(tmp_path: Path) -> None:
    """Told when it is first used, and used once it is one."""
    (tmp_path / "file").touch()
    store = opened(f"disk:{tmp_path / 'file' / 'state'}")
    with pytest.raises(ConfigurationError, match=r"file.*POLLUX_HOME"):
        await store.get("a")
    (tmp_path / "file").unlink()
    await store.put("a", {})


async def test_what_cannot_be_written_to_is_no_home(small_disk: Path) -> None:
    """Nor is it read from: what cannot be kept must not be asked for."""
    store = DiskStore(small_disk / "state")
    await store.put("a", {})
    store.close()
    read_only(small_disk)
    for folder in ("state", "new"):
        with pytest.raises(ConfigurationError, match=r"cannot be written to.*POLLUX_HOME"):
            await opened(f"disk:{small_disk / folder}").get("a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_folder_of_others_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(ConfigurationError, match=r"cannot be written to.*POLLUX_HOME"):
        await opened(f"disk:{tmp_path / 'theirs' / 'state'}").get("a")


async def test_a_full_disk_is_told(small_disk: Path) -> None:
    """Nothing that was kept is lost, what was not kept is told, and when there is room again, it goes on."""
    (small_disk / "others").write_bytes(b"x" * 300_000)
    store = opened(f"disk:{small_disk / 'state'}")
    told = None
    for kept in range(100):
        try:
            await store.put(f"much/{kept}", {"answer": "x" * 10_000})
        except ConfigurationError as error:
            told = str(error)
            break
    assert told is not None
    assert "no room left" in told
    assert kept > 0
    assert len([key async for key, _ in store.scan("much/")]) == kept
    late = opened(f"disk:{small_disk / 'state'}")
    with pytest.raises(ConfigurationError, match="no room left"):
        await late.put("more", {"answer": "x" * 10_000})
    assert len([key async for key, _ in late.scan("much/")]) == kept  # which is open by now, and before:
    assert await opened(f"disk:{small_disk / 'state'}").get("much/0") is not None
    (small_disk / "others").unlink()
    await late.put("more", {"answer": "x" * 10_000})
    await store.put("more", {"answer": "x" * 10_000})


async def test_a_full_disk_has_no_room_for_the_first_record(small_disk: Path) -> None:
    (small_disk / "others").write_bytes(b"x" * (1024 * 1024 - 8192))
    with pytest.raises(ConfigurationError, match=r"no room left|disk failed"):
        await opened(f"disk:{small_disk / 'state'}").put("a", {"answer": "x" * 50_000})


def test_a_limit_is_told(tmp_path: Path) -> None:
    """Where the system allows a process no larger files."""
    script = f"from tests.state.places import *; print(fill_under_limit('disk:{tmp_path / 'state'}', 500_000))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.startswith("ConfigurationError: ")
    assert "this was not saved" in done.stdout
    kept = run(_count(f"disk:{tmp_path / 'state'}"))
    assert 0 < kept < 100


async def _count(address: str) -> int:
    return len([key async for key, _ in opened(address).scan("much/")])
