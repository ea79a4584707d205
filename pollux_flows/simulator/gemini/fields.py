"""The fields of Gemini requests, in camelCase or snake_case.

The API takes `maxOutputTokens` and `max_output_tokens` alike, and the SDK sends both kinds in one
request. So a request is first converted to camelCase, except inside the caller's own data: JSON schemas,
the arguments of a call, its response.
"""

from __future__ import annotations

import re
from typing import Any

from pollux_flows.simulator.shape import (
    Mismatch,
    Path,
    anything,
    boolean,
    integer,
    items,
    mapping,
    number,
    one_of,
    record,
    text,
)

_SNAKE = re.compile(r"_([a-z0-9])")
_CALLER_DATA = frozenset({"args", "response", "responseJsonSchema", "parametersJsonSchema", "labels", "partMetadata"})
_PROPERTY_MAPS = frozenset({"properties"})


def to_camel_case(name: str) -> str:
    return _SNAKE.sub(lambda match: match.group(1).upper(), name) if "_" in name else name


def normal(value: Any) -> Any:
    """Return the message with all its field names in camelCase."""
    if isinstance(value, list):
        return [normal(item) for item in value]
    if not isinstance(value, dict):
        return value
    message: dict[str, Any] = {}
    for name, item in value.items():
        field = to_camel_case(name)
        if field in _CALLER_DATA:
            message[field] = item
        elif field in _PROPERTY_MAPS and isinstance(item, dict):
            message[field] = {key: normal(schema) for key, schema in item.items()}
        else:
            message[field] = normal(item)
    return message


def _int64(value: Any, path: Path) -> None:
    """Check an int64, which this API also accepts as a string."""
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return
    integer()(value, path)


def _schema(value: Any, path: Path) -> None:
    _SCHEMA(value, path)


def _schema_map(value: Any, path: Path) -> None:
    mapping(value, path)
    for name, schema in value.items():
        _schema(schema, (*path, name))


_TYPES = ("STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL", "TYPE_UNSPECIFIED")
#: Gemini's own schema dialect, of `responseSchema` and `parameters`: all other keywords are unknown to it.
_SCHEMA = record(
    {},
    {
        "type": one_of(*_TYPES, *(name.lower() for name in _TYPES)),
        "format": text,
        "title": text,
        "description": text,
        "nullable": boolean,
        "enum": items(text),
        "items": _schema,
        "minItems": _int64,
        "maxItems": _int64,
        "properties": _schema_map,
        "required": items(text),
        "minProperties": _int64,
        "maxProperties": _int64,
        "propertyOrdering": items(text),
        "minLength": _int64,
        "maxLength": _int64,
        "minimum": number(),
        "maximum": number(),
        "pattern": text,
        "example": anything,
        "default": anything,
        "anyOf": items(_schema),
    },
)

_PART = record(
    {},
    {
        "text": text,
        "thought": boolean,
        "thoughtSignature": text,
        "inlineData": record({"mimeType": text, "data": text}, {"displayName": text}),
        "fileData": record({"fileUri": text}, {"mimeType": text, "displayName": text}),
        "videoMetadata": record({}, {"startOffset": text, "endOffset": text, "fps": number()}),
        "functionCall": record({"name": text}, {"args": mapping, "id": text}),
        "functionResponse": record(
            {"name": text, "response": mapping},
            {"id": text, "parts": items(mapping), "scheduling": text, "willContinue": boolean},
        ),
        "executableCode": mapping,
        "codeExecutionResult": mapping,
        "mediaResolution": anything,
        "mediaProcessing": anything,
        "partMetadata": mapping,
        "toolCall": mapping,
        "toolResponse": mapping,
        "audioTranscription": anything,
        "speechMetadata": anything,
    },
)
_CONTENT = record({}, {"role": text, "parts": items(_PART)})

