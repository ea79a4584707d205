"""The key stays where it is: in memory, for the call, and in nothing that is shown, stored or sent on."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter

from pollux_flows import Config, ConfigurationError
from tests.documents import SENTINEL, expect_error


def make(**changes: Any) -> Config:
    """A Config that works, but for these changes."""
    return Config(**{"provider": "openai", "model": "gpt-4.1-mini", "api_key": SENTINEL, **changes})


def test_the_key_shows_up_nowhere() -> None:
    """Not in JSON, not in what is printed, not in a pickle, not in copies, not in a form's schema."""
    config = make()
    copies = (config, copy.copy(config), copy.deepcopy(config), config.model_copy(), config.model_copy(deep=True))
    for each in (*copies, config.model_copy(update={"api_key": SecretStr(SENTINEL)})):
        assert each.key() == SENTINEL
        shown = [
            repr(each),
            str(each),
            f"{each}",
            each.model_dump_json(),
            each.model_dump_json(include={"api_key"}),
            repr(each.model_dump()),
            repr(each.model_dump(round_trip=True)),
            repr(each.model_dump(mode="json", exclude_none=True)),
            repr(vars(each)),
            repr(dict(each)),
            repr(list(each.__repr_args__())),
            repr(pickle.dumps(each)),
            repr(pickle.dumps([each], protocol=0)),
            TypeAdapter(list[Config]).dump_json([each]).decode(),
            json.dumps(Config.model_json_schema()),
            repr(each.target),
        ]
        assert not [text for text in shown if SENTINEL in text]


def test_that_there_is_a_key_can_be_seen() -> None:
    """Whether it is missing is the first thing one wants to know."""
    assert "api_key='[REDACTED]'" in repr(make())
    assert "api_key=None" in repr(Config(provider="openai", model="m", use_mock=True))


def what_is_said(error: BaseException | None) -> str:
    """All that a log could show of it: causes and contexts too."""
    said = ""
    while error is not None:
        said += f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or error.__context__
    return said


@given(
    field=st.sampled_from([*Config.model_fields, "unknown"]),
    value=st.sampled_from([None, 0, -1, "", "x", [], {}, object(), SENTINEL, [SENTINEL], {"max_attempts": SENTINEL}]),
)
def test_no_refusal_shows_the_key(field: str, value: Any) -> None:
    """Whatever else is wrong, and wherever the key was put by mistake."""
    said = ""
    try:
        make(**{field: value})
    except ConfigurationError as error:
        said = what_is_said(error)
    assert SENTINEL not in said


@pytest.mark.parametrize(
    "text",
    [
        f'{{"provider": "openai", "model": "m", "api_key": "{SENTINEL}", "x": 1}}',
        f'{{"provider": "nobody", "model": "m", "api_key": "{SENTINEL}"}}',
        f'{{"provider": "openai", "model": 1, "api_key": "{SENTINEL}"}}',
        f'{{"provider": "openai", "model": "m", "api_key": ["{SENTINEL}"]}}',
        f'{{"provider": "openai", "model": "m", "api_key": "{SENTINEL}"',
    ],
)
def test_no_refusal_of_json_shows_the_key(text: str) -> None:
    """Pydantic quotes what it cannot read; we do not."""
    with expect_error(ConfigurationError) as caught:
        Config.model_validate_json(text)
    assert SENTINEL not in what_is_said(caught.value)


def test_no_refusal_of_a_change_shows_the_key() -> None:
    """The same for an attempt to set it later."""
    with expect_error(ConfigurationError, "cannot be changed") as caught:
        make().api_key = SecretStr(SENTINEL)  # type: ignore[misc]
    assert SENTINEL not in what_is_said(caught.value)
    with expect_error(ConfigurationError, "cannot be changed") as caught:
        make().token = SENTINEL  # type: ignore[attr-defined]
    assert SENTINEL not in what_is_said(caught.value)
