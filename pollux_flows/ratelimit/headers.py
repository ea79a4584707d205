"""Rate-limit headers: reads the remaining quota of an account from a response. Gemini sends no such headers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

# Durations in the format of Go: 120ms, 1s, 7.66s, 6m0s, 1h2m3s.
_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_IN_SECONDS: Final = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)


def used_up_for(headers: Mapping[str, str]) -> float:
    """Return the seconds until there is quota again; 0 if some is left, or if the headers do not say."""
    return max([*_openai(headers), *_anthropic(headers)], default=0.0)


def _openai(headers: Mapping[str, str]) -> Iterator[float]:
    """Read the headers of OpenAI, and of servers compatible with it."""
    for of in ("requests", "tokens"):
        # A server without limits may send zeros everywhere.
        if headers.get(f"x-ratelimit-remaining-{of}") == "0" and headers.get(f"x-ratelimit-limit-{of}") != "0":
            yield _duration(headers.get(f"x-ratelimit-reset-{of}", ""))


def _anthropic(headers: Mapping[str, str]) -> Iterator[float]:
    for of in ("requests", "tokens", "input-tokens", "output-tokens"):
        if headers.get(f"anthropic-ratelimit-{of}-remaining") == "0":
            yield _until(headers.get(f"anthropic-ratelimit-{of}-reset", ""), headers.get("date", ""))


def _duration(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        return 0.0
    return sum(float(amount) * unit for amount, unit in zip(found.groups("0"), _IN_SECONDS, strict=True))


def _until(moment: str, date: str) -> float:
    """Return the seconds until a moment, by the provider's clock if it sends its date, as ours may be minutes off."""
    try:
        reset = datetime.fromisoformat(moment)
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        return (reset - now).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no timestamps, or one without a time zone
        return 0.0
