"""Home: the folder of the embedded state, and the errors where it cannot be used."""

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


def test_home_is_the_folder_of_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_finding_home_does_not_import_prefect() -> None:
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


async def test_the_state_is_private_to_its_user(tmp_path: Path) -> None:
    await opened(f"disk:{tmp_path / 'state'}").put("a", {})
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


# --- Where it cannot ------------------------------------------------------------------------------------------------


async def test_a_file_in_the_place_of_home_is_an_error(tmp_path: Path) -> None:
    """At the first use; and once it is a folder, it is used."""
    (tmp_path / "file").touch()
    store = opened(f"disk:{tmp_path / 'file' / 'state'}")
    with pytest.raises(ConfigurationError, match=r"file.*POLLUX_HOME"):
        await store.get("a")
    (tmp_path / "file").unlink()
    await store.put("a", {})


async def test_a_home_that_cannot_be_written_to_is_an_error(small_disk: Path) -> None:
    """Also for reading: an answer that cannot be saved must not be asked for."""
    store = DiskStore(small_disk / "state")
    await store.put("a", {})
    store.close()
    read_only(small_disk)
    for folder in ("state", "new"):
        with pytest.raises(ConfigurationError, match=r"cannot be written to.*POLLUX_HOME"):
            await opened(f"disk:{small_disk / folder}").get("a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_folder_of_another_user_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(ConfigurationError, match=r"cannot be written to.*POLLUX_HOME"):
        await opened(f"disk:{tmp_path / 'theirs' / 'state'}").get("a")


async def test_a_full_disk_is_an_error_for_writes_alone(small_disk: Path) -> None:
    """Earlier records are read, and with room again, writes succeed."""
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
    assert "disk is full" in told
    assert kept > 0
    assert len([key async for key, _ in store.scan("much/")]) == kept
    late = opened(f"disk:{small_disk / 'state'}")
    with pytest.raises(ConfigurationError, match="disk is full"):
        await late.put("more", {"answer": "x" * 10_000})
    assert len([key async for key, _ in late.scan("much/")]) == kept  # which is open by now, and before:
    assert await opened(f"disk:{small_disk / 'state'}").get("much/0") is not None
    (small_disk / "others").unlink()
    await late.put("more", {"answer": "x" * 10_000})
    await store.put("more", {"answer": "x" * 10_000})


async def test_a_full_disk_is_an_error_at_the_first_record(small_disk: Path) -> None:
    (small_disk / "others").write_bytes(b"x" * (1024 * 1024 - 8192))
    with pytest.raises(ConfigurationError, match=r"disk is full|disk .*failed"):
        await opened(f"disk:{small_disk / 'state'}").put("a", {"answer": "x" * 50_000})


def test_a_limit_of_file_sizes_is_an_error(tmp_path: Path) -> None:
    script = f"from tests.state.places import *; print(fill_under_limit('disk:{tmp_path / 'state'}', 500_000))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.startswith("ConfigurationError: ")
    assert "was not saved" in done.stdout
    kept = run(_count(f"disk:{tmp_path / 'state'}"))
    assert 0 < kept < 100


async def _count(address: str) -> int:
    return len([key async for key, _ in opened(address).scan("much/")])
