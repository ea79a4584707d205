"""OpenRouter: chat completions with many models behind them, below `/openrouter/api/v1`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from typing_extensions import override

from pollux_flows.simulator import strict_schema
from pollux_flows.simulator.answers import Answer, compose
from pollux_flows.simulator.anthropic.models import parse_model as parse_claude_model
from pollux_flows.simulator.anthropic.signature import sign
from pollux_flows.simulator.chat import attachments, catalogue, reading, rules
from pollux_flows.simulator.chat.completion import completion
from pollux_flows.simulator.faults import Fault
from pollux_flows.simulator.generate_request import GenerateRequest
from pollux_flows.simulator.openai.reading import CACHE_S, CACHED_FROM_TOKENS, writes_are_billed
from pollux_flows.simulator.prefixes import CacheUse
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Provider, Refusal, Reply, bearer, row

_FORMAT = "simulated-v1"

# The default error_type and message of each status.
_ERRORS: Mapping[int, tuple[str, str]] = {
    400: ("invalid_request", "Bad request"),
    401: ("unauthorized", "No auth credentials found"),
    402: ("payment_required", "Insufficient credits"),
    403: ("forbidden", "Forbidden"),
    404: ("not_found", "Not found"),
    413: ("payload_too_large", "Request too large"),
    429: ("rate_limit_exceeded", "Rate limit exceeded"),
    500: ("server_error", "Internal Server Error"),
    503: ("provider_unavailable", "No instances available"),
    529: ("provider_overloaded", "Provider overloaded"),
}


def _read(call: Call) -> GenerateRequest:
    rules.check(call.body)
    model = catalogue.find(call.body["model"])
    if model is None:
        raise BadRequest(f"{call.body['model']} is not a valid model ID", kind="invalid_model")
    supported = model["supported_parameters"]
    attachments.check(call.body, model)
    _check_reasoning_details(call.body)
    if call.body.get("tools") and "tools" not in supported:
        raise Refusal(404, "No endpoints found that support tool use.")
    if (call.body.get("provider") or {}).get("require_parameters"):
        _check_parameters(call.body, supported)
    if call.body["model"].startswith("openai/"):
        _check_strict_schemas(call.body)
    return reading.read(
        call.body, context_window=model["context_length"], reasoning="reasoning" in supported and _reasons(call.body)
    )


def _check_reasoning_details(body: dict[str, Any]) -> None:
    """Refuse reasoning details with a wrong signature, and messages with tool calls but no declared tools."""
    for place, message in enumerate(body["messages"]):
        for detail in message.get("reasoning_details") or []:
            if detail.get("format") == _FORMAT and detail.get("signature") != sign(detail.get("text") or ""):
                raise BadRequest(f"messages.{place}.reasoning_details: Invalid `signature` in reasoning detail")
        if message.get("tool_calls") and not body.get("tools"):
            raise BadRequest("Tools must be defined in each request of a conversation that calls them.")


def _check_parameters(body: dict[str, Any], supported: Sequence[str]) -> None:
    names = ("temperature", "top_p", "max_tokens", "seed", "stop", "tools", "tool_choice", "reasoning")
    needed = [name for name in names if body.get(name) is not None]
    kind = (body.get("response_format") or {}).get("type")
    needed += {"json_object": ["response_format"], "json_schema": ["structured_outputs"]}.get(kind or "", [])
    if not set(needed) <= set(supported):
        raise Refusal(404, "No endpoints found that can handle the requested parameters.")


def _check_strict_schemas(body: dict[str, Any]) -> None:
    json_schema = (body.get("response_format") or {}).get("json_schema") or {}
    if json_schema.get("strict") and (problem := strict_schema.find_problem(json_schema["schema"])):
        raise BadRequest(f"Invalid schema for response_format '{json_schema['name']}': {problem}")
    for tool in body.get("tools") or []:
        function = tool["function"]
        if function.get("strict") and (problem := strict_schema.find_problem(function.get("parameters"))):
            raise BadRequest(f"Invalid schema for function '{function['name']}': {problem}")


def _reasons(body: dict[str, Any]) -> bool:
    settings = body.get("reasoning") or {}
    return bool(settings.get("effort") not in (None, "none") or settings.get("max_tokens") or settings.get("enabled"))


def _respond(call: Call) -> Reply:
    answer = compose(call.request, call.fault)
    cache_use = _use_cache(call)
    body = completion(
        answer,
        name=f"gen-{call.simulator.next_number():08d}",
        created=call.simulator.now(),
        model=call.body["model"],
        input_tokens=call.request.input_tokens,
    )
    body["provider"] = "Simulated"
    body["system_fingerprint"] = None
    choice = body["choices"][0]
    choice["native_finish_reason"] = choice["finish_reason"]
    choice["message"] |= {"refusal": None, "reasoning": None}
    if answer.reasoning and not (call.body.get("reasoning") or {}).get("exclude"):
        choice["message"] |= _reasoning(answer)
    if parsed := attachments.annotate_files(call.body, catalogue.find(call.body["model"]) or {}):
        choice["message"]["annotations"] = parsed
    usage = body["usage"]
    usage |= {
        "cost": _cost(catalogue.prices(call.body["model"]), usage, cache_use),
        "is_byok": False,
        "cost_details": {"upstream_inference_cost": None},
        "prompt_tokens_details": {
            "cached_tokens": cache_use.read,
            "cache_write_tokens": cache_use.written,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
    }
    return Reply(body)


def _reasoning(answer: Answer) -> dict[str, Any]:
    detail = {
        "type": "reasoning.text",
        "text": answer.reasoning,
        "signature": sign(answer.reasoning),
        "format": _FORMAT,
        "index": 0,
    }
    return {"reasoning": answer.reasoning, "reasoning_details": [detail]}


def _use_cache(call: Call) -> CacheUse:
    """Use the prompt cache by the rules of the route's provider: Anthropic's by breakpoints, OpenAI's automatically."""
    name, blocks = call.body["model"], reading.prompt_blocks(call.body)
    route, _, model = name.partition("/")
    if route == "anthropic":
        return call.use_cache(name, blocks, least_tokens=parse_claude_model(model.replace(".", "-")).cached_from_tokens)
    if route == "openai":
        blocks = [replace(block, lifetime_s=CACHE_S["30m"]) for block in blocks]
        cache_use = call.use_cache(name, blocks, least_tokens=CACHED_FROM_TOKENS)
        return cache_use if writes_are_billed(model) else CacheUse(cache_use.read)
    return call.use_cache(name, blocks, least_tokens=CACHED_FROM_TOKENS)


