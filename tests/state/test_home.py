"""Home: the folder of the embedded state, and errors if it cannot be used."""

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
from tests.state.places import open_store_at, remount_read_only, run

SMALL_DISK_MIB = 1


# --- Location -----------------------------------------------------------------------------------------------------


def test_home_is_the_folder_of_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "mine"))
    assert home() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLLUX_HOME", " mine ")
    assert home() == tmp_path / "mine"
    assert not home().exists()  # it is created with the first record


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


async def test_each_home_has_one_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "one"))
    one = open_store()
    assert open_store() is one
    await one.put("a", {"home": 1})
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "other"))
    assert await open_store().get("a") is None
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "one"))
    assert await open_store().get("a") == {"home": 1}


async def test_the_state_is_private_to_its_user(tmp_path: Path) -> None:
    await open_store_at(f"disk:{tmp_path / 'state'}").put("a", {})
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


# --- Errors ---------------------------------------------------------------------------------------------------------


async def test_a_file_in_the_place_of_home_is_an_error(tmp_path: Path) -> None:
    """The error is raised at the first use, and no longer once the file is gone."""
    (tmp_path / "file").touch()
    store = open_store_at(f"disk:{tmp_path / 'file' / 'state'}")
    with pytest.raises(ConfigurationError, match=r"file.*POLLUX_HOME"):
        await store.get("a")
    (tmp_path / "file").unlink()
    await store.put("a", {})


async def test_a_home_that_cannot_be_written_to_is_an_error(small_disk: Path) -> None:
    """Even a read fails, because an answer that cannot be saved must not be asked for."""
    store = DiskStore(small_disk / "state")
    await store.put("a", {})
    store.close()
    remount_read_only(small_disk)
    for folder in ("state", "new"):
        with pytest.raises(ConfigurationError, match=r"cannot be written to.*POLLUX_HOME"):
            await open_store_at(f"disk:{small_disk / folder}").get("a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_folder_of_another_user_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(ConfigurationError, match=r"cannot be written to.*POLLUX_HOME"):
        await open_store_at(f"disk:{tmp_path / 'theirs' / 'state'}").get("a")


async def test_a_full_disk_is_an_error_only_for_writes(small_disk: Path) -> None:
    """Earlier records can be read, and writes succeed once there is room again."""
    (small_disk / "others").write_bytes(b"x" * 300_000)
    store = open_store_at(f"disk:{small_disk / 'state'}")
    message = None
    for saved in range(100):
        try:
            await store.put(f"much/{saved}", {"answer": "x" * 10_000})
        except ConfigurationError as error:
            message = str(error)
            break
    assert message is not None
    assert "disk is full" in message
    assert saved > 0
    assert len([key async for key, _ in store.scan("much/")]) == saved
    late = open_store_at(f"disk:{small_disk / 'state'}")
    with pytest.raises(ConfigurationError, match="disk is full"):
        await late.put("more", {"answer": "x" * 10_000})
    assert len([key async for key, _ in late.scan("much/")]) == saved  # this store is open; a new one can read as well:
    assert await open_store_at(f"disk:{small_disk / 'state'}").get("much/0") is not None
    (small_disk / "others").unlink()
    await late.put("more", {"answer": "x" * 10_000})
    await store.put("more", {"answer": "x" * 10_000})


async def test_a_full_disk_is_an_error_at_the_first_record(small_disk: Path) -> None:
    (small_disk / "others").write_bytes(b"x" * (1024 * 1024 - 8192))
    with pytest.raises(ConfigurationError, match=r"disk is full|disk .*failed"):
        await open_store_at(f"disk:{small_disk / 'state'}").put("a", {"answer": "x" * 50_000})


def test_a_limit_of_file_sizes_is_an_error(tmp_path: Path) -> None:
    script = f"from tests.state.places import *; print(fill_under_limit('disk:{tmp_path / 'state'}', 500_000))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.startswith("ConfigurationError: ")
    assert "was not saved" in done.stdout
    saved = run(_count_records(f"disk:{tmp_path / 'state'}"))
    assert 0 < saved < 100


async def _count_records(address: str) -> int:
    return len([key async for key, _ in open_store_at(address).scan("much/")])
