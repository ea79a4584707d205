"""The API key is in memory only: it is in nothing that is shown, stored or passed to other processes."""

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


def make_config(**changes: Any) -> Config:
    """Return a valid Config with these changes."""
    return Config(**{"provider": "openai", "model": "gpt-4.1-mini", "api_key": SENTINEL, **changes})


def test_no_form_of_a_config_shows_the_key() -> None:
    """The forms are JSON, text, pickles, copies and the schema of a form."""
    config = make_config()
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


def test_the_repr_of_a_config_shows_whether_it_has_a_key() -> None:
    assert "api_key='[REDACTED]'" in repr(make_config())
    assert "api_key=None" in repr(Config(provider="openai", model="m", use_mock=True))


def collect_text(error: BaseException | None) -> str:
    """Return all text that a log could show of an error, including causes and contexts."""
    text = ""
    while error is not None:
        text += f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or error.__context__
    return text


@given(
    field=st.sampled_from([*Config.model_fields, "unknown"]),
    value=st.sampled_from([None, 0, -1, "", "x", [], {}, object(), SENTINEL, [SENTINEL], {"max_attempts": SENTINEL}]),
)
def test_no_validation_error_shows_the_key(field: str, value: Any) -> None:
    """This holds for each invalid field, and for a key that was passed in the wrong field."""
    text = ""
    try:
        make_config(**{field: value})
    except ConfigurationError as error:
        text = collect_text(error)
    assert SENTINEL not in text


@pytest.mark.parametrize(
    "text",
    [
        f'{{"provider": "openai", "model": "m", "api_key": "{SENTINEL}", "x": 1}}',
        f'{{"provider": "unknown", "model": "m", "api_key": "{SENTINEL}"}}',
        f'{{"provider": "openai", "model": 1, "api_key": "{SENTINEL}"}}',
        f'{{"provider": "openai", "model": "m", "api_key": ["{SENTINEL}"]}}',
        f'{{"provider": "openai", "model": "m", "api_key": "{SENTINEL}"',
    ],
)
def test_no_error_about_invalid_json_shows_the_key(text: str) -> None:
    """Errors of Pydantic quote their input, but ours do not."""
    with expect_error(ConfigurationError) as caught:
        Config.model_validate_json(text)
    assert SENTINEL not in collect_text(caught.value)


def test_no_error_about_a_change_shows_the_key() -> None:
    """The key may be part of the attempted change."""
    with expect_error(ConfigurationError, "cannot be changed") as caught:
        make_config().api_key = SecretStr(SENTINEL)  # type: ignore[misc]
    assert SENTINEL not in collect_text(caught.value)
    with expect_error(ConfigurationError, "cannot be changed") as caught:
        make_config().token = SENTINEL  # type: ignore[attr-defined]
    assert SENTINEL not in collect_text(caught.value)
