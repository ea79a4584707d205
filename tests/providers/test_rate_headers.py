"""Rate-limit headers: what is believed, and what is not."""

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
@pytest.mark.parametrize("of", ["requests", "tokens"])
def test_openai_writes_a_duration(of: str, text: str, seconds: float) -> None:
    """As Go prints one."""
    headers = httpx2.Headers({f"X-RateLimit-Remaining-{of}": "0", f"X-RateLimit-Reset-{of}": text})
    assert used_up_for(headers) == pytest.approx(seconds)


@pytest.mark.parametrize("of", ["requests", "tokens", "input-tokens", "output-tokens"])
def test_anthropic_writes_a_moment(of: str) -> None:
    """Against the provider's own clock, which is an hour before ours here."""
    theirs = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    headers = {
        f"anthropic-ratelimit-{of}-remaining": "0",
        f"anthropic-ratelimit-{of}-reset": (theirs + timedelta(seconds=20)).isoformat().replace("+00:00", "Z"),
        "date": format_datetime(theirs, usegmt=True),
    }
    assert used_up_for(headers) == 20


def test_a_provider_that_shows_no_clock_is_read_by_ours() -> None:
    """Both are likely to be right."""
    reset = datetime.now(UTC) + timedelta(seconds=20)
    headers = {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": reset.isoformat()}
    assert 15 < used_up_for(headers) <= 20


def test_the_longest_wait_counts() -> None:
    """Requests are back soon, tokens later."""
    headers = {
        "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "30s",
    }  # fmt: skip
    assert used_up_for(headers) == 30


NONSENSE = ["", "soon", "-5s", "1700000000", "s", "ms", "inf", "nan", "1s1m", "5 s", "²s"]
NO_MOMENT = ["", "soon", "2020-01-01T00:00:00Z", "2099-01-01T00:00:00", "2099-13-01T00:00:00Z", "4000", "0001-01-01"]


@pytest.mark.parametrize("reset", NONSENSE)
def test_what_is_no_duration_is_no_wait(reset: str) -> None:
    """No error either."""
    assert used_up_for({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}) == 0


@pytest.mark.parametrize("reset", NO_MOMENT)
@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 20 Nov 2026 12:00:00 GMT"])
def test_what_is_no_moment_to_come_is_no_wait(reset: str, date: str) -> None:
    """Without a time zone, unreadable, or over already."""
    headers = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": reset, "date": date}
    assert used_up_for(headers) <= 0


@pytest.mark.parametrize("remaining", ["1", "4999", "-1", "none", ""])
def test_as_long_as_anything_is_left_there_is_no_wait(remaining: str) -> None:
    """Or as long as nobody knows."""
    assert used_up_for({"x-ratelimit-remaining-requests": remaining, "x-ratelimit-reset-requests": "30s"}) == 0


def test_a_server_that_sends_zeros_counts_nothing() -> None:
    """A limit of nothing, and yet it answered."""
    headers = {f"x-ratelimit-{what}-requests": "0" for what in ("limit", "remaining")}
    assert used_up_for({**headers, "x-ratelimit-reset-requests": "30s"}) == 0


def test_gemini_says_nothing() -> None:
    """An answer without any such header."""
    assert used_up_for({"content-type": "application/json"}) == 0
