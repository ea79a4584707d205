"""Kept: how an answer is written down, and how it shows that one is damaged. It is then neither absent nor another."""

from __future__ import annotations

import hashlib
from typing import Final, TypeVar

from pydantic import Field

from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError
from pollux_flows.result import Outcome
from pollux_flows.state.store import Json, damaged, written

R = TypeVar("R", bound=Record)

# What is true of one run only.
_NOT_KEPT: Final = {"index", "reused", "unkept"}


class Kept(Record):
    """An answer that was paid for, and when."""

    at: float = Field(description="When it was given, as a Unix time.")
    outcome: Json
    check: str = Field(description="A hash of all that. Of a damaged text, JSON alone would not tell.")


class Pointer(Record):
    """Where the latest answer to a call is, and when it was given."""

    at: float
    place: str


def pointer_to(call: str) -> str:
    """The name of the record that says where the latest answer to a call is."""
    return f"answer/{call}"


def kept(place: str, outcome: Outcome, at: float) -> Json:
    """The record of an answer."""
    said = outcome.model_dump(mode="json", exclude=_NOT_KEPT, exclude_defaults=True)
    return {"at": at, "outcome": said, "check": _check(place, at, said)}


def answer_in(place: str, record: Json, where: str, reused: str | None = None) -> Outcome:
    """The answer in this record, or a ConfigurationError."""
    found = _valid(Kept, record, place, where)
    if found.check != _check(place, found.at, found.outcome):
        raise damaged(place, where)
    return _valid(Outcome, {**found.outcome, "index": 0, "reused": reused}, place, where)


def pointer_in(name: str, record: Json, where: str) -> Pointer:
    """Where this record leads, or a ConfigurationError."""
    pointer = _valid(Pointer, record, name, where)
    run, _, call = pointer.place.removeprefix("run/").partition("/")
    if not pointer.place.startswith("run/") or not run or pointer_to(call) != name:
        raise damaged(name, where)
    return pointer


def _check(place: str, at: float, outcome: Json) -> str:
    # Of its name, too: damage may also put one answer in the place of another.
    return hashlib.sha256(written(place, {"place": place, "at": at, "outcome": outcome})).hexdigest()[:16]


def _valid(kind: type[R], record: Json, key: str, where: str) -> R:
    try:
        return kind.model_validate(record)
    except ConfigurationError as error:
        problem = error.message
    raise damaged(key, where, problem)
