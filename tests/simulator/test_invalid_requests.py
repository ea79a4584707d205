"""Property tests: no request, however invalid, makes the simulator crash."""

import asyncio
import json
from copy import deepcopy
from typing import Any

import httpx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pollux_flows.simulator import Simulator

from .clients import KEY_HEADERS
from .test_anthropic_refusals import ACCEPTED_REQUESTS as ANTHROPIC
from .test_chat_refusals import CALLS, RESULT, TOOL, USER
from .test_gemini_refusals import ACCEPTED_REQUESTS as GEMINI
from .test_gemini_refusals import path as gemini_path
from .test_openai_refusals import ACCEPTED_REQUESTS as OPENAI

SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}
CHAT: dict[str, Any] = {
    "model": "openai/gpt-4.1-mini",
    "messages": [
        {"role": "system", "content": "s"},
        USER,
        CALLS,
        RESULT,
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "o", "schema": SCHEMA}},
    "reasoning": {"effort": "low"},
    "stop": ["x"],
    "provider": {"require_parameters": False},
}
PDF = "data:application/pdf;base64,AAAA"
VIDEO = {
    "fileData": {"fileUri": "https://youtu.be/x", "mimeType": "video/mp4"},
    "videoMetadata": {"startOffset": "1s", "endOffset": "2s", "fps": 1},
}
#: Valid requests with attachments.
WITH_ATTACHMENTS: list[tuple[str, Any]] = [
    (
        "/openai/v1/responses",
        {
            "model": "gpt-4.1",
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_file", "filename": "a.pdf", "file_data": PDF},
                        {"type": "input_file", "file_url": "https://e.x/a.pdf"},
                        {"type": "input_image", "image_url": "https://e.x/a.png"},
                    ],
                }
            ],
        },
    ),
    (
        "/anthropic/v1/messages",
        {
            "model": "claude-haiku-4-5",
            "max_tokens": 2000,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "document", "source": {"type": "url", "url": "https://e.x/a.pdf"}},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x"}]}},
                    ],
                }
            ],
        },
    ),
    (
        gemini_path("gemini-2.5-flash"),
        {
            "contents": [{"parts": [VIDEO, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}, {"text": "x"}]}],
            "tools": [{"urlContext": {}}],
        },
    ),
    (
        "/openrouter/api/v1/chat/completions",
        {
            "model": "google/gemini-2.5-flash-lite",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}},
                        {"type": "image_url", "image_url": {"url": "https://e.x/a.png"}},
                        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
                    ],
                }
            ],
            "plugins": [{"id": "file-parser", "pdf": {"engine": "native"}}],
        },
    ),
]
CLAUDE = {"model": "claude-haiku-4-5", "max_tokens": 2000, "messages": [USER]}
VALID_REQUESTS: list[tuple[str, Any]] = [
    *(("/openai/v1/responses", {"model": "gpt-4.1", "input": "hi", **changes}) for changes in OPENAI.values()),
    *(("/anthropic/v1/messages", {**CLAUDE, **changes}) for changes in ANTHROPIC.values()),
    *(
        (gemini_path(model), {"contents": [{"parts": [{"text": "x"}]}], **changes})
        for model, changes in GEMINI.values()
    ),
    *WITH_ATTACHMENTS,
    ("/openrouter/api/v1/chat/completions", CHAT),
    ("/local/v1/chat/completions", CHAT),
    (
        "/gemini/v1/cachedContents",
        {"model": "models/gemini-2.5-flash", "ttl": "9s", "contents": [{"parts": [{"text": "x"}]}]},
    ),
]
INVALID_VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1.5,
        10**15,
        "",
        "x",
        "auto",
        "[[simulate: tool_call]]",
        [],
        [None],
        ["x"],
        [[]],
        {},
        {"type": "x"},
        {"x": None},
    ]
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a document."""
    found = [path] if path else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        found += paths_of(item, (*path, key))
    return found


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Any]:
    """Draw a valid request, and replace or remove up to three of its values."""
    url, body = deepcopy(draw(st.sampled_from(VALID_REQUESTS)))
    for _ in range(draw(st.integers(1, 3))):
        if not (known := paths_of(body)):
            break
        *above, last = draw(st.sampled_from(known))
        parent = body
        for step in above:
            parent = parent[step]
        if draw(st.booleans()):
            parent[last] = deepcopy(draw(INVALID_VALUES))
        elif isinstance(parent, dict):
            del parent[last]
    return url, body


OUTPUT_OF_NO_CALL = {"model": "gpt-4.1", "input": [{"type": "function_call_output", "output": "1"}]}


@settings(max_examples=400, deadline=None)
@given(requests())
@example(("/openai/v1/responses", OUTPUT_OF_NO_CALL))
def test_no_request_breaks_the_simulator(request: tuple[str, Any]) -> None:
    """Every mutated request is answered, or refused with a JSON error."""
    url, body = request
    simulator = Simulator()

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app=simulator.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://s", headers=KEY_HEADERS) as http:
            return await http.post(url, json=body)

    answer = asyncio.run(post())
    assert answer.status_code in (200, 400, 403, 404, 500), answer.text
    assert isinstance(json.loads(answer.content), dict)
