"""Answer records: how an answer is stored, with a checksum, so that a damaged record is never read as an answer."""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from pydantic_core import from_json

from pollux_flows.document import CLEAN_INPUT
from pollux_flows.errors import ConfigurationError
from pollux_flows.plain import canonical
from pollux_flows.result import Outcome
from pollux_flows.state.store import Json, damaged_record_error, encode_record

# Facts about one run only.
_NOT_STORED: Final = {"index", "reused", "save_error", "spilled"}


class Pointer(NamedTuple):
    """The key of the latest answer to a call, and the time at which it was saved."""

    at: float
    place: str


def pointer_key(call: str) -> str:
    """Return the key of the pointer to the latest answer to a call."""
    return f"answer/{call}"


def make_answer_record(key: str, outcome: Outcome, at: float) -> Json:
    """Return the record of an answer. The outcome is stored as text, which can be hashed without being parsed."""
    text = canonical(outcome.model_dump(mode="json", exclude=_NOT_STORED, exclude_defaults=True))
    return {"at": at, "outcome": text, "check": _checksum(key, at, text)}


def read_answer(key: str, record: Json, where: str, reused: str | None = None) -> Outcome:
    """Return the answer in this record, or raise a ConfigurationError if the record is damaged."""
    match record:
        case {"at": int() | float() as at, "outcome": str() as text, "check": str() as check}:
            if check != _checksum(key, at, text):
                raise damaged_record_error(key, where)
            outcome = from_json(text)
        case {"at": int() | float() as at, "outcome": dict() as outcome, "check": str() as check}:  # version 0.1
            if check != _checksum_0_1(key, at, outcome):
                raise damaged_record_error(key, where)
        case _:
            raise damaged_record_error(key, where)
    try:
        # Lone surrogates cannot be stored, so no check for them is needed.
        return Outcome.model_validate({**outcome, "index": 0, "reused": reused}, context=CLEAN_INPUT)
    except ConfigurationError as error:
        problem = error.message
    raise damaged_record_error(key, where, problem)


def read_pointer(key: str, record: Json, where: str) -> Pointer:
    """Return the pointer in this record, or raise a ConfigurationError if the record is damaged."""
    match record:
        case {"at": int() | float() as at, "place": str() as place}:
            run, _, call = place.removeprefix("run/").partition("/")
            if place.startswith("run/") and run and pointer_key(call) == key:
                return Pointer(at, place)
    raise damaged_record_error(key, where)


def read_cost(record: Json) -> float | None:
    """Return the cost of the answer in this record, which may be damaged; None if the cost is unknown."""
    outcome = record.get("outcome")
    if isinstance(outcome, str):
        try:
            outcome = from_json(outcome)
        except ValueError:
            return None
    cost = outcome.get("cost_usd") if isinstance(outcome, dict) else None
    return float(cost) if isinstance(cost, int | float) else None


def _checksum(key: str, at: float, text: str) -> str:
    # The key is part of the hash: damage may also exchange two answers.
    return hashlib.sha256(f"{key}\n{at!r}\n{text}".encode()).hexdigest()[:16]


def _checksum_0_1(key: str, at: float, outcome: Json) -> str:
    """Return the checksum that version 0.1 wrote; it stored the outcome as an object, not as text."""
    return hashlib.sha256(encode_record(key, {"place": key, "at": at, "outcome": outcome})).hexdigest()[:16]
