"""OpenAI: the Responses, Files and Batch APIs below `/openai/v1`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from pollux_flows.simulator.faults import Fault
from pollux_flows.simulator.generate_request import GenerateRequest
from pollux_flows.simulator.openai import batches, count, files, generate
from pollux_flows.simulator.wire import Call, Provider, Refusal, bearer, row

# The default error type, code and message of each status.
_ERRORS: Mapping[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "Invalid request."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "permission_denied", "You are not allowed to do this."),
    404: ("invalid_request_error", None, "Not found."),
    413: ("invalid_request_error", "request_too_large", "Maximum content size limit exceeded."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests. Please try again later."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", "engine_overloaded", "The engine is currently overloaded, please try again later."),
    529: ("server_error", "engine_overloaded", "The engine is currently overloaded, please try again later."),
}


class OpenAI(Provider):
    name = "openai"
    prefix = "/openai/v1"
    operations = (*generate.OPERATIONS, *count.OPERATIONS, *files.OPERATIONS, *batches.OPERATIONS)
    request_id = "req_{:032x}"
    headers = {  # noqa: RUF012 (the base class declares it)
        "openai-version": "2020-10-01",
        "openai-processing-ms": "12",
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-reset-requests": "6ms",
        "x-ratelimit-limit-tokens": "2000000",
        "x-ratelimit-remaining-tokens": "1999000",
        "x-ratelimit-reset-tokens": "30ms",
    }

    @override
    def authenticate(self, headers: Mapping[str, str]) -> str:
        key = bearer(headers)
        if not key:
            raise Refusal(
                401,
                "You didn't provide an API key. You need to provide your API key in an Authorization header "
                "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            )
        return key

    @override
    def error(self, refusal: Refusal, request_id: str) -> Any:
        kind, code, message = row(_ERRORS, refusal.status)
        if refusal.message is not None:
            # A specific refusal has its own code or none; only a general one has the status's code.
            code = refusal.code
        if refusal.kind is not None:
            kind = code = refusal.kind
        return {"error": {"message": refusal.message or message, "type": kind, "param": refusal.param, "code": code}}

    @override
    def error_in_200(self, fault: Fault, call: Call, request_id: str) -> Any:
        return (
            super().error_in_200(fault, call, request_id)
            if call.generate_request is None
            else generate.failed(call, fault)
        )

    @override
    def overflow(self, request: GenerateRequest | None) -> Refusal:
        return generate.overflow()
