"""When an account may be asked again: plain numbers, on a clock that the test moves."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows.ratelimit.pace import LONGEST_PAUSE_S, MOST_PAUSES, WINDOW_S, Demand, Pace


def asked_for(*demands: Demand) -> Pace:
    pace = Pace()
    for demand in demands:
        pace.join(demand)
    return pace


def at_once(pace: Pace, now: float = 0.0) -> int:
    """How many turns there are, if none is given back."""
    return next(held for held in range(10_001) if pace.opens_at(now, held) > now)


def answer(pace: Pace, times: int = 1, tokens: int | None = None, now: float = 0.0) -> None:
    for _ in range(times):
        pace.started(now)
        pace.answered(now, tokens)


def refuse(pace: Pace, *, times: int = 1, under_way: int = 1, now: float = 0.0, retry_after_s: float = 0.0) -> None:
    """Refusals of one round, with so many calls under way at each."""
    rounds = [pace.started(now) for _ in range(under_way)]
    for _ in range(times):
        pace.refused(now, rounds[0], retry_after_s)
        pace.started(now)
    for _ in range(under_way):
        pace.failed(now, maybe_done=False)


# --- How many at once ---------------------------------------------------------------------------------------


def test_it_starts_at_what_the_largest_session_asks_for() -> None:
    """And goes down with it."""
    small, large = Demand(3), Demand(20)
    pace = asked_for(small, small)
    assert at_once(pace) == 3
    pace.join(large)
    assert at_once(pace) == 20
    pace.leave(large)
    assert at_once(pace) == 3


def test_a_round_is_punished_once() -> None:
    """Eight calls that were under way together and are all refused halve it once, not eight times."""
    pace = asked_for(Demand(8))
    rounds = [pace.started(0) for _ in range(8)]
    for each in rounds[:4]:
        pace.refused(0, each, None)
        assert at_once(pace) == 4
    later = pace.started(0)
    for each in rounds[4:]:
        pace.refused(0, each, None)
    assert at_once(pace) == 4
    pace.refused(0, later, None)
    assert at_once(pace) == 2


def test_one_call_is_always_possible() -> None:
    """Whatever the provider says."""
    pace = asked_for(Demand(5))
    for _ in range(10):
        refuse(pace)
    assert at_once(pace) == 1


def test_a_round_of_answers_is_worth_one_more() -> None:
    """4, after four answers about 5, and so on up to what was asked for, and no further."""
    pace = asked_for(Demand(8))
    refuse(pace)
    seen = []
    for _ in range(40):
        answer(pace)
        seen.append(at_once(pace))
    assert seen[2] == 4
    assert seen[4] == 5
    assert all(later - earlier in {0, 1} for earlier, later in pairwise(seen))
    assert seen[-1] == 8


def test_who_asks_for_more_than_was_ever_tried_gets_it() -> None:
    """A small session that had to slow down and has recovered does not slow down a larger one."""
    pace = asked_for(Demand(4))
    refuse(pace)
    answer(pace, times=20)
    pace.join(Demand(50))
    assert at_once(pace) == 50


# --- Pauses -------------------------------------------------------------------------------------------------


def test_one_refusal_stops_nobody() -> None:
    """The call that was told to wait does so; another may be let in."""
    pace = asked_for(Demand(8))
    refuse(pace, retry_after_s=30)
    assert pace.opens_at(0, 0) <= 0


def test_a_whole_round_of_refusals_stops_all() -> None:
    """As many in a row as were under way: until the longest Retry-After among them."""
    pace = asked_for(Demand(3))
    rounds = [pace.started(0) for _ in range(3)]
    for number, each in enumerate(rounds):
        assert pace.opens_at(0, 0) <= 0
        pace.refused(0, each, [5, 20, 10][number])
    assert pace.opens_at(0, 0) == 20
    assert pace.opens_at(20, 0) <= 20


def test_an_answer_in_between_makes_it_no_round() -> None:
    """The account is let in now and then: no pause."""
    pace = asked_for(Demand(3))
    for _ in range(5):
        refuse(pace, retry_after_s=20)
        answer(pace)
    assert pace.opens_at(0, 0) <= 0


def test_a_round_without_a_time_to_come_back_is_no_pause() -> None:
    """The retries of the calls themselves are what there is."""
    pace = asked_for(Demand(3))
    refuse(pace, times=20)
    assert pace.opens_at(0, 0) <= 0


@pytest.mark.parametrize("seconds", [90, 10**9, math.inf])
def test_a_pause_is_bounded(seconds: float) -> None:
    """Whoever asked for it, and for how long."""
    pace = asked_for(Demand(3))
    refuse(pace, times=2, retry_after_s=seconds)
    assert pace.opens_at(0, 0) == LONGEST_PAUSE_S
    pace = asked_for(Demand(3))
    pace.used_up(0, seconds)
    assert pace.opens_at(0, 0) == LONGEST_PAUSE_S


def test_pauses_in_vain_come_to_an_end() -> None:
    """A quota that is gone until tomorrow, under a Retry-After of 30 seconds: calls fail then, and do not crawl."""
    pace = asked_for(Demand(3))
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


def test_a_pause_that_goes_on_is_one_pause() -> None:
    """Whoever was under way when it began may hear of a later end; that counts for nothing else."""
    pace = asked_for(Demand(3))
    for seconds in range(1, 21):
        pace.used_up(0, seconds)
        assert pace.opens_at(0, 0) == seconds
    pace.used_up(0, 3)
    assert pace.opens_at(0, 0) == 20


def test_a_pause_for_those_in_line_ends_with_them() -> None:
    """The next session asks for itself; what the provider says is used up stays used up."""
    demand = Demand(3)
    pace = asked_for(demand)
    refuse(pace, times=2, retry_after_s=30)
    pace.leave(demand)
    pace.join(demand)
    assert pace.opens_at(0, 0) <= 0
    pace.used_up(0, 30)
    pace.leave(demand)
    pace.join(demand)
    assert pace.opens_at(0, 0) == 30


# --- Requests a minute --------------------------------------------------------------------------------------


@given(
    allowed=st.integers(1, 6),
    lasts=st.lists(st.sampled_from([0.0, 0.5, 7.0, 59.0, 60.0, 200.0]), min_size=1, max_size=60),
)
def test_no_minute_has_more_requests_than_allowed(allowed: int, lasts: list[float]) -> None:
    """Any sixty seconds, wherever they begin; and no longer a wait than that takes."""
    pace = asked_for(Demand(100, requests_per_minute=allowed))
    now, starts = 0.0, list[float]()
    for pause in lasts:
        opens_at = pace.opens_at(now, 0)
        if opens_at > now:
            assert opens_at == starts[-allowed] + WINDOW_S
            now = opens_at
        answer(pace, now=now)
        starts.append(now)
        now += pause
    assert all(later - earlier >= WINDOW_S for earlier, later in zip(starts, starts[allowed:], strict=False))


def test_a_turn_without_a_request_is_not_counted() -> None:
    """It is as long as it may still become one."""
    pace = asked_for(Demand(5, requests_per_minute=1))
    assert pace.opens_at(0, 1) == math.inf
    assert pace.opens_at(0, 0) <= 0


def test_the_most_careful_session_speaks_for_the_account() -> None:
    """While it is open."""
    careful = Demand(5, requests_per_minute=1)
    pace = asked_for(Demand(5), careful, Demand(5, requests_per_minute=10))
    answer(pace)
    assert pace.opens_at(1, 0) == WINDOW_S
    pace.leave(careful)
    assert pace.opens_at(1, 0) <= 1


# --- Tokens a minute ----------------------------------------------------------------------------------------


def test_until_an_answer_tells_what_it_took_one_call_goes_at_a_time() -> None:
    """An answer that does not say is no answer to that."""
    pace = asked_for(Demand(50, tokens_per_minute=1000))
    assert at_once(pace) == 1
    answer(pace, tokens=None)
    assert at_once(pace) == 1
    answer(pace, tokens=100)
    assert at_once(pace) == 9


def test_what_is_under_way_counts_as_the_mean() -> None:
    """Of all answers so far."""
    pace = asked_for(Demand(50, tokens_per_minute=1000))
    answer(pace, tokens=100)
    answer(pace, tokens=300, now=30)
    assert at_once(pace, now=30) == 3
    assert pace.opens_at(30, 3) == WINDOW_S
    assert at_once(pace, now=60) == 3
    assert at_once(pace, now=61) == 3
    assert at_once(pace, now=90) == 5


def test_a_call_that_never_fits_goes_alone() -> None:
    """After what was taken is a minute old."""
    pace = asked_for(Demand(50, tokens_per_minute=1000))
    answer(pace, tokens=5000)
    assert pace.opens_at(1, 0) == WINDOW_S
    assert at_once(pace, now=WINDOW_S) == 1


def test_what_may_have_been_done_may_have_been_paid_for() -> None:
    """A lost answer counts like any other; a refusal counts nothing."""
    pace = asked_for(Demand(50, tokens_per_minute=1000))
    answer(pace, tokens=100)
    refuse(pace)
    assert at_once(pace) == 9
    pace.started(0)
    pace.failed(0, maybe_done=True)
    assert at_once(pace) == 8


@given(tokens=st.lists(st.integers(0, 500), min_size=1, max_size=50), allowed=st.integers(500, 2000))
def test_one_after_another_they_stay_within_the_minute(tokens: list[int], allowed: int) -> None:
    """But for what the last of them took more than the mean."""
    pace = asked_for(Demand(50, tokens_per_minute=allowed))
    now, taken = 0.0, list[tuple[float, int]]()
    for each in tokens:
        while (opens_at := pace.opens_at(now, 0)) > now:
            now = opens_at
        assert math.isfinite(now)
        answer(pace, tokens=each, now=now)
        taken.append((now, each))
        assert sum(amount for at, amount in taken if at > now - WINDOW_S) <= allowed + 500
        now += 1
