"""Errors: their classes, messages and hints, and their pickles."""

from __future__ import annotations

import copy
import pickle

import pytest

import pollux_flows
from pollux_flows import (
    APIError,
    BudgetError,
    CacheError,
    ConfigurationError,
    DeferredNotReadyError,
    InternalError,
    PlanningError,
    PolluxError,
    RateLimitError,
    SourceError,
)

LOCAL = (ConfigurationError, SourceError, PlanningError, BudgetError, InternalError, DeferredNotReadyError)
REMOTE = (APIError, RateLimitError, CacheError)
EVERY = (PolluxError, *LOCAL, *REMOTE)


def test_every_error_is_a_pollux_error() -> None:
    """Every error of this package is a PolluxError, and these tests cover all exported errors."""
    assert all(issubclass(error, PolluxError) for error in EVERY)
    assert {error.__name__ for error in EVERY} == {name for name in pollux_flows.__all__ if name.endswith("Error")}


@pytest.mark.parametrize("error", REMOTE)
def test_rate_limit_and_cache_errors_are_api_errors(error: type[APIError]) -> None:
    """Code that handles an APIError handles these as well."""
    assert issubclass(error, APIError)


@pytest.mark.parametrize("error", LOCAL)
def test_an_error_before_a_request_is_not_an_api_error(error: type[PolluxError]) -> None:
    """No request was sent, so the fields about retries do not apply."""
    assert not issubclass(error, APIError)


@pytest.mark.parametrize("error", EVERY)
def test_the_text_of_an_error_has_its_message_and_its_hint(error: type[PolluxError]) -> None:
    """Message and hint are also attributes."""
    raised = error("The model is blank.", hint="Write its name.")
    assert str(raised) == "The model is blank. Write its name."
    assert (raised.message, raised.hint) == ("The model is blank.", "Write its name.")


@pytest.mark.parametrize("error", EVERY)
def test_the_text_of_an_error_without_a_hint_is_its_message(error: type[PolluxError]) -> None:
    raised = error("Something happened.")
    assert str(raised) == "Something happened."
    assert raised.hint is None


@pytest.mark.parametrize("error", EVERY)
def test_an_error_comes_back_equal_from_a_pickle(error: type[PolluxError]) -> None:
    """Workers exchange errors as pickles, which preserve class, message and hint."""
    raised = error("It broke.", hint="Repair it.")
    for back in (pickle.loads(pickle.dumps(raised)), copy.copy(raised), copy.deepcopy(raised)):  # noqa: S301 (our own)
        assert type(back) is error
        assert str(back) == "It broke. Repair it."
        assert vars(back) == vars(raised)


@pytest.mark.parametrize("error", REMOTE)
def test_all_fields_of_an_api_error_come_back_from_a_pickle(error: type[APIError]) -> None:
    """A retry policy in another process decides by these fields."""
    raised = error(
        "Too many requests.",
        hint="Wait.",
        retryable=True,
        status_code=429,
        retry_after_s=2.5,
        provider="openai",
        phase="generate",
        call_idx=3,
        error_category="rate_limit",
        outcome_unknown=True,
    )
    back = pickle.loads(pickle.dumps(raised))  # noqa: S301 (our own)
    assert vars(back) == vars(raised)
    assert back.retryable is True
    assert (back.status_code, back.retry_after_s, back.call_idx) == (429, 2.5, 3)


def test_unknown_fields_of_an_api_error_are_none() -> None:
    """Only `outcome_unknown` has another default, False."""
    raised = APIError("It broke.")
    fields = (raised.retryable, raised.status_code, raised.retry_after_s, raised.call_idx, raised.error_category)
    assert fields == (None,) * 5
    assert raised.outcome_unknown is False
