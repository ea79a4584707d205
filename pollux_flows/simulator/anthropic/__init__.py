"""Anthropic: the Messages, Files and Message Batches APIs below `/anthropic/v1`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from pollux_flows.simulator.anthropic import batches, count, files, generate
from pollux_flows.simulator.generate_request import GenerateRequest
from pollux_flows.simulator.wire import BadRequest, Provider, Refusal, bearer, row

# The default error type and message of each status.
_ERRORS: Mapping[int, tuple[str, str]] = {
    400: ("invalid_request_error", "Invalid request."),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "Your credit balance is too low to access the Anthropic API."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "Not found"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    500: ("api_error", "Internal server error"),
    503: ("api_error", "Service unavailable"),
    504: ("timeout_error", "Request timed out"),
    529: ("overloaded_error", "Overloaded"),
}


class Anthropic(Provider):
    name = "anthropic"
    prefix = "/anthropic"
    operations = (*generate.OPERATIONS, *count.OPERATIONS, *files.OPERATIONS, *batches.OPERATIONS)
    request_id = "req_{:024d}"
    request_id_header = "request-id"
    headers = {  # noqa: RUF012 (the base class declares it)
        "anthropic-organization-id": "00000000-0000-4000-8000-000000000000",
        "anthropic-ratelimit-requests-limit": "4000",
        "anthropic-ratelimit-requests-remaining": "3999",
        "anthropic-ratelimit-requests-reset": "2026-11-20T00:00:00Z",
        "anthropic-ratelimit-tokens-limit": "480000",
        "anthropic-ratelimit-tokens-remaining": "479000",
        "anthropic-ratelimit-tokens-reset": "2026-11-20T00:00:00Z",
    }

    @override
    def authenticate(self, headers: Mapping[str, str]) -> str:
        key = bearer(headers) or headers.get("x-api-key", "")
        if not key:
            raise Refusal(401, "x-api-key header is required")
        return key

    @override
    def error(self, refusal: Refusal, request_id: str) -> Any:
        kind, message = row(_ERRORS, refusal.status)
        error: dict[str, Any] = {"type": refusal.kind or kind, "message": refusal.message or message}
        if refusal.code is not None:
            error["details"] = {"error_code": refusal.code}
        return {"type": "error", "error": error, "request_id": request_id}

    @override
    def overflow(self, request: GenerateRequest | None) -> Refusal:
        window = request.context_window if request else 0
        length = max(request.input_tokens if request else 0, window + 1)
        return BadRequest(f"prompt is too long: {length} tokens > {window} maximum")
