"""Answers come in the order of the prompts, independently of the order in which calls end."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from pollux_flows import run_many
from pollux_flows.config import PROVIDERS, ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import MakeConfig, Reply, asked, every_provider, good, http, outcomes, scripted


@settings(max_examples=25, deadline=None, derandomize=True)
@given(order=st.permutations(range(5)), provider=st.sampled_from(PROVIDERS))
def test_answers_come_in_the_order_of_the_prompts(order: list[int], provider: ProviderName) -> None:
    """Answer n belongs to prompt n for every order in which the provider finishes."""

    async def ask() -> tuple[list[int], list[str]]:
        turns = [asyncio.Event() for _ in range(6)]
        turns[0].set()
        finished: list[int] = []

        def answer_in_turn(body: bytes) -> Reply:
            prompt = int(body.partition(b"prompt ")[2][:1])
            place = order.index(prompt)

            async def reply(writer: asyncio.StreamWriter) -> None:
                await turns[place].wait()
                finished.append(prompt)
                writer.write(http(good(provider, f"answer {prompt}")))
                await writer.drain()
                turns[place + 1].set()

            return reply

        async with scripted(answer_in_turn, by_body=True) as server:
            envelope = await run_many([f"prompt {n}" for n in range(5)], config=server.config(provider))
        return finished, envelope.answers

    finished, answers = asyncio.run(ask())
    assert finished == order
    assert answers == [f"answer {n}" for n in range(5)]


@every_provider
async def test_each_outcome_has_the_index_of_its_prompt(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The order of outcomes is that of the prompts although the last call ends first."""
    sim.fail(Fault(status=400, message="no", delay_s=0.1), contains="prompt 0")
    sim.fail(Fault(kind="slow", delay_s=0.05), contains="prompt 1")
    made = await outcomes([f"prompt {n}" for n in range(3)], config(provider))
    assert [outcome.index for outcome in made] == [0, 1, 2]
    assert [outcome.failure is not None for outcome in made] == [True, False, False]
    assert [outcome.answer.text if outcome.answer else "" for outcome in made] == [
        "",
        "Simulated answer to: prompt 1",
        "Simulated answer to: prompt 2",
    ]


async def test_two_equal_prompts_are_two_calls(config: MakeConfig, sim: Simulator) -> None:
    envelope = await run_many(["same", "same"], config=config("openai"))
    assert len(envelope.answers) == 2
    assert len(asked(sim)) == 2


@every_provider
async def test_request_concurrency_limits_concurrent_calls(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    sim.latency_s = 0.05
    await run_many([f"p{n}" for n in range(6)], config=config(provider, request_concurrency=2))
    entries = asked(sim)
    overlaps = [
        sum(other.received_at <= entry.received_at < (other.answered_at or 0) for other in entries) for entry in entries
    ]
    assert max(overlaps) <= 2
