"""The command `pollux-flows caches` without a Prefect server, for the caches of the state store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from pollux_flows import CacheHandle, Config, Source, create_cache
from pollux_flows.cli import app
from pollux_flows.pipeline.caches import cache_name
from pollux_flows.simulator import Simulator
from tests.commands import Command, caches
from tests.loopback import KEY, MakeConfig, config, sim, world

__all__ = ["caches", "config", "sim", "world"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield tmp_path / "home"


@pytest.fixture
def gemini(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A Config whose key and address are also in the environment."""
    gemini = config("gemini")
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", str(gemini.base_url))
    return gemini


def make_cache(config: Config, title: str = "Bees") -> CacheHandle:
    return asyncio.run(create_cache([Source.from_text(f"All about {title}. " * 400, identifier=title)], config=config))


def test_the_command_without_caches_says_so_and_creates_nothing(caches: Command, home: Path) -> None:
    assert caches() == f"Registered in the state store at {home}/state: none yet.\n"
    assert json.loads(caches("--json")) == {"registry": f"in the state store at {home}/state", "caches": []}
    assert caches("delete", "x").startswith(f"refused: No cache named 'x' is registered in the state store at {home}")
    assert not home.exists()


def test_caches_are_listed(caches: Command, gemini: Config, home: Path) -> None:
    """The list names its registry, and `--json` prints the same caches."""
    handle = make_cache(gemini, "[bold]Bees")
    assert handle.identity is not None
    name = cache_name(handle.identity)
    listed = caches()
    for words in (
        name,
        "gemini gemini-2.5-flash-lite",
        "[bold]Bees",
        " UTC",
        f"1 registered in the state store at {home}",
    ):
        assert words in listed
    (row,) = json.loads(caches("list", "--json"))["caches"]
    assert (row["name"], row["provider_name"], row["state"]) == (name, handle.name, "living")
    assert (row["contents"], row["expires_at"]) == (["[bold]Bees"], handle.expires_at)
    assert row["tokens"] > 1000
    assert KEY not in listed + json.dumps(row)


@pytest.mark.parametrize("by", ["our name", "the provider's name"])
def test_a_cache_is_deleted(caches: Command, gemini: Config, sim: Simulator, by: str) -> None:
    """The cache is deleted at the provider and in the registry, by either of its names; the other cache stays."""
    handle, other = make_cache(gemini), make_cache(gemini, "Wasps")
    assert handle.identity is not None
    name = cache_name(handle.identity)
    assert caches("delete", name if by == "our name" else handle.name) == f"Deleted {name} ({handle.name}).\n"
    assert [cache.name for cache in sim.gemini_caches.all(sim.now())] == [other.name]
    assert [row["provider_name"] for row in json.loads(caches("--json"))["caches"]] == [other.name]
    assert caches("delete", name).startswith(f"refused: No cache named '{name}' is registered")


def test_deleting_a_cache_needs_the_key_of_its_account(
    caches: Command, gemini: Config, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command refuses with another key, and without a key."""
    name = make_cache(gemini).name
    monkeypatch.setenv("GEMINI_API_KEY", "another-key")
    assert "the API key that this cache was created with (gemini at http://127.0.0.1" in caches("delete", name)
    monkeypatch.delenv("GEMINI_API_KEY")
    assert caches("delete", name).startswith("refused: Nothing in this environment has the API key")
    assert len(sim.gemini_caches.all(sim.now())) == 1


def test_the_help_names_subcommands_and_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (([], "caches"), (["caches"], "delete"), (["caches", "delete"], "NAME")):
        with pytest.raises(SystemExit):
            app([*words, "--help"])
        assert named in capsys.readouterr().out
