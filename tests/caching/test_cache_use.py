"""Calls that use a cache: it is created on demand, recreated after a loss, and not paid for twice."""

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


def create_requests(sim: Simulator) -> list[Logged]:
    """Return the requests to create a cache."""
    return [entry for entry in sim.requests if entry.operation == "cache.create"]


async def get_handle(gemini: Config, registry: StoreRegistry, request: CacheRequest = REQUEST) -> CacheHandle:
    return (await create_or_find(await prepare_cache(request, gemini), gemini, registry)).handle


def plan_with_handle(
    config: Config, handle: CacheHandle, prompts: list[str], request: CacheRequest | None = REQUEST
) -> Plan:
    """Return a plan about a registered cache, with the request to recreate the cache."""
    return make_plan(make_request(prompts, target=config.target, options=Options(cache=handle)), cache_request=request)


async def plan_with_sources(config: Config, prompts: list[str], request: CacheRequest | None = REQUEST) -> Plan:
    """Return a plan about the sources themselves that may use a cache."""
    options = Options(system_instruction="Be brief.")
    asking = make_request(prompts, target=config.target, sources=[STORY], options=options)
    return make_plan(asking, await read_sources(asking), cache_request=request)


async def execute(plan: Plan, config: Config, registry: StoreRegistry, **terms: Any) -> list[Outcome]:
    async with open_execution(plan, config, Terms(**terms), caches=registry) as execution:
        return await execution.answer_calls(plan.calls)


def list_bodies(sim: Simulator) -> list[dict[str, Any]]:
    return [entry.body for entry in asked(sim)]