def _cost(prices: Mapping[str, str], usage: Mapping[str, int], cache_use: CacheUse) -> float:
    price = {name: Decimal(text) for name, text in prices.items()}
    fresh = usage["prompt_tokens"] - cache_use.read - cache_use.written
    cost = (
        fresh * price["prompt"]
        + cache_use.read * price.get("input_cache_read", price["prompt"])
        + cache_use.written * price.get("input_cache_write", price["prompt"])
        + usage["completion_tokens"] * price["completion"]
    )
    return float(cost)


class OpenRouter(Provider):
    name = "openrouter"
    prefix = "/openrouter/api/v1"
    operations = (
        Operation("generate", "POST", "/chat/completions", _respond, _read),
        Operation("models", "GET", "/models", catalogue.list_models),
        Operation("model", "GET", "/model/{author}/{slug}", catalogue.get_model),
    )
    request_id = "or-{:08d}"

    @override
    def authenticate(self, headers: Mapping[str, str]) -> str:
        key = bearer(headers)
        if not key:
            raise Refusal(401)
        return key

    @override
    def error(self, refusal: Refusal, request_id: str) -> Any:
        kind, message = row(_ERRORS, refusal.status)
        return {
            "error": {
                "code": refusal.status,
                "message": refusal.message or message,
                "metadata": {"error_type": refusal.kind or kind},
            },
            "user_id": "user_simulated",
        }

    @override
    def error_in_200(self, fault: Fault, call: Call, request_id: str) -> Any:
        return {
            "error": {
                "code": fault.status or 502,
                "message": fault.message or "Provider returned error",
                "metadata": {"provider_name": "Simulated", "error_type": fault.error_type or "provider_unavailable"},
            },
            "user_id": "user_simulated",
        }

    @override
    def overflow(self, request: GenerateRequest | None) -> Refusal:
        window = request.context_window if request else 0
        return BadRequest(
            f"This endpoint's maximum context length is {window} tokens. However, you requested more. Please "
            'reduce the length of either one, or use the "middle-out" transform to compress your prompt '
            "automatically.",
            kind="context_length_exceeded",
        )
