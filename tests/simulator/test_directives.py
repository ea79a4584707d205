"""A prompt can ask for its own fault: the door for whoever has only a form."""

import pytest

from pollux_flows.simulator import Simulator

from .clients import Client, Failed


async def test_a_directive_makes_its_prompt_fail(client: Client) -> None:
    """`times` counts per prompt; after that the prompt is answered."""
    prompt = "Hello? [[simulate: status=429 retry_after=2 times=2]]"
    for _ in range(2):
        with pytest.raises(Failed) as failed:
            await client.ask(prompt)
        assert failed.value.headers["retry-after"] == "2"
    assert (await client.ask(prompt)).text == "Simulated answer to: Hello?"


async def test_each_prompt_counts_for_itself(client: Client) -> None:
    """Another prompt with the same directive has its own fault still before it."""
    for prompt in ("A [[simulate: status=500 times=1]]", "B [[simulate: status=500 times=1]]"):
        with pytest.raises(Failed):
            await client.ask(prompt)
        assert (await client.ask(prompt)).text


async def test_without_times_it_holds_for_ever(client: Client) -> None:
    """A prompt that is blocked stays blocked, as in life."""
    for _ in range(2):
        assert (await client.ask("Bad [[simulate: truncated]]")).stop in (
            "incomplete",
            "max_tokens",
            "MAX_TOKENS",
            "length",
        )


async def test_several_directives_come_one_after_the_other(client: Client) -> None:
    """First the error, then the cut answer."""
    prompt = "Go [[simulate: status=503 times=1]][[simulate: invalid_json times=1]]"
    with pytest.raises(Failed):
        await client.ask(prompt)
    assert (await client.ask(prompt)).text == "Simulated answer that is not the JSON that was asked for"
    assert (await client.ask(prompt)).text == "Simulated answer to: Go"


async def test_values_may_be_quoted(client: Client) -> None:
    """A message or a date has spaces in it."""
    with pytest.raises(Failed) as failed:
        await client.ask('[[simulate: status=400 message="too hot"]]')
    assert "too hot" in str(failed.value.body)


async def test_a_directive_in_a_source_is_only_text(client: Client) -> None:
    """Only the prompt is obeyed: a document about the simulator must not set it off."""
    said = await client.ask("Sum up.", before=("Write [[simulate: status=500]] to see an error.",))
    assert said.text == "Simulated answer to: Sum up."


@pytest.mark.parametrize("nonsense", ["explode", "status=abc", "times=2", "status=429 times=0", "colour=red", ""])
async def test_a_directive_that_makes_no_sense_is_an_error(nonsense: str, client: Client) -> None:
    """It is not ignored: whoever typed it waits for something to happen."""
    with pytest.raises(Failed) as failed:
        await client.ask(f"[[simulate: {nonsense}]]")
    assert failed.value.status == 400
    assert "is not a valid directive" in str(failed.value.body)


async def test_a_reset_forgets_how_often_a_prompt_was_met(client: Client, sim: Simulator) -> None:
    """After a reset the same prompt fails again."""
    prompt = "Hello? [[simulate: status=500 times=1]]"
    for _ in range(2):
        with pytest.raises(Failed):
            await client.ask(prompt)
        sim.reset()
