"""Identity: identifies calls by the SHA-256 of labelled, canonical JSON of all inputs that can change an answer.

Each field of Config (as Target), Options and Source is either in the key or left out for a stated reason; a test fails
for a new field that is neither. Fields at their default are omitted, so that a field which a later version adds does
not change the identities of earlier answers.
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
    "api_key": "changes who pays, not the answer",
    "request_concurrency": "changes when calls are made, not their answers",
    "retry": "changes whether a call succeeds, not its answer",
    "timeout_s": "changes whether a call succeeds, not its answer",
    "keep_files_s": "changes how long files stay at the provider, not the answers",
    "requests_per_minute": "changes when calls are made, not their answers",
    "tokens_per_minute": "changes when calls are made, not their answers",
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
    "implicit_caching": "changes what the answer costs, not the answer",
    "cache_ttl": "changes what the answer costs, not the answer",
}
SOURCE_IN_KEY: Final = {"source_type", "mime_type", "text", "uri", "gemini_video", "gemini_url_context"}
SOURCE_LEFT_OUT: Final = {
    "trust_mime_type": "decides about mime_type, which is in the key",
    "identifier": "a name for readers, never sent",
    "size_bytes": "follows from the content",
}
TURN_IN_KEY: Final = {"role", "content", "tool_calls", "tool_call_id", "sources", "provider_state"}
TURN_LEFT_OUT: Final = {
    "name": "follows from the call that it answers",
    "cache": "never sent; the part of it that is sent is in the options",
}


def digest(label: str, value: Any) -> str:
    """Return the SHA-256 of `value` as canonical JSON; equal values with different labels have different digests."""
    return hashlib.sha256(f"{label}\n{canonical(value)}".encode()).hexdigest()


def source_identity(source: Source, provider: ProviderName, content: tuple[str, str] | None = None) -> str:
    """Return the identity of a source, which is equal for sources that look equal to the provider.

    `content` is the hash and MIME type of a file.
    """
    fields = {name for name in SOURCE_IN_KEY if provider == "gemini" or not name.startswith("gemini_")}
    if content is None:
        return digest("source", _dump(source, fields))
    # The location and the name of a file are never sent.
    return digest("source", {**_dump(source, fields - {"uri", "mime_type"}), "content": content})


def conversation_identity(turns: Sequence[Turn], attached: Sequence[str], response_id: str | None) -> Any:
    """Return the part of the prior turns that is sent; None if there are none. `attached` are source identities."""
    identities = iter(attached)

    def dump_turn(turn: Turn) -> dict[str, Any]:
        sources = [each if isinstance(each, int) else next(identities) for each in turn.sources]
        return _dump(turn, TURN_IN_KEY - {"sources"}) | {"sources": sources}

    return {"turns": [dump_turn(turn) for turn in turns], "response_id": response_id} if turns else None


def request_identity(target: Target, options: Options, sources: list[str], conversation: Any = None) -> str:
    """Return the identity of a request, which all its calls share; `sources` are their identities, in order.

    Of `history` and `continue_from`, only the part that is sent counts: `conversation`. The rest of an envelope (such
    as its duration) differs each time the prior turn is requested again.
    """
    fields = _dump(
        options, OPTIONS_IN_KEY - {"response_schema", "provider_options", "history", "continue_from", "cache"}
    )
    if (handle := options.cache_handle) is not None:
        # The expiry of a cache does not count, nor does its name if its contents are known: when the cache is created
        # again under another name, the answers that were paid for are still found.
        fields["cache"] = {"contents": handle.contents} if handle.contents else {"name": handle.name}
    # The name of the schema's class does not count. Of the provider options, only those of this provider are sent.
    if (schema := options.response_json_schema()) is not None:
        fields["response_schema"] = _dump_in_order(schema)
    if options.tools:
        fields["tools"] = _dump_in_order(fields["tools"])
    if (own := (options.provider_options or {}).get(target.provider)) is not None:
        fields["provider_options"] = own
        # Within an option, such as a schema, the order of keys counts. Requests with sorted keys have the identity
        # that earlier versions gave them, when the order did not count.
        if (ordered := _dump_in_order({name: own[name] for name in sorted(own)})) != canonical(own):
            fields["provider_options_in_order"] = ordered
    return digest(
        "request",
        {
            "target": _dump(target, TARGET_IN_KEY),
            "options": fields,
            "sources": sources,
            **({} if conversation is None else {"conversation": conversation}),
        },
    )


def cache_contents_identity(
    system_instruction: str | None, tools: Sequence[dict[str, Any]] | None, sources: Sequence[str]
) -> str:
    """Return the identity of the contents of a cache; `sources` are the identities of its sources, in order.

    The order of keys within a tool does not count; the order of tools and of sources does.
    """
    return digest(
        "cache-contents",
        {"system_instruction": system_instruction or None, "tools": list(tools or []), "sources": list(sources)},
    )


def cache_identity(target: Target, account: str, contents: str) -> str:
    """Return the identity of a cache: its contents, provider, model, address and account.

    Its lifetime and the locations and names of its files are not part of it.
    """
    return digest("cache", {"target": _dump(target, TARGET_IN_KEY), "account": account, "contents": contents})


def call_identity(request: str, prompt: str | None, occurrence: int) -> str:
    """Return the identity of one call of a request. Equal prompts are separate calls, numbered by `occurrence`."""
    return digest("call", {"request": request, "prompt": prompt, "occurrence": occurrence})


def _dump_in_order(schema: Any) -> str:
    # A model fills in the fields in the order of the schema, so the order can change the answer.
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _dump(document: Document, fields: set[str]) -> dict[str, Any]:
    return document.model_dump(mode="json", include=fields, exclude_defaults=True)
