"""The requests that Anthropic's `POST /v1/messages` refuses, with its error messages."""

from __future__ import annotations

import re
from typing import Any

from pollux_flows.simulator.anthropic import schemas, shapes
from pollux_flows.simulator.anthropic.models import Model, is_known, parse_model
from pollux_flows.simulator.anthropic.signature import is_valid
from pollux_flows.simulator.shape import Mismatch
from pollux_flows.simulator.wire import BadRequest, Call, Refusal

CURRENT_VERSION = "2026-10-21"
_VERSIONS = ("2023-01-01", "2023-06-01", CURRENT_VERSION)
LIST_LIMIT = 1000
_MAX_BREAKPOINTS = 4
_THINKING_BLOCKS = ("thinking", "redacted_thinking")


def check(call: Call) -> Model:
    """Refuse the requests that the API refuses; return the requested model."""
    body = call.body
    version = check_version(call)
    _check_shape(body, version)
    model = parse_model(body["model"])
    if not is_known(body["model"]):
        raise Refusal(404, f"model: {body['model']}")
    if body.get("stream"):
        raise BadRequest("The simulator does not stream.")
    if body["max_tokens"] > model.max_output:
        raise BadRequest(
            f"max_tokens: {body['max_tokens']} > {model.max_output}, which is the maximum allowed number of output "
            f"tokens for {body['model']}"
        )
    _check_thinking(body, model)
    _check_output(body, model)
    _check_tools(body)
    _check_tools_are_declared(body)
    _check_breakpoints(body)
    _check_turns(body, model)
    return model


def check_count(call: Call) -> None:
    """Refuse the fields that a request to count tokens does not have, such as max_tokens."""
    try:
        shapes.count_request_check()(call.body, ())
    except Mismatch as mismatch:
        raise BadRequest(describe(mismatch)) from None


def check_version(call: Call) -> str:
    version = call.headers.get("anthropic-version")
    if version is None:
        raise BadRequest("anthropic-version: header is required")
    if version not in _VERSIONS:
        raise BadRequest(f'anthropic-version: "{version}" is not a valid version for this endpoint')
    return version


def page_limit(call: Call) -> int:
    """Return the number of items that a page of a list may have."""
    text = call.query.get("limit", "20")
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise BadRequest("limit: Input should be a valid integer, unable to parse string as an integer")
    if not 1 <= int(text) <= LIST_LIMIT:
        raise BadRequest(f"limit: Input should be between 1 and {LIST_LIMIT}")
    return int(text)


def _check_shape(body: Any, version: str) -> None:
    current = version == CURRENT_VERSION
    if current and isinstance(body, dict) and (gone := sorted(body.keys() & shapes.SAMPLING)):
        raise BadRequest(f"{gone[0]}: `{gone[0]}` is not supported from API version {CURRENT_VERSION} on")
    try:
        shapes.request_check(is_current=current)(body, ())
    except Mismatch as mismatch:
        raise BadRequest(describe(mismatch)) from None


def describe(mismatch: Mismatch) -> str:
    where = ".".join(map(str, mismatch.path))
    match mismatch.problem:
        case "unknown":
            return f"{where}: Extra inputs are not permitted"
        case "missing":
            return f"{where}: Field required"
        case "type":
            return f"{where}: Input should be {mismatch.expected.replace('a ', 'a valid ').replace('an ', 'a valid ')}"
        case "value" if mismatch.path[-1] == "type":
            above = where.rpartition(".")[0]
            return (
                f"{above}: Input tag '{mismatch.value}' found using 'type' does not match any of the expected tags: "
                f"{mismatch.expected}"
            )
        case "value":
            return f"{where}: Input should be {mismatch.expected}"
        case "minimum":
            return f"{where}: Input should be greater than or equal to {mismatch.expected}"
        case "maximum":
            return f"{where}: Input should be less than or equal to {mismatch.expected}"


