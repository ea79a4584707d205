"""ResultEnvelope, its failures, and cache handles."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from pydantic import BaseModel

from pollux_flows import CacheHandle, ConfigurationError, ResultEnvelope
from pollux_flows.result import Answer, CallFailure, Outcome, ToolCall
from tests.documents import check_json_round_trip, envelopes, expect_error, failures, handles


class Invoice(BaseModel):
    total: int


def make_envelope(**changes: Any) -> ResultEnvelope:
    return ResultEnvelope(**{"status": "ok", "answers": ["Blue.", "Red."], "confidence": 0.9, **changes})


# --- Reading an envelope ------------------------------------------------------------------------------------


def test_an_envelope_reads_as_an_object_and_as_a_mapping() -> None:
    """The seeds write `result["status"]`; new code may write `result.status`."""
    envelope = make_envelope(metrics={"cache_used": True})
    assert envelope["status"] == envelope.status == "ok"
    assert envelope["answers"] == envelope.answers
    assert envelope.get("metrics", {}).get("cache_used") is True


def test_the_key_of_an_unset_field_is_absent() -> None:
    """With the mapping of the seeds, `"reasoning" in result` asks whether there is any reasoning."""
    envelope = make_envelope()
    assert "reasoning" not in envelope
    assert envelope.get("reasoning") is None
    assert envelope.get("reasoning", []) == []
    with pytest.raises(KeyError, match="reasoning"):
        envelope["reasoning"]
    assert "reasoning" in make_envelope(reasoning=["Because.", None])


@pytest.mark.parametrize("key", ["nonsense", "text", "model_config", "model_dump", "__class__", "", 1, None])
def test_only_fields_are_keys_of_an_envelope(key: Any) -> None:
    """Methods and properties are not part of the mapping."""
    assert key not in make_envelope()
    assert make_envelope().get(key, "none") == "none"
    with pytest.raises(KeyError):
        make_envelope()[key]


def test_a_conversation_has_the_key_conversation_state_with_an_underscore() -> None:
    """The mapping, a dict and the JSON have the same key, and none of them has it without a conversation."""
    state = {"version": 1, "history": []}
    envelope = make_envelope(conversation_state=state)
    assert (
        envelope["_conversation_state"] == envelope.get("_conversation_state") == envelope.conversation_state == state
    )
    assert "conversation_state" not in envelope
    for data in (dict(envelope), envelope.model_dump(mode="json")):
        assert data["_conversation_state"] == state
        assert ResultEnvelope.model_validate(data) == envelope
    without = make_envelope()
    assert "_conversation_state" not in {*without.keys(), *without.model_dump(mode="json")}
    assert envelope.model_copy(update={"status": "error"})["_conversation_state"] == state


def test_an_envelope_can_be_converted_to_a_dict() -> None:
    """The dict has only the keys of set fields."""
    assert set(dict(make_envelope())) == {
        "status", "answers", "confidence", "extraction_method", "usage", "metrics", "diagnostics",
    }  # fmt: skip
    assert {**make_envelope()}["status"] == "ok"


def test_the_text_of_an_envelope_is_its_joined_answers() -> None:
    assert make_envelope(answers=["Blue."]).text == "Blue."
    assert make_envelope().text == "Blue.\n\nRed."
    assert make_envelope(answers=[]).text == ""


# --- Documents ----------------------------------------------------------------------------------------------


@given(envelopes)
def test_an_envelope_comes_back_equal_from_json(envelope: ResultEnvelope) -> None:
    """Prefect persists results as JSON."""
    check_json_round_trip(envelope)


@given(failures)
def test_a_failure_comes_back_equal_from_json(failure: CallFailure) -> None:
    """Failures are part of envelopes and outcomes."""
    check_json_round_trip(failure)


@given(handles)
def test_a_cache_handle_comes_back_equal_from_json_and_a_pickle(handle: CacheHandle) -> None:
    check_json_round_trip(handle)
    assert pickle.loads(pickle.dumps(handle)) == handle  # noqa: S301 (our own)


@given(envelopes)
def test_an_envelope_comes_back_equal_from_a_pickle(envelope: ResultEnvelope) -> None:
    """Processes exchange envelopes as pickles."""
    assert pickle.loads(pickle.dumps(envelope)) == envelope  # noqa: S301 (our own)


def test_a_structured_answer_is_a_model_in_memory_and_data_in_json() -> None:
    """`structured` has instances of the caller's model; its JSON has their fields."""
    typed = make_envelope(structured=[Invoice(total=3), None])
    assert typed["structured"][0].total == 3
    assert typed.model_dump(mode="json")["structured"] == [{"total": 3}, None]
    check_json_round_trip(typed)


