"""Provider errors: turn the errors of SDKs and servers into an APIError with a hint."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx2
from pydantic import ValidationError

from pollux_flows.address import redact_text
from pollux_flows.base_url import suggest_base_url
from pollux_flows.config import KEY_VARIABLES, Config
from pollux_flows.errors import APIError, CacheError, ErrorCategory, PolluxError, RateLimitError, SourceError
from pollux_flows.providers.base import UpstreamError
from pollux_flows.providers.body import BodyError
from pollux_flows.providers.redaction import Redactor

_RETRYABLE_STATUSES: Final = {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 524, 529}
_GATEWAY_STATUSES: Final = {502, 504, 520, 524}
_CAPACITY_STATUSES: Final = {500, 502, 503, 504, 520, 521, 522, 524, 529}
# Codes of 429s that waiting does not resolve, as a bill has to be paid first.
_OUT_OF_FUNDS: Final = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_OVERFLOW: Final = re.compile(
    r"context[ _]length|context window|prompt is too long|maximum number of tokens|too many (input )?tokens"
    r"|exceeds? the (available )?context|string_above_max_length",
    re.IGNORECASE,
)
_NOT_A_NETWORK_ERROR: Final = (httpx2.UnsupportedProtocol, httpx2.TooManyRedirects)
# Phases that cost nothing: their outcome is never unknown, as they can be repeated.
_ABOUT_A_BATCH: Final = {"batch_inspect", "batch_collect", "batch_cancel"}
_FREE_PHASES: Final = {"metadata", *_ABOUT_A_BATCH}
# Phases that a provider bills each time.
_BILLED_PHASES: Final = {"generate", "cache"}
# Phases that may leave something stored at the provider, even if the response is an error.
_STORING_PHASES: Final = {"upload", "batch_submit"}
_NEVER_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout)
# The errors of parsing an answer, in the SDKs or here: not JSON, not text, nested too deeply, or of another shape.
_UNREADABLE: Final = (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValidationError)
_LONGEST_QUOTE: Final = 500
# The paths in an OpenRouter error to the seconds to wait.
_OPENROUTER: Final = (("availability", "retry_after"), ("metadata", "retry_after_seconds"))
# Error messages of local servers that do not support schemas.
_NO_SCHEMA: Final = re.compile(r"json_schema|response_format|structured output", re.IGNORECASE)
_JSON_HINT: Final = (
    "If this server does not support schemas, leave response_schema out, describe the JSON in the prompt, and pass "
    "Options(provider_options={'local': {'response_format': {'type': 'json_object'}}})."
)
_CACHED_CONTENT: Final = re.compile(r"cached_?content", re.IGNORECASE)
_LOST_CACHE_HINT: Final = "The cache no longer exists, or belongs to another key: create one with create_cache."


def as_api_error(error: Exception, config: Config, phase: str) -> PolluxError:
    """Return the error of one call as a PolluxError."""
    failure = _explain(error, config, phase)
    if isinstance(failure, APIError):
        failure.provider, failure.phase = config.provider, phase
    return failure


def _explain(error: Exception, config: Config, phase: str) -> PolluxError:
    for cause in _chain(error):
        if isinstance(cause, SourceError):  # the file failed, not the provider
            return SourceError(cause.message, hint=cause.hint)
        if isinstance(cause, BodyError):
            return _body_error(config, phase, cause)
    if isinstance(error, UpstreamError):
        if error.status is None:
            return _unreadable(config, phase, str(error.body))
        return _refusal(
            config, phase, status=error.status, body=error.body, headers=error.headers, is_billed=error.is_billed
        )
    if (status := _status(error)) is None:
        return _no_response(error, config, phase)
    return _refusal(config, phase, status=status, body=_body(error), headers=_headers(error), fallback=str(error))


def _refusal(
    config: Config,
    phase: str,
    *,
    status: int,
    body: Any,
    headers: Mapping[str, str] | None = None,
    fallback: str = "",
    is_billed: bool = False,
) -> APIError:
    """Return the APIError for a provider's error object, under any HTTP status."""
    message, codes = _message_and_codes(body)
    no_schema = config.provider == "local" and phase == "generate" and _NO_SCHEMA.search(message) is not None
    message = redact(message or fallback or "no reason given", config)
    retry_after = _retry_after(headers or {}, body)
    # Gemini answers 403 for a cache that no longer exists, since it might belong to another account.
    lost_cache = status in {403, 404} and _CACHED_CONTENT.search(message) is not None
    category = None if lost_cache else _category(status, message, codes)
    retryable = (
        status in _RETRYABLE_STATUSES and category not in {"auth", "context_overflow"} and not codes & _OUT_OF_FUNDS
    )
    if phase == "batch_cancel" and status == 409:  # noqa: PLR2004
        retryable = False  # the batch has ended
    kind = RateLimitError if category == "rate_limit" else CacheError if lost_cache else _kind(phase)
    return kind(
        f"{config.provider} answered {status}: {message}",
        hint=_LOST_CACHE_HINT
        if lost_cache
        else _JSON_HINT
        if no_schema and category is None and not retryable
        else _hint(config, phase, status, category, codes),
        retryable=retryable,
        status_code=status,
        retry_after_s=retry_after,
        error_category=category,
        # A gateway may time out while the provider continues: only a 4xx proves that nothing was stored or billed.
        outcome_unknown=(phase in _STORING_PHASES and not 400 <= status < 500)  # noqa: PLR2004 (HTTP's own range)
        or (phase in _BILLED_PHASES and (is_billed or status in _GATEWAY_STATUSES)),
    )


