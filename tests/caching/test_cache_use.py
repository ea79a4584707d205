"""A cache while calls use it: it is made when one needs it, made again when it is lost, and not paid for twice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import CacheError, CacheHandle, Config, ConfigurationError, Options, Source, create_cache, run
from pollux_flows.caching.registry import StoreRegistry, open_registry
from pollux_flows.caching.sweep import delete_cache, delete_temporary, sweep_caches
from pollux_flows.errors import ExpiredCacheError
from pollux_flows.pipeline import cache_creation
from pollux_flows.pipeline.cache_creation import create_or_find, prepare_cache
from pollux_flows.pipeline.caches import CacheRequest
from pollux_flows.pipeline.execute import open_execution
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.pipeline.savings import UsedCache
from pollux_flows.pipeline.terms import Terms
from pollux_flows.result import Outcome
from pollux_flows.simulator import Fault, Logged, Simulator
from tests.loopback import MakeConfig, asked

STORY = Source.from_text("A long story about the sea. " * 50)
REQUEST = CacheRequest(sources=[STORY], system_instruction="Be brief.")


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


@pytest.fixture
def gemini(config: MakeConfig) -> Config:
    return config("gemini")


@pytest.fixture
def registry(gemini: Config) -> StoreRegistry:
    return open_registry(gemini)


def created(sim: Simulator) -> list[Logged]:
    return [entry for entry in sim.requests if entry.operation == "cache.create"]


async def named(gemini: Config, registry: StoreRegistry, request: CacheRequest = REQUEST) -> CacheHandle:
    return (await create_or_find(await prepare_cache(request, gemini), gemini, registry)).handle


def with_handle(
    config: Config, handle: CacheHandle, prompts: list[str], request: CacheRequest | None = REQUEST
) -> Plan:
    """A plan about a registered cache, which says how to make it."""
    return make_plan(make_request(prompts, target=config.target, options=Options(cache=handle)), cache_request=request)


async def beside_sources(config: Config, prompts: list[str], request: CacheRequest | None = REQUEST) -> Plan:
    """A plan that asks about the sources themselves, and may use a cache for that."""
    options = Options(system_instruction="Be brief.")
    asking = make_request(prompts, target=config.target, sources=[STORY], options=options)
    return make_plan(asking, await read_sources(asking), cache_request=request)


async def executed(plan: Plan, config: Config, registry: StoreRegistry, **terms: Any) -> list[Outcome]:
    async with open_execution(plan, config, Terms(**terms), caches=registry) as execution:
        return await execution.answer_calls(plan.calls)


def bodies(sim: Simulator) -> list[dict[str, Any]]:
    return [entry.body for entry in asked(sim)]


# --- Lost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, Fault(status=404, message="CachedContent not found.")])
async def test_a_lost_cache_is_made_again_once(
    fault: Fault | None, gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """For all calls together, and each is answered."""
    handle = await named(gemini, registry)
    if fault is None:
        sim.gemini_caches.clear()
    else:
        sim.fail(fault, times=6)
    plan = with_handle(gemini, handle, [f"p{number}" for number in range(6)])
    async with open_execution(plan, gemini, caches=registry) as execution:
        outcomes = await execution.answer_calls(plan.calls)
        assert [record.name for record in execution.cache.expired] == [handle.name]
        assert len(execution.cache.created) == 1
    assert [outcome.problem for outcome in outcomes] == [None] * 6
    assert len(created(sim)) == 2
    assert all(outcome.answer is not None and outcome.answer.usage["cached_tokens"] for outcome in outcomes)
    (record,) = await registry.list()
    assert record.name != handle.name


async def test_a_provider_that_keeps_no_cache_is_not_paid_for_ever(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    handle = await named(gemini, registry)
    sim.fail(Fault(status=403, message="CachedContent not found (or permission denied)"), times=None)
    outcomes = await executed(with_handle(gemini, handle, ["a", "b", "c"]), gemini, registry)
    assert [type(outcome.failure.error("gemini")) for outcome in outcomes if outcome.failure] == [CacheError] * 3
    assert len(created(sim)) == 2


async def test_a_run_that_makes_its_cache_anew_pays_for_no_answer_twice(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """The nightly run: yesterday's cache is gone, and so is half of its answers."""
    first = await named(gemini, registry)
    await executed(with_handle(gemini, first, ["a", "b"]), gemini, registry, run_key="nightly")
    sim.gemini_caches.clear()
    outcomes = await executed(with_handle(gemini, first, ["a", "b", "c"]), gemini, registry, run_key="nightly")
    assert [outcome.reused for outcome in outcomes] == ["run", "run", None]
    second = await named(gemini, registry)
    assert second.name != first.name
    again = await executed(with_handle(gemini, second, ["a", "b", "c"]), gemini, registry, run_key="nightly")
    assert [outcome.reused for outcome in again] == ["run"] * 3


