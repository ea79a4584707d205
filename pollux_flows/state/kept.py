"""Kept: how an answer is written down, and how it shows that one is damaged. It is then neither absent nor another."""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from pydantic_core import from_json

from pollux_flows.document import MENDED
from pollux_flows.errors import ConfigurationError
from pollux_flows.plain import canonical
from pollux_flows.result import Outcome
from pollux_flows.state.store import Json, damaged, written

# What is true of one run only.
_NOT_KEPT: Final = {"index", "reused", "unkept", "spilled"}


class Pointer(NamedTuple):
    """Where the latest answer to a call is, and when it was given."""

    at: float
    place: str


def pointer_to(call: str) -> str:
    """The name of the record that says where the latest answer to a call is."""
    return f"answer/{call}"


def kept(place: str, outcome: Outcome, at: float) -> Json:
    """The record of an answer: a text in a record, so that it is made and checked without being parsed."""
    text = canonical(outcome.model_dump(mode="json", exclude=_NOT_KEPT, exclude_defaults=True))
    return {"at": at, "outcome": text, "check": _check_text(place, at, text)}


def answer_in(place: str, record: Json, where: str, reused: str | None = None) -> Outcome:
    """The answer in this record, or a ConfigurationError."""
    match record:
        case {"at": int() | float() as at, "outcome": str() as text, "check": str() as check}:
            if check != _check_text(place, at, text):
                raise damaged(place, where)
            outcome = from_json(text)
        case {"at": int() | float() as at, "outcome": dict() as outcome, "check": str() as check}:  # of 0.1
            if check != _check(place, at, outcome):
                raise damaged(place, where)
        case _:
            raise damaged(place, where)
    try:
        # A half character cannot be written down, so none can be read.
        return Outcome.model_validate({**outcome, "index": 0, "reused": reused}, context=MENDED)
    except ConfigurationError as error:
        problem = error.message
    raise damaged(place, where, problem)


def pointer_in(name: str, record: Json, where: str) -> Pointer:
    """Where this record leads, or a ConfigurationError."""
    match record:
        case {"at": int() | float() as at, "place": str() as place}:
            run, _, call = place.removeprefix("run/").partition("/")
            if place.startswith("run/") and run and pointer_to(call) == name:
                return Pointer(at, place)
    raise damaged(name, where)


def cost_in(record: Json) -> float | None:
    """The cost of the answer in this record, which need not be sound; None where it is unknown."""
    outcome = record.get("outcome")
    if isinstance(outcome, str):
        try:
            outcome = from_json(outcome)
        except ValueError:
            return None
    cost = outcome.get("cost_usd") if isinstance(outcome, dict) else None
    return float(cost) if isinstance(cost, int | float) else None


def _check_text(place: str, at: float, text: str) -> str:
    """Hash all that: of a damaged text, JSON alone would not tell."""
    # Of its name, too: damage may also put one answer in the place of another.
    return hashlib.sha256(f"{place}\n{at!r}\n{text}".encode()).hexdigest()[:16]


def _check(place: str, at: float, outcome: Json) -> str:
    """Hash a record of 0.1, whose outcome is no text yet."""
    return hashlib.sha256(written(place, {"place": place, "at": at, "outcome": outcome})).hexdigest()[:16]
