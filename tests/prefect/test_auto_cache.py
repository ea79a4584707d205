"""cache="auto" in flows: a cache while the run lasts, where that is cheaper, and no answer that is paid for twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Scheduled

from pollux_flows import APIError, ResultEnvelope, Source
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import afan_out, broadcast, fan_in, fan_out, realtime, warm_cache
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.simulator import Fault, Simulator
from tests.prefect.test_flows import artifacts_of, newest_run
from tests.prefect.test_served import finished, started, until

PROMPTS = ["Who was it?", "Where was it?", "When was it?"]
SERVE = """
from prefect import serve
from pollux_flows.flows import fan_out
serve(fan_out.to_deployment("nightly"))
"""


def document(letter: str, tokens: int = 10_000) -> Source:
    return Source.from_text(letter * 4 * tokens, identifier=letter)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


@pytest.fixture
def gemini(world: tuple[Simulator, str], simulator: Simulator) -> PolluxProvider:
    address = simulator.base_url("gemini", origin=world[1])
    return PolluxProvider(provider="gemini", model="gemini-2.5-flash", api_key="gm-never-saved", base_url=address)


def operations(simulator: Simulator) -> list[str]:
    return [str(entry.operation) for entry in simulator.requests if "cache" in str(entry.operation)]


def answered(simulator: Simulator) -> int:
    """How many prompts were paid for."""
    return sum(entry.operation == "generate" and entry.status == 200 for entry in simulator.requests)


async def test_a_run_creates_a_cache_and_deletes_it(gemini: PolluxProvider, simulator: Simulator) -> None:
    """The task runs share it; the page of the run says so in one line."""
    envelope = await afan_out(PROMPTS, gemini, [document("a")], cache="auto")
    assert envelope.metrics["cache_used"] is True
    assert envelope.diagnostics["cache"]["mode"] == "explicit"
    assert operations(simulator) == ["cache.create", "cache.delete"]
    assert not [record for record in await BlockRegistry().list() if record.contents == ["a"]]
    (page,) = [each for each in await artifacts_of(await newest_run("fan-out")) if each.type == "markdown"]
    assert "| Cache | created: the sources in a cache for" in str(page.data)


def test_a_broadcast_has_a_cache_a_source(gemini: PolluxProvider, simulator: Simulator) -> None:
    """Where that pays: the short one is sent along."""
    sources = [document("b"), document("c", 100), document("d")]
    envelopes = broadcast(PROMPTS, sources, gemini, cache="auto")
    assert [envelope.status for envelope in envelopes] == ["ok"] * 3
    assert [envelope.metrics["n_cache_hits"] for envelope in envelopes] == [3, 0, 3]
    assert [envelope.metrics["cache_mode"] for envelope in envelopes] == ["persistent", "none", "persistent"]
    assert sorted(operations(simulator)) == ["cache.create"] * 2 + ["cache.delete"] * 2
    held = [envelope.metrics["caching"]["created_tokens"] for envelope in envelopes if "caching" in envelope.metrics]
    assert held == [envelopes[0].usage["cached_tokens"] / 3, envelopes[2].usage["cached_tokens"] / 3]
    # It pays for no cache of the others.
    answers_usd = sum(call["cost_usd"] for call in envelopes[1].diagnostics["calls"])
    assert envelopes[1].metrics["cost_usd"] == pytest.approx(answers_usd)


def test_one_prompt_makes_none(gemini: PolluxProvider, simulator: Simulator) -> None:
    for envelope in (
        realtime("Who?", gemini, [document("e")], cache="auto"),
        fan_in("Who?", [document("e")], gemini, cache="auto"),
    ):
        assert "no two prompts" in envelope.diagnostics["cache"]["why"]
    assert operations(simulator) == []


def test_a_provider_that_caches_by_itself_is_left_alone(provider: PolluxProvider) -> None:
    envelope = fan_out(PROMPTS, provider, [document("f")], cache="auto")
    assert envelope.status == "ok"
    assert "caches repeated prefixes" in envelope.diagnostics["cache"]["why"]


def test_a_warmed_cache_is_used_and_stays(gemini: PolluxProvider, simulator: Simulator) -> None:
    """A warmed cache stays for other runs."""
    warm_cache([document("g")], gemini)
    envelope = fan_out(PROMPTS, gemini, [document("g")], cache="auto")
    assert envelope.metrics["cache_used"] is True
    assert operations(simulator) == ["cache.create"]


# --- Night after night --------------------------------------------------------------------------------------


def test_when_yesterdays_cache_is_gone_another_is_made(gemini: PolluxProvider, simulator: Simulator) -> None:
    """Lost at the provider without a word: a retry of the night asks only what has no answer."""
    warm_cache([document("h")], gemini)
    simulator.gemini_caches.clear()
    simulator.fail(Fault(status=400, message="not now"), contains="Where")

    @flow(retries=1, retry_delay_seconds=0)
    def nightly() -> ResultEnvelope:
        return fan_out(PROMPTS, gemini, [document("h")], cache="auto")

    envelope = nightly()
    assert envelope.metrics["n_reused"] == 2
    assert operations(simulator).count("cache.create") == 2
    assert answered(simulator) == 3


@pytest.mark.timeout(300)
async def test_a_nightly_deployment_pays_for_no_answer_twice(gemini: PolluxProvider, simulator: Simulator) -> None:
    """Two nights of a served flow; the second fails half-way and is retried as from the UI."""
    saved = await gemini.asave("for-the-night", overwrite=True)
    server = started(SERVE)
    try:

        async def deployed() -> Any:
            async with get_client() as client:
                found = [each for each in await client.read_deployments() if each.name == "nightly"]
            return found and found[0].id

        deployment = await until(deployed)

        async def night() -> Any:
            async with get_client() as client:
                return await client.create_flow_run_from_deployment(
                    deployment,
                    parameters={
                        "prompts": PROMPTS,
                        "provider": {"$ref": {"block_document_id": str(saved)}},
                        "sources": [{"source_type": "text", "text": "i" * 40_000}],
                        "cache": "auto",
                    },
                )

        first = await night()
        ended = await until(lambda: finished(first))
        assert ended.state.is_completed()
        assert operations(simulator) == ["cache.create", "cache.delete"]
        paid_before = answered(simulator)
        simulator.fail(Fault(status=400, message="not now"), contains="Where")
        second = await night()
        ended = await until(lambda: finished(second))
        assert ended.state.is_failed()
        assert operations(simulator) == 2 * ["cache.create", "cache.delete"]
        async with get_client() as client:
            await client.set_flow_run_state(second.id, Scheduled(), force=True)

        async def retried() -> Any:
            run = await finished(second)
            return run if run is not None and run.run_count == 2 else None

        ended = await until(retried)
        assert ended.state.is_completed()
        envelope = await ended.state.aresult()
        assert envelope.metrics["n_reused"] == 2
        assert "no two prompts" in envelope.diagnostics["cache"]["why"]
        assert operations(simulator) == 2 * ["cache.create", "cache.delete"]
        assert (paid_before, answered(simulator)) == (3, 6)
    finally:
        server.terminate()
        server.wait(30)


async def test_a_failed_run_deletes_its_cache(gemini: PolluxProvider, simulator: Simulator) -> None:
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    with pytest.raises(APIError):
        await afan_out(PROMPTS, gemini, [document("j")], cache="auto")
    assert operations(simulator) == ["cache.create", "cache.delete"]
