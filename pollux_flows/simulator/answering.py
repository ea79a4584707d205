"""Answers a received request: the provider's checks, the fault that applies to it, the reply.

Realtime requests and the rows of batches are answered alike.
"""

from __future__ import annotations

from pollux_flows.simulator.directives import BadDirectiveError
from pollux_flows.simulator.faults import ANSWER_KINDS, Fault
from pollux_flows.simulator.schema_check import malformed
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refused, Reply


def understand(call: Call, operation: Operation) -> None:
    """Read a generate request and check it as its provider does; raise Refused if it is invalid."""
    if operation.read is None:
        return
    call.asked = ask = operation.read(call)
    if ask.input_tokens > ask.context_window:
        raise call.provider.overflow(ask)
    for schema in (ask.schema, *ask.tools.values()):
        if isinstance(schema, dict) and (problem := malformed(schema)):
            raise BadRequest(problem)


def fault_for(call: Call, name: str) -> Fault | None:
    """Take the fault queued for this request, if any. A request that was refused before keeps its fault queued."""
    rule = call.world.faults.take(lambda rule: rule.matches(call.provider.name, name, call.body))
    if rule is not None or call.asked is None:
        return rule.fault if rule else None
    try:
        return call.world.directive_counts.take(call.asked.prompt)
    except BadDirectiveError as problem:
        raise BadRequest(str(problem)) from None


def reply_to(call: Call, operation: Operation, fault: Fault | None, request_id: str) -> Reply:
    """Return the provider's reply, as changed by the fault; raise Refused if it is an error."""
    if fault is None:
        return operation.answer(call)
    if fault.kind == "status" and fault.status is not None:
        raise Refused(fault.status, fault.message, kind=fault.error_type, headers=fault.error_headers)
    if fault.kind == "context_overflow":
        raise call.provider.overflow(call.asked)
    if fault.kind == "error_200":
        return Reply(call.provider.error_in_200(fault, call, request_id), headers=fault.error_headers)
    if fault.kind in ANSWER_KINDS:
        call.fault = fault
    reply = operation.answer(call)
    reply.headers |= fault.headers
    return reply
