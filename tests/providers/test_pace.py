"""Pacing: when an account's next request may start, computed with a clock that the test moves."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows.ratelimit.pace import LONGEST_PAUSE_S, MOST_PAUSES, WINDOW_S, Demand, Pace


def make_pace(*demands: Demand) -> Pace:
    pace = Pace()
    for demand in demands:
        pace.join(demand)
    return pace


def count_turns(pace: Pace, now: float = 0.0) -> int:
    """Return how many turns can be taken, if none is returned."""
    return next(held for held in range(10_001) if pace.opens_at(now, held) > now)


def answer(pace: Pace, times: int = 1, tokens: int | None = None, now: float = 0.0) -> None:
    for _ in range(times):
        pace.started(now)
        pace.answered(now, tokens)


def refuse(pace: Pace, *, times: int = 1, in_progress: int = 1, now: float = 0.0, retry_after_s: float = 0.0) -> None:
    """Record refusals of one round, with so many calls in progress."""
    rounds = [pace.started(now) for _ in range(in_progress)]
    for _ in range(times):
        pace.refused(now, rounds[0], retry_after_s)
        pace.started(now)
    for _ in range(in_progress):
        pace.failed(now, maybe_done=False)


# --- The concurrency limit ----------------------------------------------------------------------------------


def test_the_limit_starts_at_the_largest_demand_of_a_session() -> None:
    """The limit falls when that session leaves."""
    small, large = Demand(3), Demand(20)
    pace = make_pace(small, small)
    assert count_turns(pace) == 3
    pace.join(large)
    assert count_turns(pace) == 20
    pace.leave(large)
    assert count_turns(pace) == 3


def test_the_limit_is_halved_once_a_round() -> None:
    """Eight concurrent calls that are all refused halve it once, not eight times."""
    pace = make_pace(Demand(8))
    rounds = [pace.started(0) for _ in range(8)]
    for each in rounds[:4]:
        pace.refused(0, each, None)
        assert count_turns(pace) == 4
    later = pace.started(0)
    for each in rounds[4:]:
        pace.refused(0, each, None)
    assert count_turns(pace) == 4
    pace.refused(0, later, None)
    assert count_turns(pace) == 2


def test_the_limit_is_never_below_one() -> None:
    pace = make_pace(Demand(5))
    for _ in range(10):
        refuse(pace)
    assert count_turns(pace) == 1


def test_the_limit_rises_by_one_after_a_round_of_answers() -> None:
    """The limit rises from 4 to 5 after four answers, and so on up to the demand."""
    pace = make_pace(Demand(8))
    refuse(pace)
    limits = []
    for _ in range(40):
        answer(pace)
        limits.append(count_turns(pace))
    assert limits[2] == 4
    assert limits[4] == 5
    assert all(later - earlier in {0, 1} for earlier, later in pairwise(limits))
    assert limits[-1] == 8


def test_a_larger_demand_than_ever_tried_is_granted() -> None:
    """A small session that slowed down and recovered does not slow down a larger one."""
    pace = make_pace(Demand(4))
    refuse(pace)
    answer(pace, times=20)
    pace.join(Demand(50))
    assert count_turns(pace) == 50


# --- Pauses -------------------------------------------------------------------------------------------------


def test_a_single_refusal_pauses_no_other_call() -> None:
    """Only the refused call waits for its Retry-After."""
    pace = make_pace(Demand(8))
    refuse(pace, retry_after_s=30)
    assert pace.opens_at(0, 0) <= 0


def test_a_full_round_of_refusals_pauses_the_account() -> None:
    """The pause lasts until the longest Retry-After of the round."""
    pace = make_pace(Demand(3))
    rounds = [pace.started(0) for _ in range(3)]
    for number, each in enumerate(rounds):
        assert pace.opens_at(0, 0) <= 0
        pace.refused(0, each, [5, 20, 10][number])
    assert pace.opens_at(0, 0) == 20
    assert pace.opens_at(20, 0) <= 20


def test_refusals_with_answers_between_them_cause_no_pause() -> None:
    pace = make_pace(Demand(3))
    for _ in range(5):
        refuse(pace, retry_after_s=20)
        answer(pace)
    assert pace.opens_at(0, 0) <= 0


def test_refusals_without_retry_after_cause_no_pause() -> None:
    """The calls' own backoff applies."""
    pace = make_pace(Demand(3))
    refuse(pace, times=20)
    assert pace.opens_at(0, 0) <= 0


@pytest.mark.parametrize("seconds", [90, 10**9, math.inf])
def test_a_pause_is_bounded(seconds: float) -> None:
    pace = make_pace(Demand(3))
    refuse(pace, times=2, retry_after_s=seconds)
    assert pace.opens_at(0, 0) == LONGEST_PAUSE_S
    pace = make_pace(Demand(3))
    pace.used_up(0, seconds)
    assert pace.opens_at(0, 0) == LONGEST_PAUSE_S


def test_the_number_of_pauses_without_an_answer_is_bounded() -> None:
    """A quota used up until tomorrow with a Retry-After of 30 seconds fails calls, instead of pausing them all day."""
    pace = make_pace(Demand(3))
    now = 0.0
    for _ in range(MOST_PAUSES):
        refuse(pace, times=2, retry_after_s=30, now=now)
        assert pace.opens_at(now, 0) == now + 30
        now += 30
    refuse(pace, times=2, retry_after_s=30, now=now)
    assert pace.opens_at(now, 0) <= now
    answer(pace, now=now)
    refuse(pace, times=2, retry_after_s=30, now=now)
    assert pace.opens_at(now, 0) == now + 30


