"""Checks of the shape of Responses requests: the SDK's types, further limits, and looser messages."""

from __future__ import annotations

from functools import cache

from pollux_flows.simulator.sdk_shape import SdkShapes
from pollux_flows.simulator.shape import (
    Check,
    anything,
    boolean,
    integer,
    items,
    mapping,
    nullable,
    number,
    record,
    string_or,
    tagged,
    text,
)

_LIMITS: dict[str, Check] = {
    "ResponseCreateParamsNonStreaming.max_output_tokens": nullable(integer(minimum=16)),
    "ResponseCreateParamsNonStreaming.temperature": nullable(number(0, 2)),
    "ResponseCreateParamsNonStreaming.top_p": nullable(number(0, 1)),
    "ResponseCreateParamsNonStreaming.top_logprobs": nullable(integer(0, 20)),
    "ResponseCreateParamsNonStreaming.stream": nullable(boolean),
    "ResponseFormatTextJSONSchemaConfigParam.schema": mapping,
}
#: The API takes the parts of an assistant's message without the fields that it wrote itself.
_OUTPUT_PARTS = tagged(
    "type",
    {
        "output_text": record({"type": text, "text": text}, {"annotations": items(mapping), "logprobs": anything}),
        "refusal": record({"type": text, "refusal": text}),
    },
)
_ROLES = ("user", "assistant", "system", "developer")


@cache
def request_check() -> Check:
    """Return the check of a request."""
    from openai.types import responses
    from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
    from openai.types.responses.response_input_param import FunctionCallOutput, ItemReference

    shapes = SdkShapes(_LIMITS, {"ResponseInputImageParam.detail"})
    input_parts = shapes.check(responses.ResponseInputContentParam)
    message_fields = {"type": text, "id": text, "status": text, "phase": nullable(text)}
    by_role = {
        role: record(
            {"role": text, "content": string_or(items(_OUTPUT_PARTS if role == "assistant" else input_parts))},
            message_fields,
        )
        for role in _ROLES
    }
    item = tagged(
        "type",
        {
            "message": tagged("role", by_role),
            "function_call": shapes.check(responses.ResponseFunctionToolCallParam),
            "function_call_output": shapes.check(FunctionCallOutput),
            "reasoning": shapes.check(responses.ResponseReasoningItemParam),
            "item_reference": shapes.check(ItemReference),
        },
        default="message",
    )
    _, optional = shapes.fields(ResponseCreateParamsNonStreaming)
    return record({"model": text}, {**optional, "input": string_or(items(item))})


#: The fields that are part of the input. A count request has no others, such as a limit or a temperature.
_COUNTED = (
    "conversation",
    "input",
    "instructions",
    "model",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "text",
    "tool_choice",
    "tools",
    "truncation",
)


def count_request_check() -> Check:
    """Return the check of the field names of a count request; `request_check` checks their values."""
    return record({"model": anything}, dict.fromkeys(_COUNTED, anything))
