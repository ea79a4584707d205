"""Rate-limit headers: which values are trusted, and which are ignored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest

from pollux_flows.ratelimit.headers import used_up_for


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("120ms", 0.12),
        ("6m0s", 360),
        ("7.66s", 7.66),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3723),
        ("2d", 172800),
    ],
)
@pytest.mark.parametrize("quota", ["requests", "tokens"])
def test_a_reset_of_openai_is_a_duration(quota: str, text: str, seconds: float) -> None:
    """The duration has Go's format."""
    headers = httpx2.Headers({f"X-RateLimit-Remaining-{quota}": "0", f"X-RateLimit-Reset-{quota}": text})
    assert used_up_for(headers) == pytest.approx(seconds)


@pytest.mark.parametrize("quota", ["requests", "tokens", "input-tokens", "output-tokens"])
def test_a_reset_of_anthropic_is_compared_with_the_providers_clock(quota: str) -> None:
    """The provider's clock is an hour behind this machine's."""
    provider_time = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    headers = {
        f"anthropic-ratelimit-{quota}-remaining": "0",
        f"anthropic-ratelimit-{quota}-reset": (provider_time + timedelta(seconds=20))
        .isoformat()
        .replace("+00:00", "Z"),
        "date": format_datetime(provider_time, usegmt=True),
    }
    assert used_up_for(headers) == 20


def test_a_reset_without_a_date_header_is_compared_with_this_clock() -> None:
    reset = datetime.now(UTC) + timedelta(seconds=20)
    headers = {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": reset.isoformat()}
    assert 15 < used_up_for(headers) <= 20


def test_the_longest_wait_of_all_quotas_applies() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "30s",
    }  # fmt: skip
    assert used_up_for(headers) == 30


INVALID_DURATIONS = ["", "soon", "-5s", "1700000000", "s", "ms", "inf", "nan", "1s1m", "5 s", "²s"]
INVALID_TIMES = [
    "",
    "soon",
    "2020-01-01T00:00:00Z",
    "2099-01-01T00:00:00",
    "2099-13-01T00:00:00Z",
    "4000",
    "0001-01-01",
]


@pytest.mark.parametrize("reset", INVALID_DURATIONS)
def test_an_invalid_duration_causes_no_wait(reset: str) -> None:
    assert used_up_for({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}) == 0


@pytest.mark.parametrize("reset", INVALID_TIMES)
@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 20 Nov 2026 12:00:00 GMT"])
def test_an_invalid_or_past_time_causes_no_wait(reset: str, date: str) -> None:
    """A time without a time zone is invalid."""
    headers = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": reset, "date": date}
    assert used_up_for(headers) <= 0


@pytest.mark.parametrize("remaining", ["1", "4999", "-1", "none", ""])
def test_quota_left_or_unknown_causes_no_wait(remaining: str) -> None:
    assert used_up_for({"x-ratelimit-remaining-requests": remaining, "x-ratelimit-reset-requests": "30s"}) == 0


def test_a_limit_of_zero_is_ignored() -> None:
    """Some servers send limits of zero with an answer."""
    headers = {f"x-ratelimit-{name}-requests": "0" for name in ("limit", "remaining")}
    assert used_up_for({**headers, "x-ratelimit-reset-requests": "30s"}) == 0


def test_headers_without_limits_cause_no_wait() -> None:
    """Gemini sends no rate-limit headers."""
    assert used_up_for({"content-type": "application/json"}) == 0
