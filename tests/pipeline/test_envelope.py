"""What the envelope says about answers that are none, or are not whole."""

from __future__ import annotations

import pytest

from pollux_flows import APIError, ConfigurationError, Options, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import KEY, ONCE, MakeConfig, asked, every_provider, outcomes


@every_provider
async def test_no_prompts_are_no_work(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Zero prompts is a legal run: all is well, nothing is asked, not even the catalogue."""
    envelope = await run_many([], config=config(provider))
    assert (envelope.status, envelope.answers, envelope.usage) == ("ok", [], {})
    assert envelope.metrics["n_calls"] == 0
    assert sim.requests == []


@every_provider
async def test_no_prompts_with_a_schema(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Structured output of nothing is nothing."""
    envelope = await run_many([], config=config(provider), options=Options(response_schema={"type": "object"}))
    assert envelope.structured == []
    assert sim.requests == []


async def test_a_blank_prompt_is_named(config: MakeConfig, sim: Simulator) -> None:
    """By its index, before anything is asked."""
    with pytest.raises(ConfigurationError, match=r"prompts\[1\] is blank"):
        await run_many(["a", "  ", "c"], config=config("local"))
    assert sim.requests == []


@every_provider
async def test_blocked_is_said_and_not_raised(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """The provider answered, and was paid: the envelope says which prompt, and that it was blocked."""
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
async def test_all_blocked_is_an_error(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Nobody has an answer: the status says so; nothing is raised."""
    sim.fail(Fault(kind="blocked"))
    envelope = await run("p", config=config(provider))
    assert envelope.status == "error"
    assert envelope.confidence == 0.5
    assert len(asked(sim)) == 1


@every_provider
async def test_truncated_is_partial(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """The half that came is kept, and a warning says what to raise."""
    sim.fail(Fault(kind="truncated"))
    envelope = await run("Tell me about the sea.", config=config(provider))
    assert envelope.status == "partial"
    assert envelope.answers[0]
    assert envelope.errors is None
    (warning,) = envelope.diagnostics["warnings"]
    assert "raise max_tokens" in warning


@every_provider
async def test_empty_is_said(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Neither text nor call nor block: that is no answer, and it is not asked again unasked."""
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
async def test_an_error_under_200_is_raised(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """OK is what the status says; what the body says counts."""
    sim.fail(Fault(kind="error_200", message="the model fell over"))
    with pytest.raises(APIError, match="the model fell over") as caught:
        await run("p", config=config(provider, retry=ONCE))
    assert caught.value.provider == provider
    assert caught.value.phase == "generate"
    assert caught.value.call_idx == 0
    # A 502 of OpenRouter's is the word of a gateway: the provider behind it may have answered, and billed.
    assert caught.value.outcome_unknown is (provider == "openrouter")


@every_provider
async def test_a_passing_error_under_200_is_retried(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """As it would be under its own status."""
    sim.fail(Fault(kind="error_200"))
    assert (await run("p", config=config(provider))).status == "ok"
    assert len(asked(sim)) == 2


@every_provider
async def test_the_first_failure_is_raised_after_all_have_ended(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """run_many raises for the lowest index; nobody's call is cut short for it."""
    sim.fail(Fault(kind="slow", delay_s=0.1), contains="slow one", times=None)
    sim.fail(Fault(status=400, message="no"), contains="bad", times=None)
    with pytest.raises(APIError) as caught:
        await run_many(["slow one", "bad 1", "bad 2"], config=config(provider))
    assert caught.value.call_idx == 1
    assert [entry.status for entry in asked(sim) if "slow one" in str(entry.body)] == [200]


@every_provider
async def test_a_failed_call_costs_its_siblings_nothing(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Seen from a flow: every call has its own outcome."""
    sim.fail(Fault(status=400, message="no"), contains="bad")
    first, bad, last = await outcomes(["first", "bad", "last"], config(provider))
    assert first.answer is not None
    assert last.answer is not None
    assert bad.failure is not None
    assert (bad.failure.index, bad.failure.kind, bad.failure.status_code) == (1, "api_error", 400)


@every_provider
async def test_the_key_is_in_no_outcome(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Not in what succeeded, not in what failed, not in how it is shown."""
    sim.fail(Fault(status=400, message=f"your key {KEY} is bad"), contains="bad")
    made = await outcomes(["good", "bad"], config(provider))
    assert made[1].failure is not None
    assert "[REDACTED]" in made[1].failure.message
    assert KEY not in "".join(f"{outcome!r}{outcome.model_dump_json()}" for outcome in made)


async def test_what_each_call_took(config: MakeConfig) -> None:
    """The diagnostics say it, and no more than that: in a flow, Prefect looks at each word of it."""
    envelope = await run_many(["first", "second"], config=config("openai"))
    for call in envelope.diagnostics["calls"]:
        assert call.keys() == {"attempts", "duration_s", "cost_usd", "reused", "cache_used"}
        assert (call["attempts"], call["reused"]) == (1, None)
