"""Tests of cache="auto": a cache is created where that is cheaper, and the envelope names the reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import APIError, BudgetError, Config, Options, ResultEnvelope, Source, create_cache, run, run_many
from pollux_flows.caching.auto import estimate_tokens, plan_cache
from pollux_flows.caching.registry import open_registry
from pollux_flows.config import Target
from pollux_flows.files.content import Content
from pollux_flows.pipeline.caches import CacheChoice, CacheRecord, cache_name
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.simulator import Fault, Simulator
from tests.budgets import SHORT
from tests.loopback import MakeConfig, asked

FLASH = Target(provider="gemini", model="gemini-2.5-flash")
GEMINI_3 = Target(provider="gemini", model="gemini-3-flash-preview")
CLAUDE = Target(provider="anthropic", model="claude-opus-4-6")
PROMPTS = [f"Question {number}?" for number in range(10)]
TOOL: dict[str, Any] = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}


def make_document(tokens: int = 10_000, letter: str = "x") -> Source:
    return Source.from_text(letter * 4 * tokens, identifier=letter)


def make_cached_plan(
    target: Target = FLASH,
    prompts: Sequence[str | None] = PROMPTS,
    sources: list[Source] | None = None,
    *,
    each_source: bool = False,
    **options: Any,
) -> Plan:
    sources = [make_document()] if sources is None else sources
    request = make_request(prompts, target=target, sources=sources, options=Options(**options), each_source=each_source)
    plan = make_plan(request)
    return plan_cache(plan, plan.calls, 6)


def get_choice(plan: Plan) -> CacheChoice:
    assert plan.cache_choice is not None
    return plan.cache_choice


# --- The decision -------------------------------------------------------------------------------------------


def test_many_prompts_about_a_long_document_share_a_cache() -> None:
    """The cache has the shortest sufficient lifetime, and the identities of the calls stay the same."""
    plan = make_cached_plan(system_instruction="Be brief.")
    assert get_choice(plan).mode == "explicit"
    assert "$0.0" in get_choice(plan).why
    assert plan.cache_request is not None
    assert plan.cache_request.ttl_seconds == 180
    assert plan.cache_request.system_instruction == "Be brief."
    request = make_request(
        PROMPTS, target=FLASH, sources=[make_document()], options=Options(system_instruction="Be brief.")
    )
    assert plan.calls == make_plan(request).calls


@pytest.mark.parametrize(("prompts", "mode"), [(1, "none"), (2, "explicit"), (3, "explicit")])
def test_a_cache_pays_from_the_second_prompt_on(prompts: int, mode: str) -> None:
    """A read costs a tenth of the input, and the storage is paid for three minutes."""
    assert get_choice(make_cached_plan(prompts=PROMPTS[:prompts])).mode == mode


NO_CACHE: list[tuple[dict[str, Any], str]] = [
    ({"prompts": ["One?"]}, "no two prompts"),
    ({"sources": []}, "no sources or instructions in common"),
    ({"sources": [make_document(2_000)]}, "needs 2,048 tokens, and the prompts share about 2,000"),
    ({"target": GEMINI_3, "sources": [make_document(4_000)]}, "4,096 tokens"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"provider_options": {"gemini": {"systemInstruction": "Be brief."}}}, "provider_options"),
    ({"target": Target(provider="gemini", model="gemini-unheard-of")}, "price of a cache of gemini-unheard-of"),
    ({"target": Target(provider="gemini", model="gemini-4-flash")}, "gemini caches repeated prefixes"),
    ({"target": Target(provider="openai", model="gpt-5-mini")}, "openai caches repeated prefixes"),
    ({"target": Target(provider="openrouter", model="google/gemini-2.5-flash")}, "caches repeated prefixes"),
    ({"target": Target(provider="local", model="llama", base_url="http://localhost:1")}, "caches repeated prefixes"),
    ({"sources": [Source.from_youtube("https://youtu.be/dQw4w9WgXcQ")]}, "length of the content at an address"),
    ({"prompts": [None, "One?"]}, "without a prompt"),
    ({"target": CLAUDE, "sources": [make_document(4_000)]}, "caching needs 4,096 tokens"),
    ({"target": CLAUDE, "implicit_caching": False}, "the options set implicit_caching"),
    ({"target": CLAUDE, "prompts": ["One?"]}, "no two prompts"),
    ({"target": Target(provider="anthropic", model="claude-unheard-of")}, "price of caching with claude-unheard-of"),
    ({"sources": [make_document(), make_document(letter="y")], "each_source": True, "prompts": ["One?"]},
     "no two prompts"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "why"), NO_CACHE)
def test_no_cache_is_planned_where_none_would_pay(arguments: dict[str, Any], why: str) -> None:
    """The plan stays the same, and the choice names the reason."""
    plan = make_cached_plan(**arguments)
    assert get_choice(plan).mode == "none"
    assert why in get_choice(plan).why
    assert plan.cache_request is None
    assert plan.options.implicit_caching in {None, False}


def test_prompts_about_a_long_document_warm_the_cache_of_anthropic() -> None:
    plan = make_cached_plan(CLAUDE)
    assert get_choice(plan).mode == "warm"
    assert plan.options.implicit_caching == "warm"
    assert plan.cache_request is None


def test_a_broadcast_with_one_short_source_still_warms_the_cache_of_anthropic() -> None:
    """The calls about the short source cost as much as without a cache."""
    sources = [make_document(), make_document(100, "y"), make_document(letter="z")]
    assert get_choice(make_cached_plan(CLAUDE, sources=sources, each_source=True)).mode == "warm"


def test_a_cache_write_for_an_hour_pays_from_three_prompts_on() -> None:
    """A write for an hour costs twice the document, and one for five minutes 1.25 times."""
    assert get_choice(make_cached_plan(CLAUDE, PROMPTS[:2])).mode == "warm"
    assert get_choice(make_cached_plan(CLAUDE, PROMPTS[:2], cache_ttl="1h")).mode == "none"
    assert get_choice(make_cached_plan(CLAUDE, PROMPTS[:3], cache_ttl="1h")).mode == "warm"


def test_answered_calls_do_not_count_towards_a_cache() -> None:
    """A retry with one missing answer creates no cache."""
    request = make_request(PROMPTS, target=FLASH, sources=[make_document()])
    plan = make_plan(request)
    assert get_choice(plan_cache(plan, plan.calls[:1], 6)).mode == "none"
    assert "answered already" in get_choice(plan_cache(plan, [], 6)).why


def test_a_broadcast_gets_a_cache_for_each_source_that_is_long_enough() -> None:
    sources = [make_document(letter="a"), make_document(100, letter="b"), make_document(letter="c")]
    plan = make_cached_plan(sources=sources, each_source=True)
    assert get_choice(plan).sources == [0, 2]
    assert [request and request.sources for request in map(plan.find_cache_request, range(3))] == [
        [sources[0]],
        None,
        [sources[2]],
    ]


@pytest.mark.parametrize(
    ("mime_type", "utf8", "tokens"),
    [("text/plain", True, 100_000), ("application/json", True, 100_000), ("image/png", None, 258)],
)
def test_the_tokens_of_a_file_are_estimated_from_its_size_and_type(
    mime_type: str, utf8: bool | None, tokens: int
) -> None:
    content = Content(sha256="a", size_bytes=400_000, mime_type=mime_type, utf8=utf8)
    assert estimate_tokens(Source(source_type="file", uri="a"), content) == tokens


# --- The run ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


@pytest.fixture
def gemini(config: MakeConfig) -> Config:
    return config("gemini", model="gemini-2.5-flash")


async def run_with_auto_cache(config: Config, prompts: list[str] = PROMPTS, **arguments: Any) -> ResultEnvelope:
    return await run_many(prompts, sources=[make_document()], config=config, cache="auto", **arguments)


def list_operations(sim: Simulator) -> list[str | None]:
    return [entry.operation for entry in sim.requests if entry.operation != "generate"]


async def list_records(config: Config) -> list[CacheRecord]:
    return await open_registry(config).list()


async def test_a_run_creates_a_cache_and_deletes_it(gemini: Config, sim: Simulator) -> None:
    """All prompts read from the cache, and the envelope names the reason."""
    envelope = await run_with_auto_cache(gemini)
    assert list_operations(sim) == ["cache.create", "cache.delete"]
    assert await list_records(gemini) == []
    assert envelope.metrics["cache_mode"] == "persistent"
    assert envelope.metrics["cache_used"] is True
    assert envelope.usage["cached_tokens"] == 10 * 10_000
    assert envelope.diagnostics["cache"]["mode"] == "explicit"
    assert "the sources in a cache for 180 seconds" in envelope.diagnostics["cache"]["why"]


async def test_the_cache_is_deleted_after_a_failed_run(gemini: Config, sim: Simulator) -> None:
    """The retry asks only for the missing answer, and creates no cache."""
    sim.fail(Fault(status=400, message="not now"), contains=PROMPTS[3])
    with pytest.raises(APIError, match="not now") as caught:
        await run_with_auto_cache(gemini, run_key="nightly")
    assert caught.value.envelope is not None
    assert list_operations(sim) == ["cache.create", "cache.delete"]
    envelope = await run_with_auto_cache(gemini, run_key="nightly")
    assert (envelope.status, envelope.metrics["n_reused"]) == ("ok", 9)
    assert list_operations(sim) == ["cache.create", "cache.delete"]
    assert envelope.diagnostics["cache"]["mode"] == "none"
    assert len(asked(sim)) == 11


async def test_calls_have_the_same_identity_with_and_without_an_automatic_cache(gemini: Config, sim: Simulator) -> None:
    """Answers of either kind of run are reused by the other."""
    await run_with_auto_cache(gemini)
    without = await run_many(PROMPTS, sources=[make_document()], config=gemini, reuse="always")
    assert without.metrics["n_reused"] == 10
    assert "cache" not in without.diagnostics
    again = await run_with_auto_cache(gemini, reuse="always")
    assert again.metrics["n_reused"] == 10
    assert len(asked(sim)) == 10


@pytest.mark.parametrize("fault", [Fault(status=400, message="too small"), Fault(status=403, message="forbidden")])
async def test_a_refused_cache_costs_no_answer(fault: Fault, gemini: Config, sim: Simulator) -> None:
    """The calls are sent with the sources, and the envelope names the error."""
    sim.fail(fault, operation="cache.create", times=None)
    envelope = await run_with_auto_cache(gemini)
    assert envelope.status == "ok"
    assert envelope.metrics["n_cache_hits"] == 0
    assert str(fault.message) in envelope.diagnostics["cache"]["why"]
    assert list_operations(sim) == ["cache.create"]


async def test_calls_are_sent_without_a_cache_once_it_was_lost_twice(gemini: Config, sim: Simulator) -> None:
    sim.fail(Fault(status=403, message="CachedContent not found (or permission denied)"), times=2)
    envelope = await run_with_auto_cache(gemini, prompts=PROMPTS[:2], run_key="a")
    assert envelope.status == "ok"
    assert len([each for each in list_operations(sim) if each == "cache.create"]) == 2
    assert await list_records(gemini) == []


async def test_a_cache_from_create_cache_is_used_and_not_deleted(gemini: Config, sim: Simulator) -> None:
    handle = await create_cache([make_document()], config=gemini)
    envelope = await run_with_auto_cache(gemini)
    assert envelope.metrics["cache_used"] is True
    assert list_operations(sim) == ["cache.create"]
    assert [cache_name(record.identity) for record in await list_records(gemini)] == [cache_name(handle.identity or "")]


async def test_a_lost_cache_from_create_cache_is_recreated_and_not_deleted(gemini: Config, sim: Simulator) -> None:
    """Its name must stay valid for those who use it."""
    handle = await create_cache([make_document()], config=gemini)
    sim.gemini_caches.clear()
    assert (await run_with_auto_cache(gemini)).metrics["cache_used"] is True
    assert list_operations(sim) == ["cache.create", "cache.create"]
    envelope = await run("p", config=gemini, cache=cache_name(handle.identity or ""))
    assert envelope.metrics["cache_used"] is True


async def test_a_single_prompt_is_sent_without_a_cache(gemini: Config, sim: Simulator) -> None:
    envelope = await run("p", source=make_document(), config=gemini, cache="auto")
    assert list_operations(sim) == []
    assert "no two prompts" in envelope.diagnostics["cache"]["why"]
    assert envelope.metrics["cache_mode"] == "none"


async def test_a_run_with_anthropic_writes_the_cache_once(config: MakeConfig, sim: Simulator) -> None:
    """The run costs 1.25 times the document for the write and 0.1 for each of nine reads, instead of 10."""
    sim.latency_s = 0.05
    envelope = await run_with_auto_cache(config("anthropic"))
    assert (envelope.metrics["n_cache_hits"], envelope.metrics["cache_write_tokens"]) == (9, 10_000)
    assert envelope.diagnostics["cache"]["mode"] == "warm"


async def test_a_cache_is_created_only_if_the_budget_covers_it_and_a_call(gemini: Config, sim: Simulator) -> None:
    """Otherwise the calls are sent with the sources, as long as the budget covers them."""
    serial = gemini.model_copy(update={"request_concurrency": 1})
    with pytest.raises(BudgetError, match=r"the run has cost \$0.00\d* so far, this call may cost up to \$0.01"):
        await run_many(
            PROMPTS, sources=[make_document()], config=serial, options=SHORT, cache="auto", max_cost_usd=0.013
        )
    assert list_operations(sim) == []
    assert asked(sim)
    sim.reset()
    envelope = await run_many(
        PROMPTS, sources=[make_document()], config=serial, options=SHORT, cache="auto", max_cost_usd=0.04, reuse="never"
    )
    assert list_operations(sim)[0] == "cache.create"
    assert envelope.metrics["cost_usd"] < 0.04


async def test_a_handle_in_the_options_takes_precedence_over_cache_auto(gemini: Config, sim: Simulator) -> None:
    handle = await create_cache([make_document()], config=gemini)
    envelope = await run_many(PROMPTS, config=gemini, options=Options(cache=handle), cache="auto")
    assert list_operations(sim) == ["cache.create"]
    assert envelope.metrics["cache_used"] is True
    assert "name a cache already" in envelope.diagnostics["cache"]["why"]
