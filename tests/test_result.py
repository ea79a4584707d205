"""ResultEnvelope and the handles: what comes back, and is kept."""

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


def an_envelope(**changes: Any) -> ResultEnvelope:
    return ResultEnvelope(**{"status": "ok", "answers": ["Blue.", "Red."], "confidence": 0.9, **changes})


# --- Reading it ---------------------------------------------------------------------------------------------


def test_an_envelope_reads_as_an_object_and_as_a_mapping() -> None:
    """The seeds write `result["status"]`; new code may write `result.status`."""
    envelope = an_envelope(metrics={"cache_used": True})
    assert envelope["status"] == envelope.status == "ok"
    assert envelope["answers"] == envelope.answers
    assert envelope.get("metrics", {}).get("cache_used") is True


def test_a_key_that_does_not_apply_is_absent() -> None:
    """As in the mapping of the seeds: `"reasoning" in result` asks whether there is any."""
    envelope = an_envelope()
    assert "reasoning" not in envelope
    assert envelope.get("reasoning") is None
    assert envelope.get("reasoning", []) == []
    with pytest.raises(KeyError, match="reasoning"):
        envelope["reasoning"]
    assert "reasoning" in an_envelope(reasoning=["Because.", None])


@pytest.mark.parametrize("key", ["nonsense", "text", "model_config", "model_dump", "__class__", "", 1, None])
def test_only_fields_are_keys(key: Any) -> None:
    """Methods and properties are not part of the mapping."""
    assert key not in an_envelope()
    assert an_envelope().get(key, "none") == "none"
    with pytest.raises(KeyError):
        an_envelope()[key]


def test_a_conversation_is_under_a_key_of_its_own() -> None:
    """The same in the mapping, in a dict and in JSON; where there is none, none of them has it."""
    state = {"version": 1, "history": []}
    envelope = an_envelope(conversation_state=state)
    assert (
        envelope["_conversation_state"] == envelope.get("_conversation_state") == envelope.conversation_state == state
    )
    assert "conversation_state" not in envelope
    for told in (dict(envelope), envelope.model_dump(mode="json")):
        assert told["_conversation_state"] == state
        assert ResultEnvelope.model_validate(told) == envelope
    without = an_envelope()
    assert "_conversation_state" not in {*without.keys(), *without.model_dump(mode="json")}
    assert envelope.model_copy(update={"status": "error"})["_conversation_state"] == state


def test_an_envelope_becomes_a_dict() -> None:
    """With the keys that apply, and no others."""
    assert set(dict(an_envelope())) == {
        "status", "answers", "confidence", "extraction_method", "usage", "metrics", "diagnostics",
    }  # fmt: skip
    assert {**an_envelope()}["status"] == "ok"


def test_the_text_is_the_answer() -> None:
    """Of several, all of them; of none, nothing."""
    assert an_envelope(answers=["Blue."]).text == "Blue."
    assert an_envelope().text == "Blue.\n\nRed."
    assert an_envelope(answers=[]).text == ""


# --- Documents ----------------------------------------------------------------------------------------------


@given(envelopes)
def test_an_envelope_goes_through_json(envelope: ResultEnvelope) -> None:
    """A persisted result is the result."""
    check_json_round_trip(envelope)


@given(failures)
def test_a_failure_goes_through_json(failure: CallFailure) -> None:
    """It is kept inside envelopes and outcomes."""
    check_json_round_trip(failure)


@given(handles)
def test_a_cache_handle_goes_through_json(handle: CacheHandle) -> None:
    """Whoever finds it later can use it."""
    check_json_round_trip(handle)
    assert pickle.loads(pickle.dumps(handle)) == handle  # noqa: S301 (our own)


@given(envelopes)
def test_an_envelope_goes_through_a_pickle(envelope: ResultEnvelope) -> None:
    """As from one process to another."""
    assert pickle.loads(pickle.dumps(envelope)) == envelope  # noqa: S301 (our own)


def test_a_typed_answer_stays_typed_and_goes_as_data() -> None:
    """`structured` holds the caller's own models; its JSON holds what they say."""
    typed = an_envelope(structured=[Invoice(total=3), None])
    assert typed["structured"][0].total == 3
    assert typed.model_dump(mode="json")["structured"] == [{"total": 3}, None]
    check_json_round_trip(typed)


def test_what_a_newer_version_wrote_can_be_read() -> None:
    """Envelopes and handles outlive the version that made them."""
    old = an_envelope()
    assert ResultEnvelope.model_validate({**old.model_dump(), "cost_usd": 0.1}) == old
    handle = CacheHandle(name="c", model="m", provider="gemini", expires_at=1.0)
    assert CacheHandle.model_validate({**handle.model_dump(), "region": "eu"}) == handle


@pytest.mark.parametrize(
    "document",
    [an_envelope(), CacheHandle(name="c", model="m", provider="gemini", expires_at=1.0)],
    ids=["envelope", "handle"],
)
def test_what_came_back_never_changes(document: Any) -> None:
    """What was answered was answered."""
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
def test_a_handle_made_by_hand_is_checked(field: str, value: Any) -> None:
    """The error names the field."""
    with expect_error(ConfigurationError, "CacheHandle is not usable", field):
        CacheHandle(**{"name": "c", "model": "m", "provider": "gemini", "expires_at": 1.0, field: value})


@pytest.mark.parametrize("value", ["fine", None, 1])
def test_an_unknown_status_is_not_passed_on(value: Any) -> None:
    """There are three."""
    with expect_error(ConfigurationError, "status", "'ok', 'partial' or 'error'"):
        an_envelope(status=value)


# --- What providers say is kept, whatever it is -------------------------------------------------------------


def test_half_a_character_does_not_cost_a_paid_answer() -> None:
    """JSON can spell what UTF-8 cannot write. Where a provider does, the rest of the answer is kept."""
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
    check_json_round_trip(an_envelope(answers=[answer.text, "\ud800"], diagnostics={"raw": ["\ud800"]}))
    check_json_round_trip(CallFailure(index=0, kind="api_error", message="\ud800"))


def test_what_is_nested_without_end_does_not_cost_a_paid_answer() -> None:
    """Of what no reader of JSON would follow to its end, the beginning is kept."""
    endless: dict[str, Any] = {}
    endless["again"] = endless
    check_json_round_trip(Answer(text="fine", finish_reason="stop", artifacts=endless))