def may_pass(status: int | None, code: str | None = None) -> bool | None:
    """Return whether a request refused with this status may succeed later; None if it is not an HTTP error."""
    if status is None or not 400 <= status <= 599:  # noqa: PLR2004 (HTTP's own range)
        return None
    return (status in _RETRYABLE_STATUSES or status >= 500) and code not in _OUT_OF_FUNDS  # noqa: PLR2004


def _unreadable(config: Config, phase: str, what: str) -> APIError:
    """Return the error for an answer that arrived, and was probably billed, but cannot be read."""
    return _kind(phase)(
        f"{config.provider} sent an answer that cannot be read: {redact(what, config)}",
        hint="If it happens again, the address may not belong to this provider's API: check base_url.",
        retryable=True,
        outcome_unknown=phase not in _FREE_PHASES,
    )


def _body_error(config: Config, phase: str, why: BodyError) -> APIError:
    return _kind(phase)(
        f"The answer of {config.provider} was not read to its end: {why}.",
        hint="No provider sends such answers: check base_url, and any proxy between this machine and the provider.",
        retryable=False,
        outcome_unknown=phase not in _FREE_PHASES,
    )


def redact(text: str, config: Config) -> str:
    """Return the text without echoed secrets, shortened for people to read."""
    text = redact_text(Redactor(config).message(text))
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…"


def _no_response(error: Exception, config: Config, phase: str) -> APIError:
    """Return the error for a call without an HTTP status: the network failed, or the answer was unreadable."""
    chain = list(_chain(error))
    if any(isinstance(link, _UNREADABLE) for link in chain):
        return _unreadable(config, phase, redact(str(error), config))
    network = next((link for link in chain if isinstance(link, httpx2.RequestError)), None)
    if network is None or isinstance(network, _NOT_A_NETWORK_ERROR):
        return _kind(phase)(
            f"{config.provider} could not be called: {type(error).__name__}: {redact(str(error), config)}",
            hint="This looks like a bug in pollux_flows or in the SDK; please report it.",
            retryable=False,
            # The error may have occurred after the provider had received a batch.
            outcome_unknown=network is None and phase == "batch_submit",
        )
    sent = not isinstance(network, _NEVER_SENT)
    return _kind(phase)(
        f"{config.provider} could not be reached: {type(network).__name__}: {redact(str(network), config)}".rstrip(
            ": "
        ),
        hint="The connection broke before the answer was complete."
        if sent
        else f"Check the network{f' and that something listens at {config.base_url}' if config.base_url else ''}.",
        retryable=True,
        error_category="network",
        outcome_unknown=sent and phase not in _FREE_PHASES,
    )


