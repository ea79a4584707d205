"""Gemini's Developer API, below `/gemini/v1` and `/gemini/v1beta`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from pollux_flows.simulator.gemini import batches, cache_routes, count, files, generate, uploads
from pollux_flows.simulator.generate_request import GenerateRequest
from pollux_flows.simulator.wire import BadRequest, Provider, Refusal, row

# The default canonical status and message of each HTTP status.
_ERRORS: Mapping[int, tuple[str, str]] = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "The caller does not have permission"),
    404: ("NOT_FOUND", "Requested entity was not found."),
    409: ("ALREADY_EXISTS", "Requested entity already exists"),
    413: ("INVALID_ARGUMENT", "Request payload size exceeds the limit: 20971520 bytes."),
    429: ("RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing details."),
    500: ("INTERNAL", "An internal error has occurred. Please retry."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "The service was unable to finish processing within the deadline."),
    529: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
}
_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"


class Gemini(Provider):
    name = "gemini"
    prefix = "/gemini"
    operations = (
        *generate.OPERATIONS,
        *count.OPERATIONS,
        *cache_routes.OPERATIONS,
        *uploads.OPERATIONS,
        *files.OPERATIONS,
        *batches.OPERATIONS,
    )
    # The API itself sends no request id; this one is only for people who read a recording.
    request_id = "gemini-{:08d}"
    headers = {"server-timing": "gfet4t7; dur=12"}  # noqa: RUF012 (the base class declares it)

    @override
    def authenticate(self, headers: Mapping[str, str]) -> str:
        key = headers.get("x-goog-api-key", "")
        if not key:
            raise Refusal(
                403,
                "Method doesn't allow unregistered callers (callers without established identity). Please use API Key "
                "or other form of API consumer identity to call this API.",
            )
        return key

    @override
    def error(self, refusal: Refusal, request_id: str) -> Any:
        status, message = row(_ERRORS, refusal.status)
        error: dict[str, Any] = {
            "code": refusal.status,
            "message": refusal.message or message,
            "status": refusal.kind or status,
        }
        wait = refusal.headers.get("retry-after", "")
        if wait.replace(".", "", 1).isdigit():
            error["details"] = [{"@type": _RETRY_INFO, "retryDelay": f"{wait}s"}]
        return {"error": error}

    @override
    def overflow(self, request: GenerateRequest | None) -> Refusal:
        window = request.context_window if request else 0
        tokens = max(request.input_tokens if request else 0, window + 1)
        return BadRequest(f"The input token count ({tokens}) exceeds the maximum number of tokens allowed ({window}).")