async def test_a_cache_that_nobody_needs_is_not_made_again(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """Where all is answered already."""
    handle = await named(gemini, registry)
    await executed(with_handle(gemini, handle, ["a"]), gemini, registry, run_key="nightly")
    sim.gemini_caches.clear()
    expired = handle.model_copy(update={"expires_at": time.time() - 1})
    await executed(with_handle(gemini, expired, ["a"]), gemini, registry, run_key="nightly")
    assert len(created(sim)) == 1


async def test_sources_that_have_changed_are_not_asked_about_instead(
    gemini: Config, sim: Simulator, registry: StoreRegistry, tmp_path: Path
) -> None:
    """The answers would be about something else."""
    report = tmp_path / "report.txt"
    report.write_text("Revenue rose. " * 100)
    request = CacheRequest(sources=[Source.from_file(report)])
    handle = await named(gemini, registry, request)
    report.write_text("Revenue fell. " * 100)
    sim.gemini_caches.clear()
    (outcome,) = await executed(with_handle(gemini, handle, ["a"], request), gemini, registry)
    assert outcome.failure is not None
    assert "its sources have changed" in outcome.failure.message


async def test_a_bare_handle_says_how_to_make_it_again(gemini: Config, sim: Simulator) -> None:
    """Lost at the provider; create_cache, told to do just that, does not find the dead one."""
    handle = await create_cache([STORY], config=gemini)
    sim.gemini_caches.clear()
    with pytest.raises(CacheError, match="CachedContent not found") as caught:
        await run("p", config=gemini, options=Options(cache=handle))
    assert "create_cache" in str(caught.value.hint)
    again = await create_cache([STORY], config=gemini)
    assert again.name != handle.name
    assert (await run("p", config=gemini, options=Options(cache=again))).status == "ok"


async def test_an_expired_handle_is_both_kinds_of_error(gemini: Config, sim: Simulator) -> None:
    """Of the cache, and of what was configured: nothing was sent."""
    handle = await create_cache([STORY], config=gemini)
    expired = handle.model_copy(update={"expires_at": time.time() - 1})
    for kind in (CacheError, ConfigurationError):
        with pytest.raises(kind, match="expired") as caught:
            await run("p", config=gemini, options=Options(cache=expired))
        assert type(caught.value) is ExpiredCacheError
        assert "create_cache" in str(caught.value.hint)
    assert asked(sim) == []


# --- Lifetimes ----------------------------------------------------------------------------------------------


async def test_a_cache_lives_as_long_as_its_run(gemini: Config, sim: Simulator, registry: StoreRegistry) -> None:
    """Shortly before its end it is given more time; nothing is uploaded or paid for again."""
    handle = await named(gemini, registry)
    short = handle.model_copy(update={"expires_at": time.time() + 5})
    (record,) = await registry.list()
    async with registry.lock(record.identity) as lock:
        await lock.save(record.change(expires_at=short.expires_at))
    (outcome,) = await executed(with_handle(gemini, short, ["a"]), gemini, registry)
    assert outcome.problem is None
    assert [entry.operation for entry in sim.requests] == ["cache.create", "cache.update", "generate"]
    (record,) = await registry.list()
    assert record.name == handle.name
    assert record.remaining_s(time.time()) == pytest.approx(3600, abs=10)


async def test_an_expired_cache_is_made_again(gemini: Config, sim: Simulator, registry: StoreRegistry) -> None:
    """By the provider's clock, and without asking it in vain first."""
    handle = await named(gemini, registry)
    (record,) = await registry.list()
    gone = time.time() - 1
    async with registry.lock(record.identity) as lock:
        await lock.save(record.change(expires_at=gone))
    expired = handle.model_copy(update={"expires_at": gone})
    (outcome,) = await executed(with_handle(gemini, expired, ["a"]), gemini, registry)
    assert outcome.problem is None
    assert [entry.operation for entry in sim.requests] == ["cache.create", "cache.create", "generate"]


# --- Beside sources -----------------------------------------------------------------------------------------


async def test_a_cache_stands_in_for_sources(gemini: Config, sim: Simulator, registry: StoreRegistry) -> None:
    """It holds what else goes along with each call; the answers are those of the calls without it."""
    plan = await beside_sources(gemini, ["a", "b"])
    outcomes = await executed(plan, gemini, registry, run_key="nightly")
    assert len(created(sim)) == 1
    for body in bodies(sim):
        assert body["cachedContent"]
        assert "systemInstruction" not in body
        assert "long story" not in str(body)
    without = await executed(await beside_sources(gemini, ["a", "b"], None), gemini, registry, run_key="nightly")
    assert [outcome.reused for outcome in without] == ["run", "run"]
    assert [each.answer and each.answer.text for each in without] == [
        each.answer and each.answer.text for each in outcomes
    ]


async def test_answers_that_are_there_make_no_cache(gemini: Config, sim: Simulator, registry: StoreRegistry) -> None:
    await executed(await beside_sources(gemini, ["a"], None), gemini, registry, run_key="nightly")
    await executed(await beside_sources(gemini, ["a"]), gemini, registry, run_key="nightly")
    assert created(sim) == []


async def test_a_cache_that_cannot_be_made_is_done_without(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """The provider is asked for it once, not once for each prompt, and the sources are sent along."""
    sim.fail(Fault(status=400, message="too small"), operation="cache.create", times=None)
    plan = await beside_sources(gemini, [f"p{number}" for number in range(30)])
    outcomes = await executed(plan, gemini, registry)
    assert [outcome.problem for outcome in outcomes] == [None] * 30
    assert all("long story" in str(body) and "cachedContent" not in body for body in bodies(sim))
    assert len(created(sim)) == 1


# --- Refused before dispatch --------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"api_key": "sk-another-key"}, {"base_url": "http://127.0.0.1:9/gemini"}])
async def test_a_handle_of_another_account_is_refused(
    change: dict[str, Any], config: MakeConfig, sim: Simulator
) -> None:
    """Or one made at another address: nothing is sent."""
    handle = await create_cache([STORY], config=config("gemini"))
    with pytest.raises(ConfigurationError, match="created with another API key") as caught:
        await run("p", config=config("gemini", **change), options=Options(cache=handle))
    assert "create_cache" in str(caught.value.hint)
    assert asked(sim) == []


TOOL: dict[str, Any] = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
RAW: list[tuple[dict[str, Any], str]] = [
    ({"provider_options": {"gemini": {"cachedContent": "cachedContents/b"}}}, "beside the cache handle"),
    ({"provider_options": {"gemini": {"cached_content": "cachedContents/b"}}}, "beside the cache handle"),
    ({"provider_options": {"gemini": {"systemInstruction": "Be brief."}}}, "system_instruction cannot go along"),
    ({"provider_options": {"gemini": {"tools": [{"google_search": {}}]}}}, "tools cannot go along"),
    ({"provider_options": {"gemini": {"toolConfig": {}}}}, "tool_choice cannot go along"),
]


@pytest.mark.parametrize(("options", "says"), RAW)
async def test_raw_options_are_no_way_around(
    options: dict[str, Any], says: str, gemini: Config, sim: Simulator
) -> None:
    handle = CacheHandle(name="cachedContents/a", model=gemini.model, provider="gemini", expires_at=time.time() + 60)
    with pytest.raises(ConfigurationError, match=says):
        await run("p", config=gemini, options=Options(cache=handle, **options))
    assert sim.requests == []


@pytest.mark.parametrize(
    "beside",
    [{"source": STORY}, {"options": {"system_instruction": "Be brief."}}, {"options": {"tools": [TOOL]}}],
)
async def test_a_raw_cache_is_a_cache(beside: dict[str, Any], gemini: Config, sim: Simulator) -> None:
    """What cannot stand beside a handle cannot stand beside the name of one."""
    raw = {"provider_options": {"gemini": {"cachedContent": "cachedContents/a"}}}
    with pytest.raises(ConfigurationError, match="cannot go along"):
        await run("p", source=beside.get("source"), config=gemini, options=Options(**raw, **beside.get("options", {})))
    assert sim.requests == []


@pytest.mark.parametrize("model", ["gemini-4", "gemini-4-flash", "models/gemini-4.5-pro", "gemini-10-pro"])
async def test_a_model_without_caches_is_refused(
    model: str, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """Before an upload."""
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7 content")
    with pytest.raises(ConfigurationError, match="has no cache handles"):
        await create_cache([Source.from_file(tmp_path / "a.pdf")], config=config("gemini", model=model))
    handle = CacheHandle(name="cachedContents/a", model=model, provider="gemini", expires_at=time.time() + 60)
    with pytest.raises(ConfigurationError, match="has no cache handles"):
        await run("p", config=config("gemini", model=model), options=Options(cache=handle))
    assert sim.requests == []


@pytest.mark.parametrize("model", ["gemini-3-pro", "gemini-2.5-flash", "gemini-40x", "gemini-flash-latest"])
async def test_other_models_are_the_providers_to_judge(model: str, config: MakeConfig, sim: Simulator) -> None:
    await create_cache([STORY], config=config("gemini", model=model))
    assert len(created(sim)) == 1


# --- While other runs, sweeps and clocks are at work ----------------------------------------------------------------


async def test_a_cache_that_is_used_by_its_handle_is_not_idle(gemini: Config, registry: StoreRegistry) -> None:
    """A run notes its use, which a sweep goes by."""
    handle = await named(gemini, registry, REQUEST.model_copy(update={"ttl_seconds": 7 * 86_400}))
    async with registry.lock(handle.identity or "") as lock:
        assert lock.record is not None
        await lock.save(lock.record.change(last_used_at=time.time() - 30 * 3600))
    await executed(with_handle(gemini, handle, ["a"]), gemini, registry)
    (record,) = await registry.list()
    assert time.time() - record.last_used_at < 60
    assert await sweep_caches(registry, gemini) == []


async def test_a_cache_that_another_asks_for_outlives_the_run(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """It was found while a run held it for itself alone: its name is in others' hands from then on."""
    plan = await beside_sources(gemini, ["a", "b"])
    async with open_execution(plan, gemini, caches=registry) as execution:
        await execution.answer_calls(plan.calls)
        (record,) = await registry.list()
        assert record.is_temporary
        handle = await named(gemini, registry)
        assert await delete_temporary(registry, gemini, execution.created_by or "") == set()
    (record,) = await registry.list()
    assert (record.name, record.is_temporary) == (handle.name, False)
    assert len(created(sim)) == 1


async def test_a_run_extends_the_cache_that_it_would_outlive(config: MakeConfig, sim: Simulator) -> None:
    """Its calls stand in line for longer than the cache lives, and look again before they are sent."""
    gemini = config("gemini", request_concurrency=2)
    sim.latency_s = 0.4
    request = REQUEST.model_copy(update={"ttl_seconds": 4})
    plan = await beside_sources(gemini, [f"p{number}" for number in range(24)], request)
    outcomes = await executed(plan, gemini, open_registry(gemini))
    assert [outcome.problem for outcome in outcomes] == [None] * 24
    assert (len(created(sim)), len(asked(sim))) == (1, 24)
    assert [entry for entry in sim.requests if entry.operation == "cache.update"]


async def test_a_cache_that_ran_out_is_made_again_more_than_once(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """Only a loss before its time says that the provider keeps none."""
    handle = await named(gemini, registry)
    plan = with_handle(gemini, handle, ["a", "b", "c"])
    async with open_execution(plan, gemini, caches=registry) as execution:
        for call in plan.calls:
            sim.gemini_caches.clear()
            assert execution.cache.handle is not None
            execution.cache.handle = execution.cache.handle.model_copy(update={"expires_at": time.time() - 1})
            async with registry.lock(handle.identity or "") as lock:
                assert lock.record is not None
                await lock.save(lock.record.change(expires_at=time.time() - 1))
            (outcome,) = await execution.answer_calls([call])
            assert outcome.problem is None
    assert len(created(sim)) == 4


async def test_a_clock_that_is_ahead_is_named(gemini: Config, sim: Simulator, registry: StoreRegistry) -> None:
    """The cache would seem to have expired at once, and would be paid for at every call."""
    prepared = await prepare_cache(REQUEST, gemini)
    with pytest.raises(CacheError, match="Set the clock of this machine"):
        await create_or_find(prepared, gemini, registry, clock=lambda: time.time() + 7200)
    assert sim.gemini_caches.all(sim.now()) == []


async def test_a_cache_that_was_called_lost_and_is_there_is_deleted_later(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """The provider was wrong: the cache that was replaced is known by its display name."""
    handle = await named(gemini, registry)
    sim.fail(Fault(status=403, message="CachedContent not found (or permission denied)"))
    await executed(with_handle(gemini, handle, ["a"]), gemini, registry)
    assert len(sim.gemini_caches.all(sim.now())) == 2
    (swept,) = await sweep_caches(registry, gemini)
    assert (swept.name, swept.reason) == (handle.name, "abandoned")
    assert len(sim.gemini_caches.all(sim.now())) == 1


async def test_a_creation_without_a_reply_is_not_forgotten(
    gemini: Config, sim: Simulator, registry: StoreRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the provider may yet list it, its record stays for a sweep."""
    monkeypatch.setattr(cache_creation, "_LOOKS_S", (0.1,))
    sim.fail(Fault(kind="drop_after"), operation="cache.create")
    sim.fail(Fault(status=503), operation="cache.list", times=4)
    with pytest.raises(CacheError):
        await named(gemini, registry)
    (late,) = sim.gemini_caches.all(sim.now())
    sim.gemini_caches.clear()
    (record,) = await registry.list()
    with pytest.raises(CacheError, match="not known yet"):
        await delete_cache(registry, gemini, record.identity)
    sim.gemini_caches.add(late)
    await delete_cache(registry, gemini, record.identity)
    assert (sim.gemini_caches.all(sim.now()), await registry.list()) == ([], [])


async def test_a_cache_that_cannot_be_extended_is_used_while_it_lives(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    handle = await named(gemini, registry)
    soon = handle.model_copy(update={"expires_at": time.time() + 30})
    async with registry.lock(handle.identity or "") as lock:
        assert lock.record is not None
        await lock.save(lock.record.change(expires_at=soon.expires_at))
    sim.fail(Fault(status=500), operation="cache.update", times=None)
    outcomes = await executed(with_handle(gemini, soon, ["a", "b"]), gemini, registry)
    assert [outcome.problem for outcome in outcomes] == [None, None]
    assert len(created(sim)) == 1


async def test_only_the_run_that_creates_a_cache_counts_it(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """Runs that waited for it, or found it, do not."""
    plans = [await beside_sources(gemini, [f"{run} a", f"{run} b"]) for run in range(3)]

    async def run_one(plan: Plan) -> list[UsedCache]:
        async with open_execution(plan, gemini, caches=registry) as execution:
            await execution.answer_calls(plan.calls)
            return execution.used_caches

    used = [caches for (caches,) in await asyncio.gather(*map(run_one, plans))]
    assert len(created(sim)) == 1
    assert sum(cache.created_at is not None for cache in used) == 1


async def test_a_cache_that_is_made_again_counts_against_the_budget(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """Its price is looked at before the call is made again."""
    handle = await named(gemini, registry)
    sim.gemini_caches.clear()
    plan = with_handle(gemini, handle, ["a"])
    async with open_execution(plan, gemini, caches=registry) as execution:
        budget = (await execution.find_worst_case(plan.calls[0])).usd("a")
    (outcome,) = await executed(plan, gemini, registry, max_cost_usd=budget)
    assert outcome.failure is not None
    assert "max_cost_usd" in outcome.failure.message
    assert len(created(sim)) == 2


async def test_a_registered_request_names_its_files_by_absolute_paths(
    gemini: Config, registry: StoreRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be made again in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text("About the sea. " * 500)
    await named(gemini, registry, CacheRequest(sources=[Source.from_file("story.txt")]))
    (record,) = await registry.list()
    assert record.request is not None
    assert record.request.sources[0].uri == str(tmp_path / "story.txt")
