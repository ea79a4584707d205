"""How results are stored: nothing that is read back can become anything but a document of this package."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from pollux_flows import ConfigurationError, RateLimitError, ResultEnvelope
from pollux_flows.result import Answer, Outcome
from pollux_flows.serializer import DOCUMENTS, decode, encode
from tests.documents import envelopes

HOSTILE: list[dict[str, Any]] = [
    {"__class__": "os.system", "data": "echo owned"},
    {"__class__": "subprocess.Popen", "data": ["true"]},
    {"__exc_type__": "builtins.SystemExit", "message": "bye"},
    {"__exc_type__": "subprocess.CalledProcessError", "message": "x"},
    {"pollux_document": "pollux_flows.config:Config", "json": "{}"},
    {"pollux_document": "os:system", "json": "echo owned"},
    {"pollux_document": "os:system", "version": 1, "json": "echo owned"},
    {"pollux_document": "config", "version": 1, "json": "{}"},
    {"pollux_error": "SystemExit", "message": "bye"},
]


def through_storage(value: Any) -> Any:
    return DOCUMENTS.loads(DOCUMENTS.dumps(value))


@given(envelopes)
def test_an_envelope_comes_back_as_itself(envelope: ResultEnvelope) -> None:
    """Not as a dict that looks like it."""
    assert through_storage(envelope) == envelope
    assert type(through_storage(envelope)) is ResultEnvelope


def test_documents_come_back_from_within_lists_and_dicts() -> None:
    """As broadcast returns them."""
    answer = Answer(text="fine", finish_reason="stop")
    outcome = Outcome(index=0, identity="x", answer=answer, attempts=1)
    assert through_storage([outcome, None, {"inner": answer}]) == [outcome, None, {"inner": answer}]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: " ".join(map(str, data.values())))
def test_what_a_model_answered_stays_data(data: dict[str, Any]) -> None:
    """A structured answer is written by whoever talked the model into it. It names classes in vain."""
    envelope = ResultEnvelope(
        status="ok",
        answers=[json.dumps(data)],
        confidence=0.9,
        structured=[data],
        diagnostics={"raw_responses": [data]},
    )
    back = through_storage(envelope)
    assert back == envelope
    assert back.structured == [data]


@pytest.mark.parametrize("data", HOSTILE[:4], ids=lambda data: " ".join(map(str, data.values())))
def test_prefects_own_marks_mean_nothing_here(data: dict[str, Any]) -> None:
    """Not even where they stand in the open."""
    assert through_storage({"result": data}) == {"result": data}


def test_stored_text_holds_no_class_to_load() -> None:
    """What is on disk names documents of ours, and nothing else."""
    stored = json.loads(DOCUMENTS.dumps(Answer(text="fine", finish_reason="stop")))
    assert set(stored) == {"pollux_document", "version", "json"}
    assert (stored["pollux_document"], stored["version"]) == ("answer", 1)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "pollux_flows.nowhere:Thing",
        "pollux_flows.result:Nothing",
        "pollux_flows.result:Literal",
        "pollux_flows.result:Record",
        "pollux_flows.serializer:KINDS",
        "Answer",
        "pollux_flows.document:BaseModel",
        "pollux_flows.options:importlib",
        "pollux_flowsx.result:Answer",
        "pollux_flows",
        "",
    ],
)
def test_a_name_that_is_no_document_of_ours_is_refused(name: str) -> None:
    """Somebody wrote there who should not, or another version did."""
    for version in ({}, {"version": 1}):
        with pytest.raises(ValueError, match="is not a document that this version of pollux_flows"):
            decode({"pollux_document": name, **version, "json": "{}"})


@pytest.mark.parametrize("version", [2, "1", None, [1]])
def test_a_document_of_a_newer_format_is_refused(version: Any) -> None:
    """Reading it as if it were of this one could lose what it says."""
    with pytest.raises(ValueError, match="stored by a newer version of pollux_flows"):
        decode({"pollux_document": "answer", "version": version, "json": "{}"})


def test_data_that_only_resembles_a_document_is_data() -> None:
    """A caller's own dict may have a key of that name."""
    mine = {"pollux_document": "invoice.pdf", "pages": 3}
    assert through_storage(mine) == mine


def test_our_errors_come_back_as_themselves() -> None:
    """With what they said."""
    back = through_storage(RateLimitError("Too many.", hint="Wait."))
    assert type(back) is RateLimitError
    assert str(back) == "Too many. Wait."
    assert type(through_storage(ConfigurationError("No."))) is ConfigurationError


def test_other_errors_come_back_as_what_they_said() -> None:
    """Their classes are not looked for."""
    back = through_storage(KeyboardInterrupt("stop"))
    assert type(back) is RuntimeError
    assert str(back) == "KeyboardInterrupt: stop"


@pytest.mark.parametrize("value", [print, b"raw", {1, 2}, object()])
def test_what_is_no_document_is_not_stored(value: Any) -> None:
    """A result is plain data, or the run says what in it is not."""
    with pytest.raises(TypeError, match="cannot be part of a stored result"):
        encode(value)
    with pytest.raises(TypeError):
        DOCUMENTS.dumps(value)


def test_a_document_of_somebody_else_is_not_stored() -> None:
    """It could not be read back: only names of ours are."""

    class Mine(Answer):
        pass

    with pytest.raises(TypeError, match="A Mine cannot be part of a stored result"):
        encode(Mine(text="x", finish_reason="stop"))
