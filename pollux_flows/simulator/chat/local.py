"""A local server with one text model: chat completions below `/local/v1`, no key, errors as plain strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from pollux_flows.simulator.answers import compose
from pollux_flows.simulator.chat import reading, rules
from pollux_flows.simulator.chat.completion import completion
from pollux_flows.simulator.faults import Fault
from pollux_flows.simulator.generate_request import GenerateRequest
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Provider, Refusal, Reply, bearer

MODEL = "local-model"
CONTEXT_WINDOW = 131_072


def _read(call: Call) -> GenerateRequest:
    rules.check(call.body)
    for part in reading.parts(call.body):
        if part["type"] != "text":
            raise BadRequest(f"{part['type']} input is not supported by this model")
    return reading.read(call.body, context_window=CONTEXT_WINDOW, reasoning=False)


def _respond(call: Call) -> Reply:
    answer = compose(call.request, call.fault)
    body = completion(
        answer,
        name=f"chatcmpl-{call.simulator.next_number():08d}",
        created=call.simulator.now(),
        model=call.body["model"],
        input_tokens=call.request.input_tokens,
    )
    if answer.reasoning:
        body["choices"][0]["message"]["reasoning_content"] = answer.reasoning
    return Reply(body)


def _models(call: Call) -> Reply:
    model = {"id": MODEL, "object": "model", "created": int(call.simulator.now()), "owned_by": "local"}
    return Reply({"object": "list", "data": [model]})


class Local(Provider):
    name = "local"
    prefix = "/local/v1"
    operations = (
        Operation("generate", "POST", "/chat/completions", _respond, _read),
        Operation("models", "GET", "/models", _models),
    )
    request_id = "local-{}"

    @override
    def authenticate(self, headers: Mapping[str, str]) -> str:
        """Accept any key, or none."""
        return bearer(headers)

    @override
    def error(self, refusal: Refusal, request_id: str) -> Any:
        return {"error": refusal.message or f"Simulated error {refusal.status}"}

    @override
    def error_in_200(self, fault: Fault, call: Call, request_id: str) -> Any:
        return {"error": fault.message or "the model failed to generate a response"}

    @override
    def overflow(self, request: GenerateRequest | None) -> Refusal:
        return BadRequest("the request exceeds the available context size, try increasing it")