# --- Lost caches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, Fault(status=404, message="CachedContent not found.")])
async def test_a_lost_cache_is_recreated_once_for_all_calls(
    fault: Fault | None, gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """Each call is answered."""
    handle = await get_handle(gemini, registry)
    if fault is None:
        sim.gemini_caches.clear()
    else:
        sim.fail(fault, times=6)
    plan = plan_with_handle(gemini, handle, [f"p{number}" for number in range(6)])
    async with open_execution(plan, gemini, caches=registry) as execution:
        outcomes = await execution.answer_calls(plan.calls)
        assert [record.name for record in execution.cache.expired] == [handle.name]
        assert len(execution.cache.created) == 1
    assert [outcome.problem for outcome in outcomes] == [None] * 6
    assert len(create_requests(sim)) == 2
    assert all(outcome.answer is not None and outcome.answer.usage["cached_tokens"] for outcome in outcomes)
    (record,) = await registry.list()
    assert record.name != handle.name


async def test_a_cache_that_is_lost_repeatedly_is_recreated_only_once(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    handle = await get_handle(gemini, registry)
    sim.fail(Fault(status=403, message="CachedContent not found (or permission denied)"), times=None)
    outcomes = await execute(plan_with_handle(gemini, handle, ["a", "b", "c"]), gemini, registry)
    assert [type(outcome.failure.error("gemini")) for outcome in outcomes if outcome.failure] == [CacheError] * 3
    assert len(create_requests(sim)) == 2


async def test_a_run_that_recreates_its_cache_reuses_its_answers(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """A rerun with the recreated cache finds the answers that were made with the lost one."""
    first = await get_handle(gemini, registry)
    await execute(plan_with_handle(gemini, first, ["a", "b"]), gemini, registry, run_key="nightly")
    sim.gemini_caches.clear()
    outcomes = await execute(plan_with_handle(gemini, first, ["a", "b", "c"]), gemini, registry, run_key="nightly")
    assert [outcome.reused for outcome in outcomes] == ["run", "run", None]
    second = await get_handle(gemini, registry)
    assert second.name != first.name
    again = await execute(plan_with_handle(gemini, second, ["a", "b", "c"]), gemini, registry, run_key="nightly")
    assert [outcome.reused for outcome in again] == ["run"] * 3


async def test_a_lost_cache_is_not_recreated_if_all_calls_are_answered(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    handle = await get_handle(gemini, registry)
    await execute(plan_with_handle(gemini, handle, ["a"]), gemini, registry, run_key="nightly")
    sim.gemini_caches.clear()
    expired = handle.model_copy(update={"expires_at": time.time() - 1})
    await execute(plan_with_handle(gemini, expired, ["a"]), gemini, registry, run_key="nightly")
    assert len(create_requests(sim)) == 1


async def test_a_lost_cache_is_not_recreated_from_changed_sources(
    gemini: Config, sim: Simulator, registry: StoreRegistry, tmp_path: Path
) -> None:
    """The answers would be about other content, so the call fails."""
    report = tmp_path / "report.txt"
    report.write_text("Revenue rose. " * 100)
    request = CacheRequest(sources=[Source.from_file(report)])
    handle = await get_handle(gemini, registry, request)
    report.write_text("Revenue fell. " * 100)
    sim.gemini_caches.clear()
    (outcome,) = await execute(plan_with_handle(gemini, handle, ["a"], request), gemini, registry)
    assert outcome.failure is not None
    assert "its sources have changed" in outcome.failure.message


async def test_the_error_about_a_lost_cache_advises_create_cache(gemini: Config, sim: Simulator) -> None:
    """The advice works: create_cache creates a new cache instead of finding the lost one."""
    handle = await create_cache([STORY], config=gemini)
    sim.gemini_caches.clear()
    with pytest.raises(CacheError, match="CachedContent not found") as caught:
        await run("p", config=gemini, options=Options(cache=handle))
    assert "create_cache" in str(caught.value.hint)
    again = await create_cache([STORY], config=gemini)
    assert again.name != handle.name
    assert (await run("p", config=gemini, options=Options(cache=again))).status == "ok"


async def test_an_expired_handle_is_a_cache_error_and_a_configuration_error(gemini: Config, sim: Simulator) -> None:
    """No call is sent."""
    handle = await create_cache([STORY], config=gemini)
    expired = handle.model_copy(update={"expires_at": time.time() - 1})
    for kind in (CacheError, ConfigurationError):
        with pytest.raises(kind, match="expired") as caught:
            await run("p", config=gemini, options=Options(cache=expired))
        assert type(caught.value) is ExpiredCacheError
        assert "create_cache" in str(caught.value.hint)
    assert asked(sim) == []


# --- Lifetimes ----------------------------------------------------------------------------------------------


async def test_a_cache_is_extended_shortly_before_it_expires(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """Nothing is uploaded or created again."""
    handle = await get_handle(gemini, registry)
    short = handle.model_copy(update={"expires_at": time.time() + 5})
    (record,) = await registry.list()
    async with registry.lock(record.identity) as lock:
        await lock.save(record.change(expires_at=short.expires_at))
    (outcome,) = await execute(plan_with_handle(gemini, short, ["a"]), gemini, registry)
    assert outcome.problem is None
    assert [entry.operation for entry in sim.requests] == ["cache.create", "cache.update", "generate"]
    (record,) = await registry.list()
    assert record.name == handle.name
    assert record.remaining_s(time.time()) == pytest.approx(3600, abs=10)


async def test_an_expired_cache_is_recreated_before_the_call(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """No call is sent with the expired cache first."""
    handle = await get_handle(gemini, registry)
    (record,) = await registry.list()
    gone = time.time() - 1
    async with registry.lock(record.identity) as lock:
        await lock.save(record.change(expires_at=gone))
    expired = handle.model_copy(update={"expires_at": gone})
    (outcome,) = await execute(plan_with_handle(gemini, expired, ["a"]), gemini, registry)
    assert outcome.problem is None
    assert [entry.operation for entry in sim.requests] == ["cache.create", "cache.create", "generate"]


# --- Caches of the sources of a plan ------------------------------------------------------------------------


async def test_calls_use_a_cache_instead_of_their_sources(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """The cache holds the content that all calls share, and a run without the cache reuses the answers."""
    plan = await plan_with_sources(gemini, ["a", "b"])
    outcomes = await execute(plan, gemini, registry, run_key="nightly")
    assert len(create_requests(sim)) == 1
    for body in list_bodies(sim):
        assert body["cachedContent"]
        assert "systemInstruction" not in body
        assert "long story" not in str(body)
    without = await execute(await plan_with_sources(gemini, ["a", "b"], None), gemini, registry, run_key="nightly")
    assert [outcome.reused for outcome in without] == ["run", "run"]
    assert [each.answer and each.answer.text for each in without] == [
        each.answer and each.answer.text for each in outcomes
    ]


async def test_no_cache_is_created_for_saved_answers(gemini: Config, sim: Simulator, registry: StoreRegistry) -> None:
    await execute(await plan_with_sources(gemini, ["a"], None), gemini, registry, run_key="nightly")
    await execute(await plan_with_sources(gemini, ["a"]), gemini, registry, run_key="nightly")
    assert create_requests(sim) == []


async def test_calls_are_sent_with_their_sources_if_the_cache_is_refused(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """The provider gets one create request for all prompts."""
    sim.fail(Fault(status=400, message="too small"), operation="cache.create", times=None)
    plan = await plan_with_sources(gemini, [f"p{number}" for number in range(30)])
    outcomes = await execute(plan, gemini, registry)
    assert [outcome.problem for outcome in outcomes] == [None] * 30
    assert all("long story" in str(body) and "cachedContent" not in body for body in list_bodies(sim))
    assert len(create_requests(sim)) == 1


# --- Refusals before a call is sent -------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"api_key": "sk-another-key"}, {"base_url": "http://127.0.0.1:9/gemini"}])
async def test_a_handle_of_another_account_or_address_is_refused(
    change: dict[str, Any], config: MakeConfig, sim: Simulator
) -> None:
    """No call is sent."""
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


@pytest.mark.parametrize(("options", "words"), RAW)
async def test_raw_options_that_a_handle_excludes_are_refused(
    options: dict[str, Any], words: str, gemini: Config, sim: Simulator
) -> None:
    handle = CacheHandle(name="cachedContents/a", model=gemini.model, provider="gemini", expires_at=time.time() + 60)
    with pytest.raises(ConfigurationError, match=words):
        await run("p", config=gemini, options=Options(cache=handle, **options))
    assert sim.requests == []


@pytest.mark.parametrize(
    "beside",
    [{"source": STORY}, {"options": {"system_instruction": "Be brief."}}, {"options": {"tools": [TOOL]}}],
)
async def test_the_rules_for_handles_hold_for_a_cache_in_raw_options(
    beside: dict[str, Any], gemini: Config, sim: Simulator
) -> None:
    """Sources, instructions and tools are refused beside a `cachedContent` in provider_options."""
    raw = {"provider_options": {"gemini": {"cachedContent": "cachedContents/a"}}}
    with pytest.raises(ConfigurationError, match="cannot go along"):
        await run("p", source=beside.get("source"), config=gemini, options=Options(**raw, **beside.get("options", {})))
    assert sim.requests == []


@pytest.mark.parametrize("model", ["gemini-4", "gemini-4-flash", "models/gemini-4.5-pro", "gemini-10-pro"])
async def test_a_model_without_caches_is_refused(
    model: str, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """The refusal comes before any upload."""
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7 content")
    with pytest.raises(ConfigurationError, match="has no cache handles"):
        await create_cache([Source.from_file(tmp_path / "a.pdf")], config=config("gemini", model=model))
    handle = CacheHandle(name="cachedContents/a", model=model, provider="gemini", expires_at=time.time() + 60)
    with pytest.raises(ConfigurationError, match="has no cache handles"):
        await run("p", config=config("gemini", model=model), options=Options(cache=handle))
    assert sim.requests == []


@pytest.mark.parametrize("model", ["gemini-3-pro", "gemini-2.5-flash", "gemini-40x", "gemini-flash-latest"])
async def test_models_that_may_have_caches_are_not_refused(model: str, config: MakeConfig, sim: Simulator) -> None:
    await create_cache([STORY], config=config("gemini", model=model))
    assert len(create_requests(sim)) == 1


# --- Other runs, sweeps and clocks --------------------------------------------------------------------------------


async def test_a_sweep_spares_a_cache_that_runs_use_by_its_handle(gemini: Config, registry: StoreRegistry) -> None:
    """A run records the time of its use, and a sweep checks that time."""
    handle = await get_handle(gemini, registry, REQUEST.model_copy(update={"ttl_seconds": 7 * 86_400}))
    async with registry.lock(handle.identity or "") as lock:
        assert lock.record is not None
        await lock.save(lock.record.change(last_used_at=time.time() - 30 * 3600))
    await execute(plan_with_handle(gemini, handle, ["a"]), gemini, registry)
    (record,) = await registry.list()
    assert time.time() - record.last_used_at < 60
    assert await sweep_caches(registry, gemini) == []


async def test_a_temporary_cache_that_another_caller_finds_outlives_its_run(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """Once another caller has its handle, the cache is no longer temporary."""
    plan = await plan_with_sources(gemini, ["a", "b"])
    async with open_execution(plan, gemini, caches=registry) as execution:
        await execution.answer_calls(plan.calls)
        (record,) = await registry.list()
        assert record.is_temporary
        handle = await get_handle(gemini, registry)
        assert await delete_temporary(registry, gemini, execution.created_by or "") == set()
    (record,) = await registry.list()
    assert (record.name, record.is_temporary) == (handle.name, False)
    assert len(create_requests(sim)) == 1


async def test_a_run_that_outlasts_its_cache_extends_the_cache(config: MakeConfig, sim: Simulator) -> None:
    """Calls that wait for a slot check the expiry again before they are sent."""
    gemini = config("gemini", request_concurrency=2)
    sim.latency_s = 0.4
    request = REQUEST.model_copy(update={"ttl_seconds": 4})
    plan = await plan_with_sources(gemini, [f"p{number}" for number in range(24)], request)
    outcomes = await execute(plan, gemini, open_registry(gemini))
    assert [outcome.problem for outcome in outcomes] == [None] * 24
    assert (len(create_requests(sim)), len(asked(sim))) == (1, 24)
    assert [entry for entry in sim.requests if entry.operation == "cache.update"]


async def test_an_expired_cache_may_be_recreated_several_times(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """Only a loss before the expiry counts as a provider that does not keep its caches."""
    handle = await get_handle(gemini, registry)
    plan = plan_with_handle(gemini, handle, ["a", "b", "c"])
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
    assert len(create_requests(sim)) == 4


async def test_a_cache_that_seems_expired_at_once_is_an_error_about_the_clock(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """With a clock that is ahead, the cache would be recreated and paid for at every call. It is deleted."""
    prepared = await prepare_cache(REQUEST, gemini)
    with pytest.raises(CacheError, match="Set the clock of this machine"):
        await create_or_find(prepared, gemini, registry, clock=lambda: time.time() + 7200)
    assert sim.gemini_caches.all(sim.now()) == []


async def test_a_sweep_deletes_a_cache_that_was_replaced_because_it_seemed_lost(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """The sweep finds the replaced cache by its display name."""
    handle = await get_handle(gemini, registry)
    sim.fail(Fault(status=403, message="CachedContent not found (or permission denied)"))
    await execute(plan_with_handle(gemini, handle, ["a"]), gemini, registry)
    assert len(sim.gemini_caches.all(sim.now())) == 2
    (swept,) = await sweep_caches(registry, gemini)
    assert (swept.name, swept.reason) == (handle.name, "abandoned")
    assert len(sim.gemini_caches.all(sim.now())) == 1


async def test_the_record_of_a_creation_without_a_reply_stays_until_the_cache_is_known(
    gemini: Config, sim: Simulator, registry: StoreRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider may list the cache later, so that it can still be deleted."""
    monkeypatch.setattr(cache_creation, "_LOOKS_S", (0.1,))
    sim.fail(Fault(kind="drop_after"), operation="cache.create")
    sim.fail(Fault(status=503), operation="cache.list", times=4)
    with pytest.raises(CacheError):
        await get_handle(gemini, registry)
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
    handle = await get_handle(gemini, registry)
    soon = handle.model_copy(update={"expires_at": time.time() + 30})
    async with registry.lock(handle.identity or "") as lock:
        assert lock.record is not None
        await lock.save(lock.record.change(expires_at=soon.expires_at))
    sim.fail(Fault(status=500), operation="cache.update", times=None)
    outcomes = await execute(plan_with_handle(gemini, soon, ["a", "b"]), gemini, registry)
    assert [outcome.problem for outcome in outcomes] == [None, None]
    assert len(create_requests(sim)) == 1


async def test_only_the_run_that_creates_a_cache_counts_it(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """Runs that waited for the cache or found it do not count it."""
    plans = [await plan_with_sources(gemini, [f"{run} a", f"{run} b"]) for run in range(3)]

    async def run_one(plan: Plan) -> list[UsedCache]:
        async with open_execution(plan, gemini, caches=registry) as execution:
            await execution.answer_calls(plan.calls)
            return execution.used_caches

    used = [caches for (caches,) in await asyncio.gather(*map(run_one, plans))]
    assert len(create_requests(sim)) == 1
    assert sum(cache.created_at is not None for cache in used) == 1


async def test_the_price_of_a_recreated_cache_counts_against_the_budget(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """The budget is checked before the call is repeated."""
    handle = await get_handle(gemini, registry)
    sim.gemini_caches.clear()
    plan = plan_with_handle(gemini, handle, ["a"])
    async with open_execution(plan, gemini, caches=registry) as execution:
        budget = (await execution.find_worst_case(plan.calls[0])).usd("a")
    (outcome,) = await execute(plan, gemini, registry, max_cost_usd=budget)
    assert outcome.failure is not None
    assert "max_cost_usd" in outcome.failure.message
    assert len(create_requests(sim)) == 2


async def test_a_registered_request_has_absolute_paths(
    gemini: Config, registry: StoreRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache may be recreated from another working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text("About the sea. " * 500)
    await get_handle(gemini, registry, CacheRequest(sources=[Source.from_file("story.txt")]))
    (record,) = await registry.list()
    assert record.request is not None
    assert record.request.sources[0].uri == str(tmp_path / "story.txt")
