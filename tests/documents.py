"""Strategies for documents of all kinds, and a check of what holds for each of them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import strategies as st

from pollux_flows import CacheHandle, Config, Options, PolluxError, ResultEnvelope, RetryPolicy, Source
from pollux_flows.config import PROVIDERS
from pollux_flows.document import Document
from pollux_flows.result import CallFailure

SENTINEL = "sk-sentinel-0123456789abcdef"

# Values that JSON does not have, one of each kind: a document must refuse them.
NOT_JSON: dict[str, Any] = {
    "a callable": print,
    "a lambda": lambda: None,
    "bytes": b"raw",
    "a set": {1, 2},
    "an object": object(),
    "a class": int,
    "not a number": float("nan"),
    "infinity": float("inf"),
    "half a character": "\ud800",
    "a key that is a number": {1: "one"},
    "a number too long to read back": 10**5000,
    "a complex number": 1j,
    "an iterator": iter([]),
}


def _cycle() -> dict[str, Any]:
    cycle: dict[str, Any] = {}
    cycle["again"] = cycle
    return cycle


NOT_JSON["a dict that holds itself"] = _cycle()

not_json = pytest.mark.parametrize("value", list(NOT_JSON.values()), ids=list(NOT_JSON))


def expect_error(kind: type[PolluxError], *words: str) -> Any:
    """Expect an error of this kind, with these words in its text in this order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(map(re.escape, words)))


def check_json_round_trip(document: Document) -> None:
    """Check that the document comes back equal from JSON, both from text and from data."""
    kind = type(document)
    text = document.model_dump_json()
    for back in (kind.model_validate_json(text), kind.model_validate(json.loads(text))):
        assert back == document
        assert hash(back) == hash(document)
        assert back.model_dump_json() == text
    json.dumps(document.model_dump(mode="json"), allow_nan=False)


names = st.text(min_size=1).filter(str.strip)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=3)
tool_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,10}", fullmatch=True)
tools = st.lists(
    st.fixed_dictionaries(
        {"name": tool_names},
        optional={"description": st.text(), "parameters": json_objects, "strict": st.booleans()},
    ),
    max_size=3,
    unique_by=lambda tool: tool["name"],
)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 1000),
    initial_delay_s=st.floats(0, 1e6),
    backoff_multiplier=st.floats(0, 1e6, exclude_min=True),
    max_delay_s=st.floats(0, 1e6),
    jitter=st.booleans(),
    max_elapsed_s=st.none() | st.floats(0, 1e6),
)
configs = st.builds(
    Config,
    provider=st.sampled_from(PROVIDERS),
    model=names,
    api_key=st.none() | st.just(SENTINEL),
    base_url=st.none() | st.just("http://127.0.0.1:8000/v1"),
    use_mock=st.just(value=True),
    request_concurrency=st.integers(1, 10_000),
    retry=policies,
    timeout_s=st.floats(0, 1e6, exclude_min=True),
    requests_per_minute=st.none() | st.integers(1, 10**12),
    tokens_per_minute=st.none() | st.integers(1, 10**12),
)
handles = st.builds(
    CacheHandle, name=st.text(min_size=1), model=st.text(min_size=1), provider=st.sampled_from(PROVIDERS),
    expires_at=finite,
)  # fmt: skip
sources = st.one_of(
    st.builds(Source.from_text, st.text(), identifier=st.none() | st.text()),
    st.builds(Source.from_json, json_values, identifier=st.none() | st.text()),
    st.builds(lambda name, mime: Source.from_uri(f"https://example.com/{name}", mime_type=mime),
              st.from_regex(r"[a-z]{0,9}", fullmatch=True), st.sampled_from(["application/pdf", "image/png"])),
    st.builds(lambda start, length: Source.from_youtube("https://youtu.be/x").with_gemini_video_settings(
        start_offset=f"{start}s", end_offset=f"{start + length}s"), st.integers(0, 999), st.integers(1, 999)),
    st.builds(lambda number: Source.from_arxiv(f"2301.{number:05}"), st.integers(0, 99_999)),
)  # fmt: skip


@st.composite
def options(draw: st.DrawFn) -> Options:
    """Draw valid options: fields that exclude each other are not set together."""
    fields: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "system_instruction": st.text(),
                "response_schema": json_objects | st.just("pollux_flows.result:CallFailure") | st.just(CallFailure),
                "tools": tools,
                "temperature": st.floats(0, 2),
                "top_p": st.floats(0, 1, exclude_min=True),
                "max_tokens": st.integers(1, 2**31 - 1),
                "cache": handles,
                "implicit_caching": st.booleans() | st.just("warm"),
                "cache_ttl": st.sampled_from(["5m", "1h"]),
                "provider_options": st.dictionaries(st.sampled_from(PROVIDERS), json_objects, max_size=2),
            },
        )
    )
    text = st.text(min_size=1).filter(str.strip)
    turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": text})
    one_of: list[st.SearchStrategy[dict[str, Any]]] = [
        st.sampled_from([{}, {"reasoning_effort": "high"}, {"reasoning_budget_tokens": 0}]),
        st.sampled_from([{}])
        | st.fixed_dictionaries({"history": st.lists(turn, max_size=2)})
        | st.fixed_dictionaries({"continue_from": json_objects}),
    ]
    for exclusive in one_of:
        fields |= draw(exclusive)
    if fields.get("tools"):
        named = [{"name": tool["name"]} for tool in fields["tools"]]
        fields["tool_choice"] = draw(st.sampled_from([None, "auto", "required", "none", *named]))
    return Options(**fields)


failures = st.builds(
    CallFailure,
    index=st.integers(0, 99),
    kind=st.sampled_from(["api_error", "rate_limit", "blocked", "empty"]),
    message=st.text(),
    hint=st.none() | st.text(),
    retryable=st.booleans(),
    status_code=st.none() | st.integers(100, 599),
    retry_after_s=st.none() | st.floats(0, 1e6),
)
envelopes = st.builds(
    ResultEnvelope,
    status=st.sampled_from(["ok", "partial", "error"]),
    answers=st.lists(st.text(), max_size=3),
    confidence=st.floats(0, 1),
    usage=st.dictionaries(st.text(), st.integers(0, 10**12), max_size=3),
    metrics=json_objects,
    diagnostics=json_objects,
    structured=st.none() | st.lists(json_values, max_size=3),
    reasoning=st.none() | st.lists(st.none() | st.text(), max_size=3),
    tool_calls=st.none()
    | st.lists(st.lists(st.dictionaries(st.text(), st.text(), max_size=3), max_size=2), max_size=2),
    errors=st.none() | st.lists(st.none() | failures, max_size=3),
    conversation_state=st.none() | json_objects,
)
