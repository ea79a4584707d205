"""Identity: the SHA-256 of labelled, canonical JSON of all that can change an answer.

Each field of Config (as Target), Options and Source is either in the key or left out with a reason; a test breaks
when a new field is neither. A field at its default is not mentioned, so that one which a later version adds leaves
the names of all earlier answers as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from pollux_flows.config import ProviderName, Target
from pollux_flows.document import Document
from pollux_flows.options import Options
from pollux_flows.plain import canonical
from pollux_flows.source import Source
from pollux_flows.turn import Turn

TARGET_IN_KEY: Final = {"provider", "model", "base_url", "use_mock"}
CONFIG_LEFT_OUT: Final = {
    "api_key": "who pays does not change what is said",
    "request_concurrency": "changes when calls are made, not what they say",
    "retry": "the same",
    "timeout_s": "the same",
    "keep_files_s": "the same",
    "requests_per_minute": "the same",
    "tokens_per_minute": "the same",
}
OPTIONS_IN_KEY: Final = {
    "system_instruction",
    "response_schema",
    "tools",
    "tool_choice",
    "temperature",
    "top_p",
    "reasoning_effort",
    "reasoning_budget_tokens",
    "history",
    "continue_from",
    "max_tokens",
    "cache",
    "provider_options",
}
OPTIONS_LEFT_OUT: Final = {
    "implicit_caching": "changes what the answer costs, not what it says",
    "cache_ttl": "the same",
}
SOURCE_IN_KEY: Final = {"source_type", "mime_type", "text", "uri", "gemini_video", "gemini_url_context"}
SOURCE_LEFT_OUT: Final = {
    "trust_mime_type": "decides what mime_type is, and that is in the key",
    "identifier": "a name for people, never sent",
    "size_bytes": "follows from the content",
}
TURN_IN_KEY: Final = {"role", "content", "tool_calls", "tool_call_id", "sources", "provider_state"}
TURN_LEFT_OUT: Final = {
    "name": "follows from the call that it answers",
    "cache": "never sent; what is sent of it is in the options",
}


def digest(label: str, value: Any) -> str:
    """The name of `value` among all things called `label`."""
    return hashlib.sha256(f"{label}\n{canonical(value)}".encode()).hexdigest()


def source_identity(source: Source, provider: ProviderName, content: tuple[str, str] | None = None) -> str:
    """Equal for sources that the provider cannot tell apart. Of a file, `content` is its hash and MIME type."""
    told = {name for name in SOURCE_IN_KEY if provider == "gemini" or not name.startswith("gemini_")}
    if content is None:
        return digest("source", _said(source, told))
    # Where a file lies and what it is called is never sent.
    return digest("source", {**_said(source, told - {"uri", "mime_type"}), "content": content})


def conversation_identity(turns: Sequence[Turn], attached: Sequence[str], response_id: str | None) -> Any:
    """What is sent of the turns before; None where there are none. `attached` are the identities of their sources."""
    names = iter(attached)

    def told(turn: Turn) -> dict[str, Any]:
        said = _said(turn, TURN_IN_KEY - {"sources"})
        return said | {"sources": [each if isinstance(each, int) else next(names) for each in turn.sources]}

    return {"turns": [told(turn) for turn in turns], "response_id": response_id} if turns else None


def request_identity(target: Target, options: Options, sources: list[str], conversation: Any = None) -> str:
    """What all calls of one request have in common; `sources` are their identities, in order.

    Of `history` and `continue_from` counts what is sent: `conversation`. What else an envelope holds (how long it took,
    what was taken from the journal) is another each time the turn before is asked again.
    """
    said = _said(options, OPTIONS_IN_KEY - {"response_schema", "provider_options", "history", "continue_from", "cache"})
    if (handle := options.cache_handle) is not None:
        # When it expires does not count. Nor does its name, where its contents are known: a cache that is made again
        # has another one, and the paid answers are still found.
        said["cache"] = {"contents": handle.contents} if handle.contents else {"name": handle.name}
    # The shape counts, not the name it was imported by; and only the active provider's own fields are sent.
    if (schema := options.response_json_schema()) is not None:
        said["response_schema"] = _in_order(schema)
    if options.tools:
        said["tools"] = _in_order(said["tools"])
    if (own := (options.provider_options or {}).get(target.provider)) is not None:
        said["provider_options"] = own
        # Inside a field, a schema's for one, the order of keys counts. Keys that are sorted add nothing: such requests
        # keep the identity that they had before order counted.
        if (ordered := _in_order({name: own[name] for name in sorted(own)})) != canonical(own):
            said["provider_options_in_order"] = ordered
    return digest(
        "request",
        {
            "target": _said(target, TARGET_IN_KEY),
            "options": said,
            "sources": sources,
            **({} if conversation is None else {"conversation": conversation}),
        },
    )


def cache_contents_identity(
    system_instruction: str | None, tools: Sequence[dict[str, Any]] | None, sources: Sequence[str]
) -> str:
    """Return the identity of what a cache holds; `sources` are the identities of its sources, in order.

    The order of keys within a tool does not count, that of tools and of sources does.
    """
    return digest(
        "cache-contents",
        {"system_instruction": system_instruction or None, "tools": list(tools or []), "sources": list(sources)},
    )


def cache_identity(target: Target, account: str, contents: str) -> str:
    """Return the identity of a cache: its contents at one provider, for one model, address and account.

    How long it is to live, where its files lie and what they are called is not part of it.
    """
    return digest("cache", {"target": _said(target, TARGET_IN_KEY), "account": account, "contents": contents})


def call_identity(request: str, prompt: str | None, occurrence: int) -> str:
    """One call of a request. Asking the same thing twice is two calls: `occurrence` tells them apart."""
    return digest("call", {"request": request, "prompt": prompt, "occurrence": occurrence})


def _in_order(schema: Any) -> str:
    """A schema's fields are answered in their order, so that order counts."""
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _said(document: Document, fields: set[str]) -> dict[str, Any]:
    return document.model_dump(mode="json", include=fields, exclude_defaults=True)
