"""Envelopes of blocked, empty, truncated and failed answers."""

from __future__ import annotations

import pytest

from pollux_flows import APIError, ConfigurationError, Options, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import KEY, ONCE, MakeConfig, asked, every_provider, outcomes


@every_provider
async def test_a_run_without_prompts_sends_nothing(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Its status is ok, and not even the catalogue is requested."""
    envelope = await run_many([], config=config(provider))
    assert (envelope.status, envelope.answers, envelope.usage) == ("ok", [], {})
    assert envelope.metrics["n_calls"] == 0
    assert sim.requests == []


@every_provider
async def test_structured_output_of_no_prompts_is_an_empty_list(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    envelope = await run_many([], config=config(provider), options=Options(response_schema={"type": "object"}))
    assert envelope.structured == []
    assert sim.requests == []


async def test_a_blank_prompt_is_refused_by_its_index(config: MakeConfig, sim: Simulator) -> None:
    """The refusal comes before any request."""
    with pytest.raises(ConfigurationError, match=r"prompts\[1\] is blank"):
        await run_many(["a", "  ", "c"], config=config("local"))
    assert sim.requests == []


@every_provider
async def test_a_blocked_answer_is_reported_in_the_envelope(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The blocked answer was paid for, so nothing is raised; the envelope names the prompt."""
    sim.fail(Fault(kind="blocked"), contains="second")
    envelope = await run_many(["first", "second"], config=config(provider))
    assert envelope.status == "partial"
    assert envelope.errors is not None
    first, second = envelope.errors
    assert first is None
    assert second is not None
    assert (second.index, second.kind, second.retryable) == (1, "blocked", False)
    assert second.hint


@every_provider
async def test_an_envelope_of_only_blocked_answers_has_the_status_error(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Nothing is raised, and the call is not repeated."""
    sim.fail(Fault(kind="blocked"))
    envelope = await run("p", config=config(provider))
    assert envelope.status == "error"
    assert envelope.confidence == 0.5
    assert len(asked(sim)) == 1


@every_provider
async def test_an_envelope_with_a_truncated_answer_has_the_status_partial(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The truncated text is in the envelope, and a warning advises a larger max_tokens."""
    sim.fail(Fault(kind="truncated"))
    envelope = await run("Tell me about the sea.", config=config(provider))
    assert envelope.status == "partial"
    assert envelope.answers[0]
    assert envelope.errors is None
    (warning,) = envelope.diagnostics["warnings"]
    assert "raise max_tokens" in warning


@every_provider
async def test_an_empty_answer_is_a_failure_and_not_retried(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """An answer is empty if it has neither text nor tool calls and was not blocked."""
    sim.fail(Fault(kind="empty"))
    envelope = await run("p", config=config(provider))
    assert envelope.status == "error"
    assert envelope.errors is not None
    (failure,) = envelope.errors
    assert failure is not None
    assert failure.kind == "empty"
    assert failure.hint
    assert len(asked(sim)) == 1


@every_provider
async def test_an_error_in_a_reply_of_status_200_is_raised(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The body of the reply counts, not its status code."""
    sim.fail(Fault(kind="error_200", message="the model fell over"))
    with pytest.raises(APIError, match="the model fell over") as caught:
        await run("p", config=config(provider, retry=ONCE))
    assert caught.value.provider == provider
    assert caught.value.phase == "generate"
    assert caught.value.call_idx == 0
    # A 502 of OpenRouter comes from a gateway: the provider behind it may have answered, and billed.
    assert caught.value.outcome_unknown is (provider == "openrouter")


@every_provider
async def test_a_retryable_error_in_a_reply_of_status_200_is_retried(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    sim.fail(Fault(kind="error_200"))
    assert (await run("p", config=config(provider))).status == "ok"
    assert len(asked(sim)) == 2


@every_provider
async def test_run_many_raises_the_first_failure_once_all_calls_have_ended(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The failure of the lowest index is raised, and no other call is cancelled."""
    sim.fail(Fault(kind="slow", delay_s=0.1), contains="slow one", times=None)
    sim.fail(Fault(status=400, message="no"), contains="bad", times=None)
    with pytest.raises(APIError) as caught:
        await run_many(["slow one", "bad 1", "bad 2"], config=config(provider))
    assert caught.value.call_idx == 1
    assert [entry.status for entry in asked(sim) if "slow one" in str(entry.body)] == [200]


@every_provider
async def test_a_failed_call_does_not_affect_the_others(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """In a flow, each call has its own outcome."""
    sim.fail(Fault(status=400, message="no"), contains="bad")
    first, bad, last = await outcomes(["first", "bad", "last"], config(provider))
    assert first.answer is not None
    assert last.answer is not None
    assert bad.failure is not None
    assert (bad.failure.index, bad.failure.kind, bad.failure.status_code) == (1, "api_error", 400)


@every_provider
async def test_the_key_is_in_no_outcome(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Neither the JSON nor the repr of an outcome shows the key, also if the provider's error message does."""
    sim.fail(Fault(status=400, message=f"your key {KEY} is bad"), contains="bad")
    made = await outcomes(["good", "bad"], config(provider))
    assert made[1].failure is not None
    assert "[REDACTED]" in made[1].failure.message
    assert KEY not in "".join(f"{outcome!r}{outcome.model_dump_json()}" for outcome in made)


async def test_the_diagnostics_of_a_call_have_exactly_these_keys(config: MakeConfig) -> None:
    """Prefect inspects each value that a flow returns, so the diagnostics stay small."""
    envelope = await run_many(["first", "second"], config=config("openai"))
    for call in envelope.diagnostics["calls"]:
        assert call.keys() == {"attempts", "duration_s", "cost_usd", "reused", "cache_used"}
        assert (call["attempts"], call["reused"]) == (1, None)
