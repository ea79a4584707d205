"""Anthropic's `POST /v1/messages/count_tokens`: counts a request as its answer would bill it, and generates nothing."""

from __future__ import annotations

from pollux_flows.simulator.anthropic import rules
from pollux_flows.simulator.anthropic.models import parse_model
from pollux_flows.simulator.anthropic.reading import read
from pollux_flows.simulator.wire import Call, Operation, Reply


def _respond(call: Call) -> Reply:
    rules.check_count(call)
    # Otherwise, the request is checked like one for the longest answer.
    call.body = {**call.body, "max_tokens": parse_model(call.body["model"]).max_output}
    return Reply({"input_tokens": read(call).input_tokens})


OPERATIONS = (Operation("count_tokens", "POST", "/v1/messages/count_tokens", _respond),)