def _check_thinking(body: dict[str, Any], model: Model) -> None:
    thinking = body.get("thinking") or {"type": "disabled"}
    kind = thinking["type"]
    if kind == "enabled":
        if not model.thinks:
            raise BadRequest(f"'{body['model']}' does not support thinking.")
        if not model.takes_thinking_budget:
            raise BadRequest(
                '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and '
                '"output_config.effort" to control thinking behavior.'
            )
        if thinking["budget_tokens"] >= body["max_tokens"]:
            raise BadRequest(
                "`max_tokens` must be greater than `thinking.budget_tokens`. Please consult our documentation at "
                "https://docs.claude.com/en/docs/build-with-claude/extended-thinking"
                "#max-tokens-and-context-window-size"
            )
    if kind in ("adaptive", "between_tools") and not model.thinks_adaptively:
        raise BadRequest("adaptive thinking is not supported on this model")
    if kind != "disabled" and (body.get("tool_choice") or {}).get("type") in ("any", "tool"):
        raise BadRequest("Thinking may not be enabled when tool_choice forces tool use.")


def _check_output(body: dict[str, Any], model: Model) -> None:
    output_config = body.get("output_config") or {}
    effort = output_config.get("effort")
    if effort and not model.efforts:
        raise BadRequest("This model does not support the effort parameter.")
    if effort and effort not in model.efforts:
        raise BadRequest(
            f"This model does not support effort level '{effort}'. Supported levels: {', '.join(model.efforts)}."
        )
    if output_config.get("format"):
        if not model.has_structured_output:
            raise BadRequest(f"'{body['model']}' does not support output format.")
        if problem := schemas.find_problem(output_config["format"]["schema"]):
            raise BadRequest(f"output_config.format.schema: {problem}")


def _check_tools(body: dict[str, Any]) -> None:
    tools = body.get("tools") or []
    names = [tool.get("name") for tool in tools]
    if len(set(names)) < len(names):
        raise BadRequest("tools: Tool names must be unique.")
    for place, tool in enumerate(tools):
        if tool.get("strict") and (problem := schemas.find_problem(tool["input_schema"])):
            raise BadRequest(f"tools.{place}.custom.input_schema: {problem}")
    choice = body.get("tool_choice")
    if choice and not tools:
        raise BadRequest("tool_choice: may only be specified while providing tools")
    if choice and choice["type"] == "tool" and choice["name"] not in names:
        raise BadRequest(f"Tool '{choice['name']}' not found in provided tools")


def _check_tools_are_declared(body: dict[str, Any]) -> None:
    blocks = [block for message in body["messages"] for block in blocks_of(message["content"])]
    if not body.get("tools") and any(block["type"] in ("tool_use", "tool_result") for block in blocks):
        raise BadRequest("Requests which include `tool_use` or `tool_result` blocks must define tools.")


def _check_breakpoints(body: dict[str, Any]) -> None:
    blocks = [*(body.get("tools") or []), *blocks_of(body.get("system") or [])]
    for message in body["messages"]:
        blocks += blocks_of(message["content"])
    marked = [block for block in blocks if block.get("cache_control")]
    count = len(marked) + bool(body.get("cache_control"))
    if count > _MAX_BREAKPOINTS:
        raise BadRequest(f"A maximum of 4 blocks with cache_control may be provided. Found {count}.")
    if any(block.get("type") == "text" and not block["text"] for block in marked):
        raise BadRequest("cache_control cannot be set for empty text blocks")


