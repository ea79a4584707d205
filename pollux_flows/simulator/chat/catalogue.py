"""OpenRouter's catalogue: a few models that differ in what they can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from pollux_flows.simulator.wire import BadRequest, Call, Refusal, Reply

_PLAIN = ("temperature", "top_p", "max_tokens", "stop", "seed")
_SCHEMAS = ("response_format", "structured_outputs")
_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
_REASONING = ("reasoning", "include_reasoning")
_CREATED = 1_770_000_000


def _model(
    name: str, context: int, inputs: tuple[str, ...], parameters: tuple[str, ...], **prices: str
) -> dict[str, Any]:
    model: dict[str, Any] = {
        "id": name,
        "canonical_slug": name,
        "name": name.partition("/")[2],
        "created": _CREATED,
        "description": f"A simulation of {name}",
        "context_length": context,
        "architecture": {
            "modality": f"{'+'.join(inputs)}->text",
            "input_modalities": list(inputs),
            "output_modalities": ["text"],
            "tokenizer": "Other",
            "instruct_type": None,
        },
        "pricing": {"request": "0", **prices},
        "top_provider": {"context_length": context, "max_completion_tokens": 65_536, "is_moderated": False},
        "per_request_limits": None,
        "supported_parameters": list(parameters),
        "default_parameters": {},
    }
    if "reasoning" in parameters:
        model["reasoning"] = {
            "supported_efforts": ["high", "medium", "low", "minimal"],
            "default_effort": "medium",
            "default_enabled": False,
            "supports_max_tokens": not name.startswith("openai/"),
            "mandatory": False,
        }
    return model


_VISION = ("text", "image", "file")
_WITHOUT_SAMPLING = ("max_tokens", "seed", *_SCHEMAS, *_TOOLS, *_REASONING)
_ALL_PARAMETERS = (*_PLAIN, *_SCHEMAS, *_TOOLS, *_REASONING)

MODELS: Mapping[str, dict[str, Any]] = {
    model["id"]: model
    for model in (
        _model(
            "openai/gpt-5-nano", 400_000, _VISION, _WITHOUT_SAMPLING,
            prompt="0.00000005", completion="0.0000004", input_cache_read="0.000000005",
        ),
        _model(
            "openai/gpt-4.1-mini", 1_047_576, _VISION, (*_PLAIN, *_SCHEMAS, *_TOOLS),
            prompt="0.0000004", completion="0.0000016", input_cache_read="0.0000001",
        ),
        _model(
            "anthropic/claude-sonnet-4.6", 1_000_000, _VISION, _ALL_PARAMETERS,
            prompt="0.000003", completion="0.000015", input_cache_read="0.0000003", input_cache_write="0.00000375",
        ),
        _model(
            "google/gemini-2.5-flash-lite", 1_048_576, (*_VISION, "audio", "video"), _ALL_PARAMETERS,
            prompt="0.0000001", completion="0.0000004", input_cache_read="0.00000001",
        ),
        _model(
            "meta-llama/llama-4-maverick", 1_048_576, ("text", "image"), (*_PLAIN, *_SCHEMAS, *_TOOLS),
            prompt="0.00000015", completion="0.0000006",
        ),
        _model(
            "meta-llama/llama-3.3-70b-instruct", 131_072, ("text",), _PLAIN, prompt="0.0000001", completion="0.00000032"
        ),
    )
}  # fmt: skip


def find(name: str) -> dict[str, Any] | None:
    """Return the model with that id; a variant such as `…:free` or `…:nitro` is the model itself."""
    return MODELS.get(name.partition(":")[0])


def prices(name: str) -> Mapping[str, str]:
    model = find(name)
    return model["pricing"] if model else {}


def list_models(call: Call) -> Reply:
    """List all models, or one page of them if `offset` or `limit` is set."""
    parameters = call.query.get("supported_parameters", "")
    needed = {name for name in parameters.split(",") if name}
    found = [model for model in MODELS.values() if needed <= set(model["supported_parameters"])]
    body: dict[str, Any] = {"data": found, "total_count": len(found), "links": {"next": None}}
    if call.query.keys() & {"offset", "limit"}:
        try:
            offset, limit = int(call.query.get("offset", 0)), int(call.query.get("limit", 1000))
        except ValueError:
            raise BadRequest("offset and limit must be numbers") from None
        body["data"] = found[offset : offset + limit]
        if offset + limit < len(found):
            following = {**call.query, "offset": offset + limit, "limit": limit}
            body["links"]["next"] = f"/api/v1/models?{urlencode(following)}"
    return Reply(body)


def get_model(call: Call) -> Reply:
    model = find(f"{call.params['author']}/{call.params['slug']}")
    if model is None:
        raise Refusal(404, "Model not found")
    return Reply({"data": model})
