"""Directives: a fault that is requested in the text of a prompt."""

import pytest

from pollux_flows.simulator import Simulator

from .clients import Client, ErrorResponse


async def test_a_directive_makes_its_prompt_fail(client: Client) -> None:
    """The directive applies to the first `times` requests with that prompt; the next one is answered."""
    prompt = "Hello? [[simulate: status=429 retry_after=2 times=2]]"
    for _ in range(2):
        with pytest.raises(ErrorResponse) as caught:
            await client.ask(prompt)
        assert caught.value.headers["retry-after"] == "2"
    assert (await client.ask(prompt)).text == "Simulated answer to: Hello?"


async def test_each_prompt_has_its_own_count(client: Client) -> None:
    """The number of faults is counted separately for each prompt."""
    for prompt in ("A [[simulate: status=500 times=1]]", "B [[simulate: status=500 times=1]]"):
        with pytest.raises(ErrorResponse):
            await client.ask(prompt)
        assert (await client.ask(prompt)).text


async def test_a_directive_without_times_applies_for_ever(client: Client) -> None:
    """A prompt with such a directive fails each time."""
    for _ in range(2):
        assert (await client.ask("Bad [[simulate: truncated]]")).stop in (
            "incomplete",
            "max_tokens",
            "MAX_TOKENS",
            "length",
        )


async def test_several_directives_apply_in_order(client: Client) -> None:
    """Each directive applies after the one before it is used up."""
    prompt = "Go [[simulate: status=503 times=1]][[simulate: invalid_json times=1]]"
    with pytest.raises(ErrorResponse):
        await client.ask(prompt)
    assert (await client.ask(prompt)).text == "Simulated answer that is not the JSON that was asked for"
    assert (await client.ask(prompt)).text == "Simulated answer to: Go"


async def test_values_may_be_quoted(client: Client) -> None:
    """A quoted value may contain spaces."""
    with pytest.raises(ErrorResponse) as caught:
        await client.ask('[[simulate: status=400 message="too hot"]]')
    assert "too hot" in str(caught.value.body)


async def test_a_directive_in_a_source_has_no_effect(client: Client) -> None:
    """Only the prompt is searched, so a document about the simulator does not trigger faults."""
    answer = await client.ask("Sum up.", sources=("Write [[simulate: status=500]] to see an error.",))
    assert answer.text == "Simulated answer to: Sum up."


@pytest.mark.parametrize("nonsense", ["explode", "status=abc", "times=2", "status=429 times=0", "colour=red", ""])
async def test_an_invalid_directive_is_an_error(nonsense: str, client: Client) -> None:
    """An invalid directive is refused with 400, not ignored."""
    with pytest.raises(ErrorResponse) as caught:
        await client.ask(f"[[simulate: {nonsense}]]")
    assert caught.value.status == 400
    assert "is not a valid directive" in str(caught.value.body)


async def test_a_reset_restarts_the_counts_of_directives(client: Client, sim: Simulator) -> None:
    """After a reset, a prompt fails again."""
    prompt = "Hello? [[simulate: status=500 times=1]]"
    for _ in range(2):
        with pytest.raises(ErrorResponse):
            await client.ask(prompt)
        sim.reset()
