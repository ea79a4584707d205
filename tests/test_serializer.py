"""The serializer of results: stored text can only become plain data and documents of this package."""

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


def store_and_load(value: Any) -> Any:
    """Return the value as it is read back after storage."""
    return DOCUMENTS.loads(DOCUMENTS.dumps(value))


@given(envelopes)
def test_an_envelope_comes_back_equal_from_storage(envelope: ResultEnvelope) -> None:
    """Its class is ResultEnvelope, not dict."""
    assert store_and_load(envelope) == envelope
    assert type(store_and_load(envelope)) is ResultEnvelope


def test_documents_in_lists_and_dicts_come_back_equal() -> None:
    """The flow broadcast returns a list of documents."""
    answer = Answer(text="fine", finish_reason="stop")
    outcome = Outcome(index=0, identity="x", answer=answer, attempts=1)
    assert store_and_load([outcome, None, {"inner": answer}]) == [outcome, None, {"inner": answer}]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: " ".join(map(str, data.values())))
def test_a_hostile_structured_answer_stays_data(data: dict[str, Any]) -> None:
    """A prompt injection may control a structured answer, so names of classes in it are not looked up."""
    envelope = ResultEnvelope(
        status="ok",
        answers=[json.dumps(data)],
        confidence=0.9,
        structured=[data],
        diagnostics={"raw_responses": [data]},
    )
    back = store_and_load(envelope)
    assert back == envelope
    assert back.structured == [data]


@pytest.mark.parametrize("data", HOSTILE[:4], ids=lambda data: " ".join(map(str, data.values())))
def test_prefects_markers_of_classes_are_ignored(data: dict[str, Any]) -> None:
    """They are ignored also at the top level of a result."""
    assert store_and_load({"result": data}) == {"result": data}


def test_stored_text_names_a_document_and_no_class() -> None:
    """A document is stored with its stable name and a version."""
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
def test_an_unknown_document_name_is_refused(name: str) -> None:
    """Such a name comes from another version or an attacker."""
    for version in ({}, {"version": 1}):
        with pytest.raises(ValueError, match="is not a document that this version of pollux_flows"):
            decode({"pollux_document": name, **version, "json": "{}"})


@pytest.mark.parametrize("version", [2, "1", None, [1]])
def test_a_document_of_a_newer_format_is_refused(version: Any) -> None:
    """Reading it as the current format could lose data."""
    with pytest.raises(ValueError, match="stored by a newer version of pollux_flows"):
        decode({"pollux_document": "answer", "version": version, "json": "{}"})


def test_data_with_the_key_of_a_document_name_stays_data() -> None:
    """A dict of the caller may have a key of this name."""
    data = {"pollux_document": "invoice.pdf", "pages": 3}
    assert store_and_load(data) == data


def test_errors_of_this_package_come_back_equal() -> None:
    """Class and text are preserved."""
    back = store_and_load(RateLimitError("Too many.", hint="Wait."))
    assert type(back) is RateLimitError
    assert str(back) == "Too many. Wait."
    assert type(store_and_load(ConfigurationError("No."))) is ConfigurationError


def test_other_errors_come_back_as_a_runtime_error_with_their_text() -> None:
    """Their classes are not looked up."""
    back = store_and_load(KeyboardInterrupt("stop"))
    assert type(back) is RuntimeError
    assert str(back) == "KeyboardInterrupt: stop"


@pytest.mark.parametrize("value", [print, b"raw", {1, 2}, object()])
def test_a_value_that_is_neither_data_nor_a_document_is_not_stored(value: Any) -> None:
    """The error names the type of the value."""
    with pytest.raises(TypeError, match="cannot be part of a stored result"):
        encode(value)
    with pytest.raises(TypeError):
        DOCUMENTS.dumps(value)


def test_a_document_of_a_foreign_class_is_not_stored() -> None:
    """Such a document could not be read back, because only names of this package are known."""

    class Mine(Answer):
        pass

    with pytest.raises(TypeError, match="A Mine cannot be part of a stored result"):
        encode(Mine(text="x", finish_reason="stop"))
