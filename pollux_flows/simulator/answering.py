"""Answers a received request: the provider's checks, the fault that applies to it, the reply.

Realtime requests and the rows of batches are answered alike.
"""

from __future__ import annotations

from pollux_flows.simulator.directives import BadDirectiveError
from pollux_flows.simulator.faults import ANSWER_KINDS, Fault
from pollux_flows.simulator.schema_check import find_schema_error
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refusal, Reply


def read_request(call: Call, operation: Operation) -> None:
    """Read a generate request and check it as its provider does; raise Refusal if it is invalid."""
    if operation.read is None:
        return
    call.generate_request = request = operation.read(call)
    if request.input_tokens > request.context_window:
        raise call.provider.overflow(request)
    for schema in (request.schema, *request.tools.values()):
        if isinstance(schema, dict) and (problem := find_schema_error(schema)):
            raise BadRequest(problem)


def take_fault(call: Call, name: str) -> Fault | None:
    """Return the fault queued for this request, if any; a request that was refused before leaves its fault queued."""
    rule = call.simulator.faults.take(lambda rule: rule.matches(call.provider.name, name, call.body))
    if rule is not None or call.generate_request is None:
        return rule.fault if rule else None
    try:
        return call.simulator.directive_counts.take(call.generate_request.prompt)
    except BadDirectiveError as problem:
        raise BadRequest(str(problem)) from None


def make_reply(call: Call, operation: Operation, fault: Fault | None, request_id: str) -> Reply:
    """Return the provider's reply, as changed by the fault; raise Refusal if it is an error."""
    if fault is None:
        return operation.answer(call)
    if fault.kind == "status" and fault.status is not None:
        raise Refusal(fault.status, fault.message, kind=fault.error_type, headers=fault.error_headers)
    if fault.kind == "context_overflow":
        raise call.provider.overflow(call.generate_request)
    if fault.kind == "error_200":
        return Reply(call.provider.error_in_200(fault, call, request_id), headers=fault.error_headers)
    if fault.kind in ANSWER_KINDS:
        call.fault = fault
    reply = operation.answer(call)
    reply.headers |= fault.headers
    return reply