def test_extending_a_pause_counts_as_one_pause() -> None:
    """Calls already in progress may report a later end."""
    pace = make_pace(Demand(3))
    for seconds in range(1, 21):
        pace.used_up(0, seconds)
        assert pace.opens_at(0, 0) == seconds
    pace.used_up(0, 3)
    assert pace.opens_at(0, 0) == 20


def test_a_pause_ends_with_the_last_session_unless_the_quota_is_used_up() -> None:
    """The next session makes an attempt of its own, unless the provider reported an exhausted quota."""
    demand = Demand(3)
    pace = make_pace(demand)
    refuse(pace, times=2, retry_after_s=30)
    pace.leave(demand)
    pace.join(demand)
    assert pace.opens_at(0, 0) <= 0
    pace.used_up(0, 30)
    pace.leave(demand)
    pace.join(demand)
    assert pace.opens_at(0, 0) == 30


# --- Requests per minute ------------------------------------------------------------------------------------


@given(
    allowed=st.integers(1, 6),
    pauses=st.lists(st.sampled_from([0.0, 0.5, 7.0, 59.0, 60.0, 200.0]), min_size=1, max_size=60),
)
def test_no_minute_has_more_requests_than_allowed(allowed: int, pauses: list[float]) -> None:
    """Any sixty seconds are within the limit, and no call waits longer than necessary."""
    pace = make_pace(Demand(100, requests_per_minute=allowed))
    now, starts = 0.0, list[float]()
    for pause in pauses:
        opens_at = pace.opens_at(now, 0)
        if opens_at > now:
            assert opens_at == starts[-allowed] + WINDOW_S
            now = opens_at
        answer(pace, now=now)
        starts.append(now)
        now += pause
    assert all(later - earlier >= WINDOW_S for earlier, later in zip(starts, starts[allowed:], strict=False))


def test_a_turn_without_a_request_is_not_counted() -> None:
    """While the turn is held it may still become a request."""
    pace = make_pace(Demand(5, requests_per_minute=1))
    assert pace.opens_at(0, 1) == math.inf
    assert pace.opens_at(0, 0) <= 0


def test_the_lowest_requests_per_minute_of_all_sessions_applies() -> None:
    """The limit of a session applies while that session is open."""
    careful = Demand(5, requests_per_minute=1)
    pace = make_pace(Demand(5), careful, Demand(5, requests_per_minute=10))
    answer(pace)
    assert pace.opens_at(1, 0) == WINDOW_S
    pace.leave(careful)
    assert pace.opens_at(1, 0) <= 1


# --- Tokens per minute --------------------------------------------------------------------------------------


def test_calls_are_made_one_at_a_time_until_an_answer_reports_its_tokens() -> None:
    pace = make_pace(Demand(50, tokens_per_minute=1000))
    assert count_turns(pace) == 1
    answer(pace, tokens=None)
    assert count_turns(pace) == 1
    answer(pace, tokens=100)
    assert count_turns(pace) == 9


def test_a_call_in_progress_counts_with_the_mean_tokens_of_answers() -> None:
    pace = make_pace(Demand(50, tokens_per_minute=1000))
    answer(pace, tokens=100)
    answer(pace, tokens=300, now=30)
    assert count_turns(pace, now=30) == 3
    assert pace.opens_at(30, 3) == WINDOW_S
    assert count_turns(pace, now=60) == 3
    assert count_turns(pace, now=61) == 3
    assert count_turns(pace, now=90) == 5


def test_calls_larger_than_the_token_limit_are_made_one_a_minute() -> None:
    pace = make_pace(Demand(50, tokens_per_minute=1000))
    answer(pace, tokens=5000)
    assert pace.opens_at(1, 0) == WINDOW_S
    assert count_turns(pace, now=WINDOW_S) == 1


def test_a_call_with_an_unknown_outcome_counts_with_the_mean_tokens() -> None:
    """A refusal does not count."""
    pace = make_pace(Demand(50, tokens_per_minute=1000))
    answer(pace, tokens=100)
    refuse(pace)
    assert count_turns(pace) == 9
    pace.started(0)
    pace.failed(0, maybe_done=True)
    assert count_turns(pace) == 8


@given(tokens=st.lists(st.integers(0, 500), min_size=1, max_size=50), allowed=st.integers(500, 2000))
def test_sequential_calls_stay_within_the_token_limit(tokens: list[int], allowed: int) -> None:
    """The sum may exceed the limit by the tokens of the last call above the mean."""
    pace = make_pace(Demand(50, tokens_per_minute=allowed))
    now, amounts = 0.0, list[tuple[float, int]]()
    for each in tokens:
        while (opens_at := pace.opens_at(now, 0)) > now:
            now = opens_at
        assert math.isfinite(now)
        answer(pace, tokens=each, now=now)
        amounts.append((now, each))
        assert sum(amount for at, amount in amounts if at > now - WINDOW_S) <= allowed + 500
        now += 1
