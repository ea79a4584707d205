"""Errors: one tree, words that help, and nothing lost on the way through a pickle."""

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


def test_one_except_catches_all() -> None:
    """Every error of this package is a PolluxError, and each exported one is in these tests."""
    assert all(issubclass(error, PolluxError) for error in EVERY)
    assert {error.__name__ for error in EVERY} == {name for name in pollux_flows.__all__ if name.endswith("Error")}


@pytest.mark.parametrize("error", REMOTE)
def test_what_a_provider_refuses_is_an_api_error(error: type[APIError]) -> None:
    """Rate limits and caches are kinds of APIError: whoever handles those handles these."""
    assert issubclass(error, APIError)


@pytest.mark.parametrize("error", LOCAL)
def test_what_never_left_the_machine_is_no_api_error(error: type[PolluxError]) -> None:
    """Nothing was sent, so nothing about retries applies."""
    assert not issubclass(error, APIError)


@pytest.mark.parametrize("error", EVERY)
def test_the_text_says_what_was_wrong_and_what_to_do(error: type[PolluxError]) -> None:
    """`str` shows both, as a log does; each is also there by itself."""
    raised = error("The model is blank.", hint="Write its name.")
    assert str(raised) == "The model is blank. Write its name."
    assert (raised.message, raised.hint) == ("The model is blank.", "Write its name.")


@pytest.mark.parametrize("error", EVERY)
def test_without_a_hint_the_text_is_the_message(error: type[PolluxError]) -> None:
    """No hint leaves no trace."""
    raised = error("Something happened.")
    assert str(raised) == "Something happened."
    assert raised.hint is None


@pytest.mark.parametrize("error", EVERY)
def test_an_error_comes_back_whole_from_a_pickle(error: type[PolluxError]) -> None:
    """Workers hand errors over as pickles: class, message and hint survive."""
    raised = error("It broke.", hint="Mend it.")
    for back in (pickle.loads(pickle.dumps(raised)), copy.copy(raised), copy.deepcopy(raised)):  # noqa: S301 (our own)
        assert type(back) is error
        assert str(back) == "It broke. Mend it."
        assert vars(back) == vars(raised)


@pytest.mark.parametrize("error", REMOTE)
def test_an_api_error_keeps_all_it_knows_in_a_pickle(error: type[APIError]) -> None:
    """So a retry policy on the other side decides as this one would."""
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


def test_an_api_error_does_not_pretend_to_know() -> None:
    """What nobody told is None, not False and not zero; an outcome is known unless said otherwise."""
    raised = APIError("It broke.")
    told = (raised.retryable, raised.status_code, raised.retry_after_s, raised.call_idx, raised.error_category)
    assert told == (None,) * 5
    assert raised.outcome_unknown is False
