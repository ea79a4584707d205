"""Hints: each refusal says what to do instead."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pollux_flows import Config, Options, RetryPolicy
from pollux_flows.blocks import PolluxProvider
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.source import VideoSettings

PACKAGE = Path(__file__).parent.parent / "pollux_flows"
REFUSALS = {"ConfigurationError", "SourceError", "PlanningError", "refusal"}


def find_refusals_without_hint(code: str) -> Iterator[int]:
    """Yield the lines on which a refusal is made without a hint, by its class or by `cls.refusal`."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        made = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        by_module_function = isinstance(node.func, ast.Name) and made == "refusal"  # providers/errors.py's function
        hints = [each.value for each in node.keywords if each.arg == "hint"]
        empty = not hints or (isinstance(hints[0], ast.Constant) and not hints[0].value)
        if made in REFUSALS and not by_module_function and empty:
            yield node.lineno


def test_every_refusal_in_the_source_has_a_hint() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in find_refusals_without_hint(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        'ConfigurationError("x")',
        'errors.SourceError("x", hint=None)',
        'cls.refusal("x")',
        'PlanningError("x", hint="")',
    ],
)
def test_the_check_finds_a_refusal_without_a_hint(code: str) -> None:
    assert list(find_refusals_without_hint(code)) == [1]


@pytest.mark.parametrize(
    ("document", "data", "hint"),
    [
        (Config, {"provider": "gemini"}, "Set model"),
        (Config, {"provider": "gemini", "modle": "m"}, "Set model"),
        (Options, {"temprature": 1}, "Write temperature instead of temprature."),
        (Options, {"zzz": 1}, "Leave zzz out."),
        (Options, {"max_tokens": "many"}, "Correct max_tokens"),
        (Options, [], "Pass a JSON object with the fields of Options: "),
        (RetryPolicy, {"max_attempts": -1}, "Correct max_attempts"),
        (VideoSettings, {"fps": 99}, "Correct fps: Frames a second"),
        (PolluxProvider, {"provider": "gemini"}, "Set model: "),
    ],
)
def test_a_validation_error_has_a_hint_about_the_field(document: type[BaseModel], data: Any, hint: str) -> None:
    """The hint names the field and its meaning."""
    with pytest.raises(PolluxError) as caught:
        document.model_validate(data)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


def test_the_error_about_invalid_json_has_a_hint() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Options.model_validate_json("{")
    assert caught.value.hint is not None


def test_a_validation_error_does_not_show_the_input() -> None:
    """The input may be a key."""
    with pytest.raises(ConfigurationError) as caught:
        Options.model_validate({"max_tokens": "sk-secret"})
    assert "sk-secret" not in str(caught.value)
