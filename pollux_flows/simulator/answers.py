"""Composes the answers of the simulated model from the request and the fault, if there is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pollux_flows.simulator import tokens
from pollux_flows.simulator.directives import remove_directives
from pollux_flows.simulator.faults import Fault
from pollux_flows.simulator.generate_request import GenerateRequest
from pollux_flows.simulator.schema_instance import generate_instance
from pollux_flows.simulator.schema_merge import merge

Finish = Literal["stop", "stop_sequence", "length", "tool_calls", "blocked", "content_filter"]

PROMPT_CHARS = 200
NOT_JSON = "Simulated answer that is not the JSON that was asked for"
REFUSAL = "Simulated refusal: I cannot help with that."


@dataclass(slots=True)
class ToolCall:
    name: str
    arguments: Any


@dataclass(slots=True)
class Answer:
    """The content of an answer, and its finish reason."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    finish: Finish = "stop"
    stop_sequence: str | None = None

    @property
    def reasoning_tokens(self) -> int:
        return tokens.of_text(self.reasoning)

    @property
    def visible_tokens(self) -> int:
        """Return the tokens of the text and the tool calls, without reasoning."""
        return tokens.of_text(self.text) + sum(_call_tokens(call) for call in self.calls)


def compose(request: GenerateRequest, fault: Fault | None = None) -> Answer:
    """Compose the answer to a request: the same for equal requests, and never longer than `max_tokens`."""
    kind = fault.kind if fault else None
    prompt = " ".join(remove_directives(request.prompt).split())[:PROMPT_CHARS]
    answer = Answer()
    if kind == "blocked":
        # A refusal has no other content.
        return Answer(text=fault.message if fault and fault.message else REFUSAL, finish="blocked")
    if request.reasoning or kind == "reasoning":
        answer.reasoning = f"Simulated reasoning about: {prompt}"
    if kind == "empty":
        answer.reasoning = ""
    elif names := _tools_to_call(request, fault):
        answer.calls = [ToolCall(name, _arguments(request.tools[name], prompt)) for name in names]
        answer.finish = "tool_calls"
        answer.text = f"Simulated call of: {', '.join(names)}" if request.announces_calls else ""
    else:
        answer.text = NOT_JSON if kind == "invalid_json" else _text(request, prompt)
        _stop_early(answer, request, kind)
    if request.max_tokens is not None:
        _cut(answer, request.max_tokens)
    return answer


def _text(request: GenerateRequest, prompt: str) -> str:
    if request.schema is True:
        return tokens.compact({"answer": f"Simulated answer to: {prompt}"})
    if request.schema is not None:
        return tokens.compact(generate_instance(request.schema, prompt))
    if request.tool_results:
        return f"Simulated answer from the results of: {', '.join(request.tool_results)}"
    return f"Simulated answer to: {prompt}"


def _tools_to_call(request: GenerateRequest, fault: Fault | None) -> list[str]:
    """Return the tools to call. After a tool result only a forced call, or a fault, is made, so that loops end."""
    forced = isinstance(request.tool_choice, tuple) or (fault is not None and fault.kind == "tool_call")
    if not request.tools or request.tool_choice == "none" or (request.tool_results and not forced):
        return []
    allowed = list(request.tools)
    if isinstance(request.tool_choice, tuple):
        allowed = [name for name in allowed if name in request.tool_choice]
    if fault is not None and fault.kind == "tool_call":
        return [allowed[place % len(allowed)] for place in range(fault.count)]
    return allowed[:1] if request.tool_choice != "auto" else []


def _arguments(parameters: Any, prompt: str) -> dict[str, Any]:
    """Return arguments that fit the parameters: always an object, even for a tool without parameters."""
    arguments = generate_instance(merge({"type": "object"}, parameters or {}), prompt)
    return arguments if isinstance(arguments, dict) else {}


def _stop_early(answer: Answer, request: GenerateRequest, kind: str | None) -> None:
    text = answer.text
    ends = [(place, stop) for stop in request.stop if stop and (place := text.find(stop)) >= 0]
    if ends:
        place, answer.stop_sequence = min(ends)
        answer.text, answer.finish = text[:place], "stop_sequence"
    if kind in ("truncated", "content_filter"):
        answer.text = text[: len(text) // 2]
        answer.finish = "length" if kind == "truncated" else "content_filter"


def _cut(answer: Answer, limit: int) -> None:
    """Spend the limit in the order in which a model generates: reasoning, text, calls."""
    if answer.reasoning_tokens + answer.visible_tokens <= limit:
        return
    answer.finish = "length"
    answer.reasoning = answer.reasoning[: limit * tokens.CHARS_PER_TOKEN]
    limit -= answer.reasoning_tokens
    answer.text = answer.text[: limit * tokens.CHARS_PER_TOKEN]
    limit -= tokens.of_text(answer.text)
    complete: list[ToolCall] = []
    for call in answer.calls:
        limit -= _call_tokens(call)
        if limit < 0:
            break
        complete.append(call)
    answer.calls = complete


def _call_tokens(call: ToolCall) -> int:
    return tokens.of_text(call.name) + tokens.of_json(call.arguments)
