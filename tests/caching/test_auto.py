"""cache="auto": a cache where it is cheaper, none where it is not, and the reason in either case."""

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


def document(tokens: int = 10_000, letter: str = "x") -> Source:
    return Source.from_text(letter * 4 * tokens, identifier=letter)


def planned(
    target: Target = FLASH,
    prompts: Sequence[str | None] = PROMPTS,
    sources: list[Source] | None = None,
    *,
    each_source: bool = False,
    **options: Any,
) -> Plan:
    sources = [document()] if sources is None else sources
    request = make_request(prompts, target=target, sources=sources, options=Options(**options), each_source=each_source)
    plan = make_plan(request)
    return plan_cache(plan, plan.calls, 6)


def choice_of(plan: Plan) -> CacheChoice:
    assert plan.cache_choice is not None
    return plan.cache_choice


# --- The decision -------------------------------------------------------------------------------------------


def test_many_prompts_about_a_long_document_share_a_cache() -> None:
    """Of the shortest lifetime that serves them; what the calls are called does not change."""
    plan = planned(system_instruction="Be brief.")
    assert choice_of(plan).mode == "explicit"
    assert "$0.0" in choice_of(plan).why
    assert plan.cache_request is not None
    assert plan.cache_request.ttl_seconds == 180
    assert plan.cache_request.system_instruction == "Be brief."
    request = make_request(PROMPTS, target=FLASH, sources=[document()], options=Options(system_instruction="Be brief."))
    assert plan.calls == make_plan(request).calls


@pytest.mark.parametrize(("prompts", "mode"), [(1, "none"), (2, "explicit"), (3, "explicit")])
def test_from_so_many_prompts_on_it_pays(prompts: int, mode: str) -> None:
    """A tenth for each read, and the storage of three minutes: from the second on."""
    assert choice_of(planned(prompts=PROMPTS[:prompts])).mode == mode


NOTHING: list[tuple[dict[str, Any], str]] = [
    ({"prompts": ["One?"]}, "no two prompts"),
    ({"sources": []}, "no sources or instructions in common"),
    ({"sources": [document(2_000)]}, "needs 2,048 tokens, and the prompts share about 2,000"),
    ({"target": GEMINI_3, "sources": [document(4_000)]}, "4,096 tokens"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"provider_options": {"gemini": {"systemInstruction": "Be brief."}}}, "provider_options"),
    ({"target": Target(provider="gemini", model="gemini-unheard-of")}, "price of a cache of gemini-unheard-of"),
    ({"target": Target(provider="gemini", model="gemini-4-flash")}, "gemini caches repeated prefixes"),
    ({"target": Target(provider="openai", model="gpt-5-mini")}, "openai caches repeated prefixes"),
    ({"target": Target(provider="openrouter", model="google/gemini-2.5-flash")}, "caches repeated prefixes"),
    ({"target": Target(provider="local", model="llama", base_url="http://localhost:1")}, "caches repeated prefixes"),
    ({"sources": [Source.from_youtube("https://youtu.be/dQw4w9WgXcQ")]}, "length of the content at an address"),
    ({"prompts": [None, "One?"]}, "without a prompt"),
    ({"target": CLAUDE, "sources": [document(4_000)]}, "caching needs 4,096 tokens"),
    ({"target": CLAUDE, "implicit_caching": False}, "the options set implicit_caching"),
    ({"target": CLAUDE, "prompts": ["One?"]}, "no two prompts"),
    ({"target": Target(provider="anthropic", model="claude-unheard-of")}, "price of caching with claude-unheard-of"),
    ({"sources": [document(), document(letter="y")], "each_source": True, "prompts": ["One?"]}, "no two prompts"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "why"), NOTHING)
def test_where_nothing_can_be_gained_nothing_changes(arguments: dict[str, Any], why: str) -> None:
    """And the reason is there."""
    plan = planned(**arguments)
    assert choice_of(plan).mode == "none"
    assert why in choice_of(plan).why
    assert plan.cache_request is None
    assert plan.options.implicit_caching in {None, False}


def test_a_long_document_is_written_first_with_anthropic() -> None:
    plan = planned(CLAUDE)
    assert choice_of(plan).mode == "warm"
    assert plan.options.implicit_caching == "warm"
    assert plan.cache_request is None