_DECLARATION = record(
    {"name": text},
    {
        "description": text,
        "parameters": _schema,
        "parametersJsonSchema": mapping,
        "response": mapping,
        "responseJsonSchema": mapping,
        "behavior": text,
    },
)
_TOOL = record(
    {},
    {
        "functionDeclarations": items(_DECLARATION),
        "googleSearch": mapping,
        "googleSearchRetrieval": mapping,
        "googleMaps": mapping,
        "codeExecution": mapping,
        "urlContext": mapping,
        "fileSearch": mapping,
        "computerUse": mapping,
        "mcpServers": anything,
        "enterpriseWebSearch": mapping,
    },
)
_TOOL_CONFIG = record(
    {},
    {
        "functionCallingConfig": record(
            {},
            {
                "mode": one_of("MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED"),
                "allowedFunctionNames": items(text),
                "streamFunctionCallArguments": boolean,
            },
        ),
        "retrievalConfig": mapping,
        "includeServerSideToolInvocations": boolean,
    },
)
_LEVELS = ("MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH")
_GENERATION_CONFIG = record(
    {},
    {
        "temperature": number(0, 2),
        "topP": number(0, 1),
        "topK": number(0),
        "candidateCount": integer(1, 8),
        "maxOutputTokens": integer(1),
        "stopSequences": items(text),
        "responseLogprobs": boolean,
        "logprobs": integer(),
        "presencePenalty": number(),
        "frequencyPenalty": number(),
        "seed": integer(),
        "responseMimeType": text,
        "responseSchema": _schema,
        "responseJsonSchema": mapping,
        "responseModalities": items(text),
        "mediaResolution": text,
        "speechConfig": anything,
        "imageConfig": anything,
        "audioTranscriptionConfig": anything,
        "enableEnhancedCivicAnswers": boolean,
        "thinkingConfig": record(
            {},
            {
                "includeThoughts": boolean,
                "thinkingBudget": integer(-1),
                "thinkingLevel": one_of(*_LEVELS, *(level.lower() for level in _LEVELS), "THINKING_LEVEL_UNSPECIFIED"),
            },
        ),
    },
)
_SHARED = {
    "contents": items(_CONTENT),
    "systemInstruction": _CONTENT,
    "tools": items(_TOOL),
    "toolConfig": _TOOL_CONFIG,
}

_GENERATE_FIELDS = {
    **_SHARED,
    "model": text,
    "cachedContent": text,
    "safetySettings": items(record({}, {"category": text, "threshold": text, "method": text})),
    "generationConfig": _GENERATION_CONFIG,
    "serviceTier": text,
    "store": boolean,
    "continuationToken": text,
}
GENERATE = record({}, _GENERATE_FIELDS)
#: One request to count tokens: bare contents, or all of a request, which then names its model.
COUNT = record({}, {"contents": items(_CONTENT), "generateContentRequest": record({"model": text}, _GENERATE_FIELDS)})
#: One request of a batch, and the request that creates a batch; its rows are checked one by one.
BATCH_ROW = record({"request": GENERATE}, {"metadata": mapping})
CREATE_BATCH = record(
    {
        "batch": record(
            {"inputConfig": record({}, {"fileName": text, "requests": record({"requests": items(anything)})})},
            {"displayName": text, "model": text, "name": text, "priority": _int64, "webhookConfig": mapping},
        )
    }
)
CACHE = record({"model": text}, {**_SHARED, "ttl": text, "expireTime": text, "displayName": text, "name": text})
CREATE_FILE = record(
    {}, {"file": record({}, {"name": text, "displayName": text, "mimeType": text, "sizeBytes": _int64})}
)
CACHE_UPDATE = record({}, {"ttl": text, "expireTime": text, "name": text})


def describe(mismatch: Mismatch) -> str:
    """Return the error message of the API's JSON parser for a mismatch."""
    where = _where(mismatch.path[:-1])
    field = mismatch.path[-1] if mismatch.path else ""
    at = f" at '{where}'" if where else ""
    match mismatch.problem:
        case "unknown":
            return f'Invalid JSON payload received. Unknown name "{field}"{at}: Cannot find field.'
        case "missing":
            return f"* {_where(mismatch.path)}: required field is not set"
        case "type" | "value":
            return f"Invalid value at '{_where(mismatch.path)}' ({mismatch.expected}), {mismatch.value!r}"
        case _:
            side = "at least" if mismatch.problem == "minimum" else "at most"
            return f"* {_where(mismatch.path)}: {mismatch.value} is out of range: must be {side} {mismatch.expected}"


def _where(path: Path) -> str:
    spelled = ""
    for step in path:
        if isinstance(step, int):
            spelled += f"[{step}]"
        else:
            spelled += ("." if spelled else "") + re.sub(r"(?<!^)([A-Z])", lambda m: "_" + m.group(1).lower(), step)
    return spelled
