"""Parses generateContent requests into `GenerateRequest`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pollux_flows.simulator import tokens
from pollux_flows.simulator.gemini import attachments, fields, rules
from pollux_flows.simulator.gemini.caches import Cache
from pollux_flows.simulator.gemini.dialect import to_json_schema
from pollux_flows.simulator.generate_request import GenerateRequest
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.simulator.wire import BadRequest, Call, Refusal

CONTEXT_WINDOW = 1_048_576
#: The most addresses that the URL context tool fetches for one request.
URLS_LIMIT = 20
_URL = re.compile(r"https?://[^\s<>\"')\]]*[^\s<>\"')\].,;:!?]")


def read(call: Call) -> GenerateRequest:
    model = call.params["model"]
    rules.check_model(model)
    call.body = message = rules.read_message(call.body, fields.GENERATE)
    rules.check_generate(model, message)
    attachments.check(call, message["contents"])
    cache = cache_of(call)
    config = message.get("generationConfig") or {}
    contents = message["contents"]
    last_parts = _last_parts(contents)
    texts = [part["text"] for part in last_parts if "text" in part]
    tools = [*(cache.message.get("tools") or [] if cache else []), *(message.get("tools") or [])]
    return GenerateRequest(
        prompt=texts[-1] if texts else "",
        input_tokens=message_tokens(message, call.files) + (cache.tokens if cache else 0),
        context_window=CONTEXT_WINDOW,
        max_tokens=config.get("maxOutputTokens"),
        schema=_schema(config),
        tools=dict(_declarations(tools)),
        tool_choice=_tool_choice((cache.message if cache else message).get("toolConfig") or {}),
        tool_results=tuple(part["functionResponse"]["name"] for part in last_parts if "functionResponse" in part),
        reasoning=_reasons(config.get("thinkingConfig") or {}),
        stop=tuple(config.get("stopSequences") or ()),
        urls=_urls(texts) if any("urlContext" in tool for tool in tools) else (),
    )


def cache_of(call: Call) -> Cache | None:
    """Return the cache that the request uses, or None; refuse one that has expired or is for another model."""
    name = call.body.get("cachedContent")
    if not name:
        return None
    cache = call.simulator.gemini_caches.get(name, call.account, call.simulator.now())
    if cache is None:
        raise Refusal(403, "CachedContent not found (or permission denied)")
    if cache.model != f"models/{call.params['model']}":
        raise BadRequest(
            f"Model used by GenerateContent request (models/{call.params['model']}) and CachedContent ({cache.model}) "
            "has to be the same."
        )
    return cache


def message_tokens(message: dict[str, Any], files: Mapping[str, StoredFile]) -> int:
    """Count the tokens of a generateContent request, or of a cache to create."""
    contents = list(message.get("contents") or [])
    if "systemInstruction" in message:
        contents.append(message["systemInstruction"])
    total = sum(_part_tokens(part, files) for content in contents for part in content.get("parts") or [])
    total += sum(tokens.of_json(tool) for tool in message.get("tools") or [])
    schema = _schema(message.get("generationConfig") or {})
    return total + (tokens.of_json(schema) if isinstance(schema, dict) else 0)


def _reasons(thinking: dict[str, Any]) -> bool:
    return bool(thinking.get("includeThoughts") or thinking.get("thinkingLevel") or thinking.get("thinkingBudget"))


def _schema(config: dict[str, Any]) -> Any:
    if "responseJsonSchema" in config:
        return config["responseJsonSchema"]
    if "responseSchema" in config:
        return to_json_schema(config["responseSchema"])
    return True if config.get("responseMimeType") == "application/json" else None


def _declarations(tools: Iterable[dict[str, Any]]) -> Iterable[tuple[str, Any]]:
    for tool in tools:
        for declaration in tool.get("functionDeclarations") or []:
            own = to_json_schema(declaration.get("parameters") or {})
            yield declaration["name"], declaration.get("parametersJsonSchema") or own


def _tool_choice(config: dict[str, Any]) -> Any:
    calling = config.get("functionCallingConfig") or {}
    if calling.get("mode") == "ANY":
        return tuple(calling.get("allowedFunctionNames") or ()) or "required"
    return "none" if calling.get("mode") == "NONE" else "auto"


def _last_parts(contents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of the last turn that is not the model's."""
    turns = [content["parts"] for content in contents if content.get("role", "user") != "model"]
    return turns[-1] if turns else []


def _urls(texts: list[str]) -> tuple[str, ...]:
    """Return the URLs in the texts of the last turn, which the URL context tool would fetch."""
    found = dict.fromkeys(match for text in texts for match in _URL.findall(text))
    if len(found) > URLS_LIMIT:
        raise BadRequest(f"Number of urls to lookup exceeds the limit ({len(found)} > {URLS_LIMIT}).")
    return tuple(found)


def _part_tokens(part: dict[str, Any], files: Mapping[str, StoredFile]) -> int:
    if "text" in part:
        return tokens.of_text(part["text"])
    if "inlineData" in part:
        return tokens.of_base64(part["inlineData"]["data"], part["inlineData"]["mimeType"])
    if "fileData" in part:
        file = files.get(part["fileData"]["fileUri"])
        return tokens.of_attachment() if file is None else tokens.of_file(file.mime_type, file.size)
    for kind, content in (("functionCall", "args"), ("functionResponse", "response")):
        if kind in part:
            return tokens.of_text(part[kind]["name"]) + tokens.of_json(part[kind].get(content) or {})
    return 0
