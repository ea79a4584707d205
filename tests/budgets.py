"""Budgets for tests: the worst case of a call, and the bill that the simulator would send."""

from __future__ import annotations

from pollux_flows import Config, Options
from pollux_flows.pipeline.execute import open_execution
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.simulator import Simulator, tokens
from pollux_flows.simulator.answers import PROMPT_CHARS
from tests.loopback import asked

SHORT = Options(max_tokens=16)
# The prices of gpt-4.1-mini, in US dollars for a token.
INPUT_USD, OUTPUT_USD = 0.4e-6, 1.6e-6


async def find_worst_case(config: Config, prompt: str, options: Options = SHORT, *, of: int = 1) -> float:
    """Return the worst case of a call in US dollars, as one of a plan of `of` calls."""
    plan = make_plan(make_request([prompt] * of, target=config.target, options=options))
    async with open_execution(plan, config) as execution:
        return (await execution.find_worst_case(plan.calls[0])).usd(prompt)


def compute_bill(sim: Simulator) -> float:
    """Return the price of all answers of gpt-4.1-mini in US dollars, including answers that never arrived."""
    usd = 0.0
    for entry in asked(sim):
        if entry.status == 200 or entry.fault == "drop_after":
            ((message,),) = ([item["content"] for item in entry.body["input"]],)
            prompt = message if isinstance(message, str) else message[0]["text"]
            output = tokens.of_text(f"Simulated answer to: {prompt[:PROMPT_CHARS]}")
            usd += tokens.of_text(prompt) * INPUT_USD
            usd += min(output, entry.body.get("max_output_tokens", output)) * OUTPUT_USD
    return usd
