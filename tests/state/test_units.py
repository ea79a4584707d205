"""Durations and sizes, as people write them."""

from __future__ import annotations

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.units import format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30d", 30 * 86_400),
        ("12h", 43_200),
        ("90 m", 5400),
        ("1.5H", 5400),
        ("10s", 10),
        (" 2w ", 1_209_600),
        ("0d", 0),
    ],
)
def test_a_duration_is_parsed(text: str, value: float) -> None:
    assert parse_duration(text, "it") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("500MB", 500_000_000), ("2GiB", 2 * 2**30), ("1.5 gb", 1_500_000_000), ("3k", 3000), ("7 B", 7), ("1TiB", 2**40)],
)
def test_a_size_is_parsed(text: str, value: int) -> None:
    assert parse_size(text, "it") == value


@pytest.mark.parametrize("text", ["", "30", "d", "-3d", "30 days or so", "3x", "1e3d", "∞d", "٣d x", "9" * 400 + "d"])
def test_invalid_durations_and_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--older-than is not an age: .*30d"):
        parse_duration(text, "--older-than")
    with pytest.raises(ConfigurationError, match=r"^--max-size is not a size: .*500MB"):
        parse_size(text, "--max-size")


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (2_000_000_000, "2.0 GB"), (3e15, "3.0 PB")]
)
def test_a_size_is_formatted(size: float, words: str) -> None:
    assert format_size(size) == words
