"""OpenAI's `POST /responses/input_tokens`: counts a request as its answer would bill it, and generates nothing."""

from __future__ import annotations

from pollux_flows.simulator.openai import shapes
from pollux_flows.simulator.openai.reading import read
from pollux_flows.simulator.openai.rules import refusal_for
from pollux_flows.simulator.shape import Mismatch
from pollux_flows.simulator.wire import Call, Operation, Reply


def _respond(call: Call) -> Reply:
    try:
        shapes.count_request_check()(call.body, ())
    except Mismatch as mismatch:
        raise refusal_for(mismatch) from None
    return Reply({"object": "response.input_tokens", "input_tokens": read(call).input_tokens})


OPERATIONS = (Operation("count_tokens", "POST", "/responses/input_tokens", _respond),)
