"""Malformed answers under HTTP 200.

An answer without usable content is an APIError of its call; a malformed detail beside the text costs only that detail.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import pytest

from pollux_flows import APIError, Options, run
from pollux_flows.config import PROVIDERS, ProviderName
from pollux_flows.pipeline.execute import first_error
from tests.loopback import KEY, MODELS, QUICK, SDKS, every_provider, good, http, outcomes, scripted

NONSENSE_REPLIES: dict[str, bytes] = {
    "html": http(b"<html>Welcome to the hotel</html>", content_type="text/html"),
    "html that says JSON": http(b"<html>"),
    "nothing": http(b""),
    "nothing that says text": http(b"", content_type="text/plain"),
    "null": http(None),
    "list": http([]),
    "object": http({}),
    "number": http(5),
    "string": http("hello"),
    "half": http(b'{"a": {"b": '),
    "not utf-8": http(b'{"a": "\xff\xfe\xfa"}'),
    "no end": http(b"[" * 200_000),
    "error text": http({"error": "boom"}),
    "error list": http({"error": ["boom"]}),
    "error number": http({"error": 5}),
    "error code": http({"error": {"code": "boom", "message": ["x"]}}),
    "giant": http({"message": "x" * 2_000_000}),
    "key": http({"message": f"your key is {KEY}"}),
    "no content": http(b"", status=204),
    "redirect": http(b"", status=307, location="http://127.0.0.1:9/elsewhere"),
}

MALFORMED_BODIES: dict[ProviderName, list[Any]] = {
    "gemini": [
        {"candidates": [None]},
        {"candidates": 5},
        {"candidates": {"a": 1}},
        {"candidates": [{"content": 5}]},
        {"candidates": [{"content": {"parts": 5}}]},
        {"candidates": [{"content": {"parts": [5]}}]},
        {"candidates": [{"content": {"parts": [{"text": 5}]}}]},
        {"candidates": [{"content": {"parts": [{"functionCall": 5}]}}]},
        {"candidates": [{"content": {"parts": [{"functionCall": {"args": {}}}]}}]},
        {"candidates": [], "promptFeedback": 5},
        {"promptFeedback": {"blockReason": 5}},
    ],
    "openai": [
        {"output": 5},
        {"output": [None]},
        {"output": [5]},
        {"output": [{"type": "message", "content": 5}]},
        {"output": [{"type": "message", "content": [None]}]},
        {"output": [{"type": "message", "content": [{"type": "output_text", "text": 5}]}]},
        {"output": [{"type": "reasoning", "summary": [5]}]},
        {"output": [{"type": "function_call"}]},
        {"output": [{"type": "function_call", "call_id": "a", "name": 5, "arguments": "{}"}]},
        {"output": [], "status": "failed", "error": "boom"},
        {"output": [], "status": "failed", "error": None},
        {"output": [], "status": "queued"},
    ],
    "anthropic": [
        {"content": 5},
        {"content": [None]},
        {"content": [{"type": "text"}]},
        {"content": [{"type": "text", "text": 5}]},
        {"content": [{"type": "thinking"}]},
        {"content": [{"type": "tool_use"}]},
        {"content": [{"type": "tool_use", "id": 5, "name": "f", "input": {}}]},
        {"type": "error", "error": None},
        {"type": "error", "error": "boom"},
    ],
    "openrouter": [
        {"choices": 5},
        {"choices": []},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"message": {"content": [5]}}]},
        {"choices": [{"message": {"content": None, "tool_calls": 5}}]},
        {"choices": [{"message": {"content": None, "tool_calls": [{}]}}]},
        {"choices": [{"message": {"content": None, "tool_calls": [{"function": {"name": 5}}]}}]},
        {"choices": [{"error": "boom"}]},
        {"choices": [{"finish_reason": "error", "message": {"content": "half"}}]},
    ],
    "local": [
        {"choices": [None]},
        {"choices": [{"message": 5}]},
        {"choices": [{"message": {"content": {"a": 1}}}]},
    ],
}
MALFORMED_CASES = [(provider, name, reply) for provider in PROVIDERS for name, reply in NONSENSE_REPLIES.items()]
MALFORMED_CASES += [
    (provider, str(malformed), http(malformed)) for provider in PROVIDERS for malformed in MALFORMED_BODIES[provider]
]


@pytest.mark.parametrize(
    ("provider", "_name", "reply"), MALFORMED_CASES, ids=[f"{p}-{n[:60]}" for p, n, _ in MALFORMED_CASES]
)
async def test_a_malformed_answer_is_an_api_error_of_its_call(provider: ProviderName, _name: str, reply: bytes) -> None:
    """Other calls have their answers, and the error does not show the key."""
    async with scripted(lambda body: reply if b"malformed" in body else http(good(provider)), by_body=True) as server:
        first, malformed, last = await outcomes(["first", "malformed", "last"], server.config(provider))
    assert first.answer is not None
    assert last.answer is not None
    assert malformed.answer is None
    assert malformed.failure is not None
    assert malformed.failure.kind == "api_error"
    assert malformed.failure.hint
    raised = first_error([first, malformed, last], provider)
    assert isinstance(raised, APIError)
    text = f"{malformed.failure!r} {raised!r} {raised} {vars(raised)}"
    assert KEY not in text
    assert len(text) < 6_000


@every_provider
async def test_the_outcome_of_an_unreadable_answer_is_unknown(provider: ProviderName) -> None:
    """The call may have been billed."""
    async with scripted(http(b'{"half')) as server:
        (outcome,) = await outcomes(["p"], server.config(provider))
    assert outcome.failure is not None
    assert outcome.failure.outcome_unknown is True
    assert outcome.failure.retryable is True
    assert outcome.unknown_attempts == 1


ODD_DETAILS: dict[ProviderName, list[dict[str, Any]]] = {
    "gemini": [
        {"usageMetadata": {"promptTokenCount": "many", "candidatesTokenCount": -5}},
        {"usageMetadata": 5},
        {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 10**400}},
        {"responseId": 5, "modelVersion": {"a": 1}, "unheardOf": True},
        {"candidates": [{"content": {"parts": [{"text": "fine"}]}, "finishReason": 5, "finishMessage": 5}]},
        {"candidates": [{"content": {"parts": [{"text": "fine"}, {"unheardOf": 1}]}}, None]},
    ],
    "openai": [
        {"usage": {"input_tokens": "many", "output_tokens_details": 5}},
        {"usage": {"input_tokens": 10**400, "output_tokens": 5}},
        {"usage": 5},
        {"id": 5, "model": 5, "incomplete_details": 5},
        {"output": [*good("openai")["output"], {"type": "unheard_of"}]},
    ],
    "anthropic": [
        {"usage": {"input_tokens": "many", "output_tokens": 1.5}},
        {"usage": {"input_tokens": 5, "output_tokens": 10**400}},
        {"usage": {"input_tokens": 5, "cache_read_input_tokens": "all"}},
        {"usage": 5},
        {"id": 5, "model": 5, "stop_details": 5, "stop_reason": 5},
        {"content": [*good("anthropic")["content"], {"type": "unheard_of"}]},
    ],
    "openrouter": [
        {"usage": {"prompt_tokens": "many", "prompt_tokens_details": 5}},
        {"usage": {"prompt_tokens": 5, "total_tokens": 10**400}},
        {"usage": 5},
        {"id": 5, "model": 5},
        {"choices": [{"message": {"content": "fine", "reasoning": 5, "refusal": 5}, "finish_reason": 5}]},
    ],
    "local": [
        {"usage": None},
        {"usage": {"prompt_tokens": 10**400, "completion_tokens": 10**400, "total_tokens": 10**400}},
        {"id": 5, "created": "yesterday"},
        {"choices": [{"message": {"content": [{"type": "text", "text": "fine"}]}}]},
    ],
}
ODD_DETAIL_CASES = [(provider, odd) for provider in PROVIDERS for odd in ODD_DETAILS[provider]]


@pytest.mark.parametrize(("provider", "odd"), ODD_DETAIL_CASES, ids=[f"{p}-{str(o)[:60]}" for p, o in ODD_DETAIL_CASES])
async def test_a_malformed_detail_does_not_lose_the_answer(provider: ProviderName, odd: dict[str, Any]) -> None:
    """A malformed count is left out, and a malformed name is None."""
    async with scripted(http(good(provider, **odd))) as server:
        envelope = await run("p", config=server.config(provider))
    assert envelope.answers == ["fine"]
    assert all(type(count) is int and count >= 0 for count in envelope.usage.values())
    assert type(envelope).model_validate_json(envelope.model_dump_json()) == envelope


ODD_ITEMS: dict[ProviderName, list[tuple[Any, Any]]] = {
    "gemini": [
        (None, None),
        (5, 5),
        ({"text": 5}, {"text": 5}),
        ({"functionCall": {"args": {}}}, {"functionCall": {"args": {}}}),
    ],
    "openai": [
        (None, None),
        ({"type": "reasoning", "summary": "it thought"}, "it thought"),
        ({"type": "reasoning", "summary": [5], "encrypted_content": "x"}, 5),
        ({"type": "function_call", "call_id": "a"}, {"type": "function_call", "call_id": "a"}),
        ({"type": "function_call", "call_id": 5, "name": "f"}, {"type": "function_call", "call_id": 5, "name": "f"}),
        ({"type": "message", "content": [None]}, None),
        ({"type": "message", "content": "text"}, "text"),
    ],
    "anthropic": [
        (None, None),
        ({"type": "text", "text": None}, {"type": "text", "text": None}),
        ({"type": "thinking"}, {"type": "thinking"}),
        ({"type": "tool_use", "id": "a", "input": {}}, {"type": "tool_use", "id": "a", "input": {}}),
        ({"type": "tool_use", "id": 5, "name": "f"}, {"type": "tool_use", "id": 5, "name": "f"}),
    ],
    "openrouter": [(None, None), ({"type": "text", "text": 5}, {"type": "text", "text": 5})],
    "local": [("stray", "stray")],
}
ODD_ITEM_CASES = [(provider, odd, raw) for provider in PROVIDERS for odd, raw in ODD_ITEMS[provider]]


def answer_with_odd_item(provider: ProviderName, odd: Any) -> dict[str, Any]:
    """Return a good answer with an odd item before its text."""
    fine = {"type": "text", "text": "fine"}
    match provider:
        case "gemini":
            return {"candidates": [{"content": {"parts": [odd, {"text": "fine"}]}, "finishReason": "STOP"}]}
        case "openai":
            return good(provider, output=[odd, *good(provider)["output"]])
        case "anthropic":
            return good(provider, content=[odd, fine])
        case _:
            return {"choices": [{"message": {"content": [odd, fine]}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("provider", "odd", "raw"), ODD_ITEM_CASES, ids=[f"{p}-{str(o)[:40]}" for p, o, _ in ODD_ITEM_CASES]
)
async def test_an_unreadable_item_does_not_lose_the_text_beside_it(provider: ProviderName, odd: Any, raw: Any) -> None:
    """The answer has a warning and the raw item, and is not requested again."""
    async with scripted(http(answer_with_odd_item(provider, odd))) as server:
        envelope = await run("p", config=server.config(provider, retry=QUICK))
        assert len(server.requests) == 1
    assert (envelope.answers, envelope.status) == (["fine"], "ok")
    (warning,) = envelope.diagnostics["warnings"]
    assert "prompts[0]" in warning
    assert envelope.diagnostics["raw_responses"][0]["artifacts"]["unreadable"] == [raw]
    assert type(envelope).model_validate_json(envelope.model_dump_json()) == envelope


@pytest.mark.parametrize(
    "message",
    [
        {"content": "fine", "tool_calls": [{"id": "a"}]},
        {"content": "fine", "tool_calls": {"id": "a"}},
        {"content": "fine", "reasoning_details": [None]},
    ],
)
async def test_malformed_lists_of_a_chat_message_do_not_lose_its_text(message: dict[str, Any]) -> None:
    async with scripted(http({"choices": [{"message": message, "finish_reason": "stop"}]})) as server:
        envelope = await run("p", config=server.config("openrouter", retry=QUICK))
        assert len(server.requests) == 1
    assert envelope.answers == ["fine"]
    assert envelope.tool_calls is None
    assert len(envelope.diagnostics["warnings"]) == 1


async def test_unreadable_items_are_not_sent_back_in_the_next_turn() -> None:
    """The provider would refuse the request."""
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    content = [thought, None, {"type": "text", "text": "fine"}]
    async with scripted(http(good("anthropic", content=content))) as server:
        config = server.config("anthropic")
        first = await run("p", config=config, options=Options(history=[]))
        await run("q", config=config, options=Options(continue_from=first))
        (_, second) = map(json.loads, server.requests)
    assert second["messages"][1]["content"] == [thought, {"type": "text", "text": "fine"}]


@pytest.mark.parametrize("provider", SDKS)
async def test_an_unreadable_item_of_a_batch_row_does_not_lose_the_text(provider: ProviderName) -> None:
    """A result row is read like the answer to a call."""
    response = answer_with_odd_item(provider, None)
    rows: dict[str, Any] = {
        "gemini": {"key": "k", "response": response},
        "openai": {"custom_id": "k", "response": {"status_code": 200, "body": response}},
        "anthropic": {"custom_id": "k", "result": {"type": "succeeded", "message": response}},
    }
    batch = import_module(f"pollux_flows.providers.{provider}.batch")
    generate = import_module(f"pollux_flows.providers.{provider}.generate")
    answer = generate.read_answer(batch.result(json.dumps(rows[provider]).encode()).response)
    assert answer.text == "fine"
    assert answer.artifacts["unreadable"] == [None]


@every_provider
async def test_half_a_surrogate_pair_becomes_a_replacement_character(provider: ProviderName) -> None:
    """An answer may be cut in the middle of an emoji."""
    async with scripted(http(good(provider, "cut \ud83d"))) as server:
        envelope = await run("p", config=server.config(provider))
    assert envelope.answers == ["cut \ufffd"]
    assert type(envelope).model_validate_json(envelope.model_dump_json()) == envelope


CALLS_WITHOUT_ARGUMENTS: dict[ProviderName, dict[str, Any]] = {
    "gemini": {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}]}, "finishReason": "STOP"}]},
    "openai": {"output": [{"type": "function_call", "call_id": "a", "name": "f"}]},
    "anthropic": {"content": [{"type": "tool_use", "id": "a", "name": "f"}], "stop_reason": "tool_use"},
    "openrouter": {
        "choices": [{"message": {"content": None, "tool_calls": [{"function": {"name": "f"}}]}}],
    },
}


@pytest.mark.parametrize("provider", CALLS_WITHOUT_ARGUMENTS)
async def test_a_tool_call_without_arguments_has_an_empty_object(provider: ProviderName) -> None:
    async with scripted(http(good(provider, **CALLS_WITHOUT_ARGUMENTS[provider]))) as server:
        server.listing = http({"data": [{"id": MODELS["openrouter"], "supported_parameters": ["tools"]}]})
        options = Options(tools=[{"name": "f"}])
        envelope = await run("p", config=server.config(provider), options=options)
    assert envelope.tool_calls is not None
    ((call,),) = envelope.tool_calls
    assert (call["name"], call["arguments"]) == ("f", "{}")
    assert envelope.status == "ok"


async def test_tool_arguments_that_come_as_an_object_become_text() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    listing = {"data": [{"id": MODELS["openrouter"]}]}
    reply = {"choices": [{"message": {"content": None, "tool_calls": [call]}}]}
    async with scripted(http(reply)) as server:
        server.listing = http(listing)
        envelope = await run("p", config=server.config("openrouter"), options=Options(tools=[{"name": "f"}]))
    assert envelope.tool_calls == [[{"id": "call_0", "name": "f", "arguments": '{"a": 1}'}]]
