"""Checks of the shape of Messages requests: the SDK's types, and limits that the types do not express."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from pollux_flows.simulator.sdk_shape import SdkShapes
from pollux_flows.simulator.shape import (
    Check,
    Mismatch,
    Path,
    anything,
    boolean,
    integer,
    items,
    number,
    one_of,
    record,
    text,
)

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


def _tool_name(value: Any, path: Path) -> None:
    text(value, path)
    if not _TOOL_NAME.fullmatch(value):
        raise Mismatch(path, "value", "a name that matches '^[a-zA-Z0-9_-]{1,128}$'", value)


_LIMITS: dict[str, Check] = {
    "ToolParam.name": _tool_name,
    "ToolParam.input_schema": record({"type": one_of("object")}, is_open=True),
    "ThinkingConfigEnabledParam.budget_tokens": integer(minimum=1024),
}
#: Fields that only the versions of the API before 2026-10-21 take.
SAMPLING: dict[str, Check] = {"temperature": number(0, 1), "top_p": number(0, 1), "top_k": integer(minimum=0)}


@cache
def count_request_check() -> Check:
    """Return the check of the field names of a count request; `request_check` checks their values."""
    from anthropic.types.message_count_tokens_params import MessageCountTokensParams

    required, optional = SdkShapes(_LIMITS).fields(MessageCountTokensParams)
    return record(dict.fromkeys(required, anything), dict.fromkeys(optional, anything))


@cache
def request_check(*, is_current: bool) -> Check:
    """Return the check of a request, to the current version of the API or to an older one."""
    from anthropic.types import MessageParam
    from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

    shapes = SdkShapes(_LIMITS)
    required, optional = shapes.fields(MessageCreateParamsNonStreaming)
    required |= {"max_tokens": integer(minimum=1), "messages": items(shapes.check(MessageParam), at_least=1)}
    return record(required, {**optional, "stream": boolean, **({} if is_current else SAMPLING)})