def test_a_short_source_of_a_broadcast_leaves_the_others_warm() -> None:
    """It is sent as ever, at the price that it has anyway."""
    sources = [document(), document(100, "y"), document(letter="z")]
    assert choice_of(planned(CLAUDE, sources=sources, each_source=True)).mode == "warm"


def test_a_write_for_an_hour_pays_from_three_prompts_on() -> None:
    """It costs two documents, where one for five minutes costs 1.25."""
    assert choice_of(planned(CLAUDE, PROMPTS[:2])).mode == "warm"
    assert choice_of(planned(CLAUDE, PROMPTS[:2], cache_ttl="1h")).mode == "none"
    assert choice_of(planned(CLAUDE, PROMPTS[:3], cache_ttl="1h")).mode == "warm"


def test_what_is_answered_counts_for_nothing() -> None:
    """A retry that lacks one answer makes no cache for it."""
    request = make_request(PROMPTS, target=FLASH, sources=[document()])
    plan = make_plan(request)
    assert choice_of(plan_cache(plan, plan.calls[:1], 6)).mode == "none"
    assert "answered already" in choice_of(plan_cache(plan, [], 6)).why


def test_a_broadcast_has_a_cache_a_source_where_that_pays() -> None:
    """Not for the short one."""
    sources = [document(letter="a"), document(100, letter="b"), document(letter="c")]
    plan = planned(sources=sources, each_source=True)
    assert choice_of(plan).sources == [0, 2]
    assert [request and request.sources for request in map(plan.find_cache_request, range(3))] == [
        [sources[0]],
        None,
        [sources[2]],
    ]


@pytest.mark.parametrize(
    ("mime_type", "utf8", "tokens"),
    [("text/plain", True, 100_000), ("application/json", True, 100_000), ("image/png", None, 258)],
)
def test_a_file_is_estimated_by_its_length(mime_type: str, utf8: bool | None, tokens: int) -> None:
    content = Content(sha256="a", size_bytes=400_000, mime_type=mime_type, utf8=utf8)
    assert estimate_tokens(Source(source_type="file", uri="a"), content) == tokens


# --- The run ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


@pytest.fixture
def gemini(config: MakeConfig) -> Config:
    return config("gemini", model="gemini-2.5-flash")


async def ask(config: Config, prompts: list[str] = PROMPTS, **arguments: Any) -> ResultEnvelope:
    return await run_many(prompts, sources=[document()], config=config, cache="auto", **arguments)


def operations(sim: Simulator) -> list[str | None]:
    return [entry.operation for entry in sim.requests if entry.operation != "generate"]


async def records(config: Config) -> list[CacheRecord]:
    return await open_registry(config).list()


async def test_a_run_creates_a_cache_and_deletes_it(gemini: Config, sim: Simulator) -> None:
    """All prompts read from it, and the envelope says why."""
    envelope = await ask(gemini)
    assert operations(sim) == ["cache.create", "cache.delete"]
    assert await records(gemini) == []
    assert envelope.metrics["cache_mode"] == "persistent"
    assert envelope.metrics["cache_used"] is True
    assert envelope.usage["cached_tokens"] == 10 * 10_000
    assert envelope.diagnostics["cache"]["mode"] == "explicit"
    assert "the sources in a cache for 180 seconds" in envelope.diagnostics["cache"]["why"]


async def test_it_is_deleted_after_a_failure_too(gemini: Config, sim: Simulator) -> None:
    """A retry asks the unanswered prompt alone, and creates no cache for it."""
    sim.fail(Fault(status=400, message="not now"), contains=PROMPTS[3])
    with pytest.raises(APIError, match="not now") as failed:
        await ask(gemini, run_key="nightly")
    assert failed.value.envelope is not None
    assert operations(sim) == ["cache.create", "cache.delete"]
    envelope = await ask(gemini, run_key="nightly")
    assert (envelope.status, envelope.metrics["n_reused"]) == ("ok", 9)
    assert operations(sim) == ["cache.create", "cache.delete"]
    assert envelope.diagnostics["cache"]["mode"] == "none"
    assert len(asked(sim)) == 11


async def test_answers_are_those_of_runs_without_it(gemini: Config, sim: Simulator) -> None:
    """It stands beside reuse."""
    await ask(gemini)
    without = await run_many(PROMPTS, sources=[document()], config=gemini, reuse="always")
    assert without.metrics["n_reused"] == 10
    assert "cache" not in without.diagnostics
    again = await ask(gemini, reuse="always")
    assert again.metrics["n_reused"] == 10
    assert len(asked(sim)) == 10