def _check_turns(body: dict[str, Any], model: Model) -> None:
    turns = [(place, turn["role"], blocks_of(turn["content"])) for place, turn in enumerate(body["messages"])]
    if turns[0][1] != "user":
        raise BadRequest('messages: first message must use the "user" role')
    thinks = (body.get("thinking") or {}).get("type", "disabled")
    waiting: list[str] = []
    for place, role, blocks in turns:
        _check_content(place, role, blocks, is_last=place == len(turns) - 1)
        if role != "assistant":
            _check_results(place, blocks, waiting)
            waiting = []
            continue
        if waiting:
            _refuse_missing_results(place - 1, waiting)
        # A loop of calls and results is one turn, with thinking at its start.
        continues_loop = place > 0 and any(block["type"] == "tool_result" for block in turns[place - 1][2])
        _check_thinking_turn(place, blocks, thinks, continues_loop=continues_loop)
        waiting = [block["id"] for block in blocks if block["type"] == "tool_use"]
    if waiting:
        _refuse_missing_results(len(turns) - 1, waiting)
    if turns[-1][1] == "assistant":
        if not model.takes_prefill:
            raise BadRequest(
                "This model does not support assistant message prefill. The conversation must end with a user message."
            )
        if thinks != "disabled":
            raise BadRequest("messages: the final message cannot be from the assistant when thinking is enabled")


def blocks_of(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the blocks of a message or system prompt; a string is one text block."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _check_content(place: int, role: str, blocks: list[dict[str, Any]], *, is_last: bool) -> None:
    if not blocks and not (role == "assistant" and is_last):
        raise BadRequest(
            f"messages.{place}: all messages must have non-empty content except for the optional final assistant "
            "message"
        )
    for index, block in enumerate(blocks):
        kind = block["type"]
        if kind == "text" and not block["text"].strip():
            raise BadRequest(f"messages.{place}: text content blocks must be non-empty")
        if kind in (*_THINKING_BLOCKS, "tool_use") and role != "assistant":
            raise BadRequest(f"messages.{place}.content.{index}: `{kind}` blocks may only be in assistant messages")
        if kind in ("tool_result", "image", "document") and role != "user":
            raise BadRequest(f"messages.{place}.content.{index}: `{kind}` blocks may only be in user messages")


def _check_results(place: int, blocks: list[dict[str, Any]], waiting: list[str]) -> None:
    answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    for index, identity in enumerate(answered):
        if identity not in waiting or identity in answered[:index]:
            raise BadRequest(
                f"messages.{place}.content.{index}: unexpected `tool_use_id` found in `tool_result` blocks: "
                f"{identity}. Each `tool_result` block must have a corresponding `tool_use` block in the previous "
                "message."
            )
    if missing := [identity for identity in waiting if identity not in answered]:
        _refuse_missing_results(place - 1, missing)
    if answered and blocks[0]["type"] != "tool_result":
        raise BadRequest(
            f"messages.{place - 1}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{answered[0]}. In a user message that answers tools, the results come first."
        )


def _refuse_missing_results(place: int, missing: list[str]) -> None:
    raise BadRequest(
        f"messages.{place}: `tool_use` ids were found without `tool_result` blocks immediately after: "
        f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the next "
        "message."
    )


def _check_thinking_turn(place: int, blocks: list[dict[str, Any]], thinks: str, *, continues_loop: bool) -> None:
    """Check that a turn with thinking starts with its unchanged thinking blocks."""
    if thinks == "disabled":
        return
    kinds = [block["type"] for block in blocks]
    thought = any(kind in _THINKING_BLOCKS for kind in kinds)
    # Only with adaptive thinking may a turn that calls tools have no thinking.
    must = thought or (thinks == "enabled" and "tool_use" in kinds and not continues_loop)
    if must and kinds[0] not in _THINKING_BLOCKS:
        raise BadRequest(
            f"messages.{place}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{kinds[0]}`. "
            "When `thinking` is enabled, a final `assistant` message must start with a thinking block (preceeding the "
            "lastmost set of `tool_use` and `tool_result` blocks)."
        )
    for index, block in enumerate(blocks):
        if block["type"] == "thinking" and not is_valid(block["signature"], block["thinking"]):
            raise BadRequest(f"messages.{place}.content.{index}: Invalid `signature` in `thinking` block")
