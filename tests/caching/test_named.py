"""Caches that are named in a call, without a Prefect server."""

from __future__ import annotations

from pathlib import Path

import pytest

from pollux_flows import CacheHandle, Config, ConfigurationError, Options, Source, create_cache, defer, run, run_many
from pollux_flows.pipeline.caches import cache_name
from pollux_flows.simulator import Simulator
from tests.loopback import MakeConfig, asked

STORY = Source.from_text("A long story about the sea. " * 50)


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


@pytest.fixture
def gemini(config: MakeConfig) -> Config:
    return config("gemini")


@pytest.fixture
async def handle(gemini: Config) -> CacheHandle:
    return await create_cache([STORY], config=gemini)


@pytest.fixture
def name(handle: CacheHandle) -> str:
    assert handle.identity
    return cache_name(handle.identity)


def count_created(sim: Simulator) -> int:
    """Return the number of requests to create a cache."""
    return sum(entry.operation == "cache.create" for entry in sim.requests)


async def test_a_name_may_be_passed_instead_of_the_handle(
    gemini: Config, sim: Simulator, handle: CacheHandle, name: str
) -> None:
    """The name may be an argument or part of the options, and calls have the same identity as with the handle."""
    await run("p", config=gemini, options=Options(cache=handle), run_key="once")
    for asking in (
        run("p", config=gemini, cache=name, run_key="once"),
        run("p", config=gemini, cache=handle, run_key="once"),
        run("p", config=gemini, options=Options(cache=name), run_key="once"),
    ):
        envelope = await asking
        assert envelope.metrics["n_reused"] == 1
        assert envelope.metrics["cache_used"] is True
    assert len(asked(sim)) == 1


async def test_a_lost_cache_that_is_named_is_recreated(gemini: Config, sim: Simulator, name: str) -> None:
    """The cache is recreated once for all prompts, and saved answers are reused."""
    await run_many(["a"], config=gemini, cache=name, run_key="nightly")
    sim.gemini_caches.clear()
    envelope = await run_many(["a", "b", "c"], config=gemini, cache=name, run_key="nightly")
    assert (envelope.status, envelope.metrics["n_reused"], envelope.metrics["n_cache_hits"]) == ("ok", 1, 3)
    assert count_created(sim) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cache": "pollux-cache-unknown"}, "no cache 'pollux-cache-unknown'"),
        ({"options": Options(cache="pollux-cache-unknown")}, "no cache 'pollux-cache-unknown'"),
        ({"cache": "a", "options": Options(cache="b")}, "Two caches are named"),
        ({"cache": 5}, "cache is a int"),
    ],
)
async def test_an_unknown_name_and_two_names_are_refused(
    arguments: dict[str, object], words: str, gemini: Config, sim: Simulator
) -> None:
    """The refusal comes before any request."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        await run("p", config=gemini, **arguments)  # type: ignore[arg-type]
    assert caught.value.hint
    assert sim.requests == []


async def test_sources_beside_the_name_of_a_cache_are_refused(gemini: Config, sim: Simulator, name: str) -> None:
    with pytest.raises(ConfigurationError, match="sources cannot go along with a cache handle"):
        await run("p", source=STORY, config=gemini, cache=name)
    assert asked(sim) == []


async def test_a_name_in_the_options_of_a_deferred_job_is_refused(gemini: Config, sim: Simulator) -> None:
    """A batch cannot read from a cache."""
    with pytest.raises(ConfigurationError):
        await defer("p", config=gemini, options=Options(cache="pollux-cache-a"))
    assert sim.requests == []


@pytest.mark.parametrize("cache", ["auto", "", " "])
def test_an_invalid_name_of_a_cache_is_refused_in_options(cache: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Options(cache=cache)
    assert caught.value.hint