@pytest.mark.parametrize("fault", [Fault(status=400, message="too small"), Fault(status=403, message="forbidden")])
async def test_a_cache_that_cannot_be_had_costs_no_answer(fault: Fault, gemini: Config, sim: Simulator) -> None:
    """The sources are sent along, and the envelope says so."""
    sim.fail(fault, operation="cache.create", times=None)
    envelope = await ask(gemini)
    assert envelope.status == "ok"
    assert envelope.metrics["n_cache_hits"] == 0
    assert str(fault.message) in envelope.diagnostics["cache"]["why"]
    assert operations(sim) == ["cache.create"]


async def test_a_cache_that_is_lost_twice_is_done_without(gemini: Config, sim: Simulator) -> None:
    sim.fail(Fault(status=403, message="CachedContent not found (or permission denied)"), times=2)
    envelope = await ask(gemini, prompts=PROMPTS[:2], run_key="a")
    assert envelope.status == "ok"
    assert len([each for each in operations(sim) if each == "cache.create"]) == 2
    assert await records(gemini) == []


async def test_a_cache_that_is_in_callers_hands_stays(gemini: Config, sim: Simulator) -> None:
    """It is used, and not deleted: another made it."""
    handle = await create_cache([document()], config=gemini)
    envelope = await ask(gemini)
    assert envelope.metrics["cache_used"] is True
    assert operations(sim) == ["cache.create"]
    assert [cache_name(record.identity) for record in await records(gemini)] == [cache_name(handle.identity or "")]


async def test_a_cache_of_others_that_is_made_again_stays_theirs(gemini: Config, sim: Simulator) -> None:
    """They know it by its name, which must go on to name something."""
    handle = await create_cache([document()], config=gemini)
    sim.gemini_caches.clear()
    assert (await ask(gemini)).metrics["cache_used"] is True
    assert operations(sim) == ["cache.create", "cache.create"]
    envelope = await run("p", config=gemini, cache=cache_name(handle.identity or ""))
    assert envelope.metrics["cache_used"] is True


async def test_one_prompt_is_sent_as_ever(gemini: Config, sim: Simulator) -> None:
    envelope = await run("p", source=document(), config=gemini, cache="auto")
    assert operations(sim) == []
    assert "no two prompts" in envelope.diagnostics["cache"]["why"]
    assert envelope.metrics["cache_mode"] == "none"


async def test_anthropic_writes_once(config: MakeConfig, sim: Simulator) -> None:
    """1.25 documents and nine tenths instead of ten."""
    sim.latency_s = 0.05
    envelope = await ask(config("anthropic"))
    assert (envelope.metrics["n_cache_hits"], envelope.metrics["cache_write_tokens"]) == (9, 10_000)
    assert envelope.diagnostics["cache"]["mode"] == "warm"


async def test_it_is_made_only_if_the_budget_has_room_for_it(gemini: Config, sim: Simulator) -> None:
    """And for a call: else the sources are sent along, as long as there is room for that."""
    alone = gemini.model_copy(update={"request_concurrency": 1})
    with pytest.raises(BudgetError, match=r"the run has cost \$0.00\d* so far, this call may cost up to \$0.01"):
        await run_many(PROMPTS, sources=[document()], config=alone, options=SHORT, cache="auto", max_cost_usd=0.013)
    assert operations(sim) == []
    assert asked(sim)
    sim.reset()
    envelope = await run_many(
        PROMPTS, sources=[document()], config=alone, options=SHORT, cache="auto", max_cost_usd=0.04, reuse="never"
    )
    assert operations(sim)[0] == "cache.create"
    assert envelope.metrics["cost_usd"] < 0.04


async def test_a_handle_beside_it_stays_in_use(gemini: Config, sim: Simulator) -> None:
    """It is refused nowhere."""
    handle = await create_cache([document()], config=gemini)
    envelope = await run_many(PROMPTS, config=gemini, options=Options(cache=handle), cache="auto")
    assert operations(sim) == ["cache.create"]
    assert envelope.metrics["cache_used"] is True
    assert "name a cache already" in envelope.diagnostics["cache"]["why"]