def test_documents_with_fields_of_a_newer_version_can_be_read() -> None:
    """Unknown fields of envelopes and handles are ignored."""
    old = make_envelope()
    assert ResultEnvelope.model_validate({**old.model_dump(), "cost_usd": 0.1}) == old
    handle = CacheHandle(name="c", model="m", provider="gemini", expires_at=1.0)
    assert CacheHandle.model_validate({**handle.model_dump(), "region": "eu"}) == handle


@pytest.mark.parametrize(
    "document",
    [make_envelope(), CacheHandle(name="c", model="m", provider="gemini", expires_at=1.0)],
    ids=["envelope", "handle"],
)
def test_envelopes_and_handles_are_immutable(document: Any) -> None:
    before = hash(document)
    with expect_error(ConfigurationError, "cannot be changed"):
        document.status = "error"
    assert hash(document) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", None),
        ("name", b"caches/1"),
        ("model", ""),
        ("provider", "azure"),
        ("expires_at", "tomorrow"),
        ("expires_at", "1"),
        ("expires_at", True),
        ("expires_at", float("nan")),
        ("expires_at", float("inf")),
        ("expires_at", None),
        ("expires_at", 10**400),
    ],
)
def test_an_invalid_field_of_a_cache_handle_is_named(field: str, value: Any) -> None:
    with expect_error(ConfigurationError, "CacheHandle is not usable", field):
        CacheHandle(**{"name": "c", "model": "m", "provider": "gemini", "expires_at": 1.0, field: value})


@pytest.mark.parametrize("value", ["fine", None, 1])
def test_an_unknown_status_is_refused(value: Any) -> None:
    """The error lists the three statuses."""
    with expect_error(ConfigurationError, "status", "'ok', 'partial' or 'error'"):
        make_envelope(status=value)


# --- Invalid text of providers ------------------------------------------------------------------------------


def test_lone_surrogates_in_an_answer_are_replaced() -> None:
    """JSON can contain lone surrogates, which UTF-8 cannot encode. The answer was paid for, so it is not refused."""
    answer = Answer(
        text="so \ud83d\ude00 far \ud800",
        finish_reason="stop",
        reasoning="\udfff",
        tool_calls=[ToolCall(id="1", name="f", arguments='{"a": "\ud800"}')],
        artifacts={"\ud800": ["\ud800", {"deep": "\ud800"}]},
    )
    assert answer.text == "so \N{GRINNING FACE} far \N{REPLACEMENT CHARACTER}"
    assert answer.artifacts == {"\ufffd": ["\ufffd", {"deep": "\ufffd"}]}
    check_json_round_trip(answer)
    check_json_round_trip(Outcome(index=0, identity="x", answer=answer, attempts=1))
    check_json_round_trip(make_envelope(answers=[answer.text, "\ud800"], diagnostics={"raw": ["\ud800"]}))
    check_json_round_trip(CallFailure(index=0, kind="api_error", message="\ud800"))


def test_artifacts_of_an_answer_that_are_nested_too_deeply_are_cut_off() -> None:
    """The answer was paid for, so it is not refused."""
    endless: dict[str, Any] = {}
    endless["again"] = endless
    check_json_round_trip(Answer(text="fine", finish_reason="stop", artifacts=endless))
