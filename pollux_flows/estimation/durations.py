"""Durations: how long a run takes, by the account's limits and by how long earlier answers took."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from pollux_flows.config import Config
from pollux_flows.estimation.estimate import Amount
from pollux_flows.estimation.work import Work
from pollux_flows.result import Outcome

_MINUTE_S: Final = 60.0


def estimate_duration(work: Work, config: Config, tokens_in: Amount, tokens_out: Amount) -> tuple[Amount, list[str]]:
    """Return the time that the calls take, and what it is assumed from. The slowest limit counts."""
    waits: list[Callable[[float], float]] = []
    why = []
    latency = _find_latency(work.earlier)
    if latency is not None:
        rounds = math.ceil(work.to_ask / config.request_concurrency)
        waits.append(lambda _: rounds * latency)
        why.append(f"Time: earlier answers took {latency:.1f} s, with {config.request_concurrency} calls at once.")
    if (requests := config.requests_per_minute) is not None:
        waits.append(lambda _: work.to_ask / requests * _MINUTE_S)
        why.append(f"Time: at most {requests:,} requests a minute.")
    if (tokens := config.tokens_per_minute) is not None:
        waits.append(lambda used: used / tokens * _MINUTE_S)
        why.append(f"Time: at most {tokens:,} tokens a minute.")
    missing = f"How long {config.model} takes to answer is not known: the journal has no answers to such prompts."
    if not waits:
        return Amount(unknown=missing), why

    def find_longest(ins: float | None, outs: float | None) -> float | None:
        return None if ins is None or outs is None else round(max(wait(ins + outs) for wait in waits), 1)

    return Amount(
        low=find_longest(tokens_in.low, tokens_out.low),
        expected=find_longest(tokens_in.expected, tokens_out.expected),
        worst=find_longest(tokens_in.worst, tokens_out.worst),
        unknown=missing if latency is None else tokens_out.unknown,
    ), why


def _find_latency(earlier: Sequence[Outcome]) -> float | None:
    """Return how long an answer takes, on average."""
    seconds = [each.duration_s for each in earlier if each.duration_s > 0]
    return math.fsum(seconds) / len(seconds) if seconds else None