def _kind(phase: str) -> type[APIError]:
    return CacheError if phase == "cache" else APIError


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: Exception) -> int | None:
    """Return the HTTP status: `status_code` in OpenAI and Anthropic, `code` in google-genai, or the response's."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 100 <= value <= 599:  # noqa: PLR2004 (HTTP's own range)
                return value
    return None


def _headers(error: Exception) -> Mapping[str, str]:
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    return headers


def _body(error: Exception) -> Any:
    """Return the body: `body` in OpenAI (the inner error) and Anthropic (all), `details` in google-genai (all)."""
    for name in ("body", "details"):
        if (body := getattr(error, name, None)) is not None:
            return body
    return None


def _message_and_codes(body: Any) -> tuple[str, set[str]]:
    """Return the message of a provider's error object, and all its codes and types."""
    inner = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(inner, dict):
        return str(inner or ""), set()
    codes = {str(inner[name]) for name in ("code", "type", "status") if inner.get(name)}
    details = inner.get("details")
    if isinstance(details, list):  # Google: the specific reason of a generic INVALID_ARGUMENT
        codes |= {str(item["reason"]) for item in details if isinstance(item, dict) and item.get("reason")}
    message = _message(inner)
    metadata = inner.get("metadata")
    if isinstance(metadata, dict):  # OpenRouter: the upstream's error has more details, but may lack fields
        codes |= {str(metadata["error_type"])} if metadata.get("error_type") else set()
        raw = metadata.get("raw")
        upstream = raw if isinstance(raw, str) else _as_json(raw) if raw else ""
        if upstream:
            message = ": ".join(filter(None, (message, str(metadata.get("provider_name") or "upstream"), upstream)))
    return message, codes


def _message(error: dict[str, Any]) -> str:
    """Return the server's message; servers built on FastAPI write it under `detail`."""
    for name in ("message", "detail", "error"):
        if text := error.get(name):
            return text if isinstance(text, str) else _as_json(text)
    return ""


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "an error that is nested too deeply"


def _category(status: int, message: str, codes: set[str]) -> ErrorCategory | None:
    if status in {401, 403} or codes & {"authentication_error", "API_KEY_INVALID"}:
        return "auth"
    if "context_length_exceeded" in codes or (status in {400, 413, 422} and _OVERFLOW.search(message)):
        return "context_overflow"
    if status == 429:  # noqa: PLR2004
        return "rate_limit"
    return "capacity" if status in _CAPACITY_STATUSES else None


def _hint(config: Config, phase: str, status: int, category: ErrorCategory | None, codes: set[str]) -> str:
    if codes & _OUT_OF_FUNDS or status == 402:  # noqa: PLR2004
        return "The account is out of funds or over its quota: add funds or raise the quota; waiting does not help."
    if category == "auth":
        variable = KEY_VARIABLES.get(config.provider)
        if variable is None:
            return "The server requires another key: pass it as Config(api_key=…)."
        return f"Check the key in {variable} or in the provider block, and its permissions."
    if category == "context_overflow":
        return "Send less at once: fewer or shorter sources, or a model with a larger context."
    if status == 413:  # noqa: PLR2004
        return "Send less at once: fewer or shorter sources."
    if status == 404:  # noqa: PLR2004
        return _not_found_hint(config, phase)
    if category == "rate_limit":
        return "Lower request_concurrency, or try again later."
    if status in _RETRYABLE_STATUSES:
        return "The provider has a temporary problem; try again later."
    if status < 400:  # noqa: PLR2004
        return "This is not a response of a provider's API, and redirects are not followed: check base_url."
    return "The provider refused this request; its message above says what to change."


def _not_found_hint(config: Config, phase: str) -> str:
    if phase in _ABOUT_A_BATCH:
        return "The batch or its results no longer exist, or belong to another key."
    if config.base_url is None:
        return f"Check the model's name ({config.model})."
    meant = suggest_base_url(config.provider, config.base_url)
    return f"Check the model's name ({config.model}) and base_url ({config.base_url})" + (
        f": most servers have this API at {meant}." if meant else "."
    )


def _retry_after(headers: Mapping[str, str], body: Any) -> float | None:
    """Return the seconds to wait that the provider requests, from its headers or its error object."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    if value := headers.get("retry-after"):
        return _seconds_until(value) if (seconds := _number(value)) is None else seconds
    inner = body.get("error") if isinstance(body, dict) else None
    if not isinstance(inner, dict):
        return None
    for place, name in _OPENROUTER:
        if isinstance(part := inner.get(place), dict) and (seconds := _number(part.get(name))) is not None:
            return seconds
    details = inner.get("details")
    delays = [item.get("retryDelay") for item in details if isinstance(item, dict)] if isinstance(details, list) else []
    return next((_number(delay.removesuffix("s")) for delay in delays if isinstance(delay, str)), None)  # Google


def _seconds_until(date: str) -> float | None:
    try:
        when = parsedate_to_datetime(date)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def _number(value: Any) -> float | None:
    """Return a duration as a number; None if it is not a number, infinite or negative."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
