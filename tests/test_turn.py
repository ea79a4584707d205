"""Turn: histories in several forms are read, and invalid ones are refused with the place of the error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows import ConfigurationError, Options, Source
from pollux_flows.turn import Attached, Turn, in_order, read_turns
from tests.documents import check_json_round_trip, expect_error

CALL: dict[str, Any] = {"id": "c1", "name": "f", "arguments": '{"a": 1}'}
OTHER: dict[str, Any] = {**CALL, "id": "c2", "name": "g"}
USER: dict[str, Any] = {"role": "user", "content": "hi"}
PAGE = Attached(source=Source.from_uri("https://h/a.pdf"), sha256="1")


def make_result(name: Any = "c1", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": "1", **more}


def make_calls(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [*calls]}


# --- Reading ------------------------------------------------------------------------------------------------


def test_turns_come_back_unchanged_after_they_are_read() -> None:
    """Only empty fields may differ."""
    items = [
        USER,
        make_calls(CALL),
        make_result(),
        {"role": "assistant", "content": "ho", "provider_state": {"x": [1]}},
    ]
    turns = read_turns(items)
    assert [turn.as_item() for turn in turns] == [USER, {**make_calls(CALL), "content": ""}, make_result(), items[3]]
    for turn in turns:
        check_json_round_trip(turn)


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c1", "name": "f", "arguments": {"a": 1}},
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": {"a": 1}}},
    ],
)
def test_a_tool_call_may_be_written_in_several_forms(call: dict[str, Any]) -> None:
    """Each form has the same id, name and arguments."""
    (turn,) = read_turns([make_calls(call)])
    (made,) = turn.tool_calls
    assert (made.id, made.name, json.loads(made.arguments)) == ("c1", "f", {"a": 1})


@pytest.mark.parametrize("arguments", [None, "", {}, "{}"])
def test_missing_arguments_of_a_tool_call_become_an_empty_object(arguments: Any) -> None:
    (turn,) = read_turns([make_calls({**CALL, "arguments": arguments})])
    assert turn.tool_calls[0].arguments == "{}"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another role": ({"role": "system", "content": "Be kind."}, "system_instruction"),
    "a developer": ({"role": "developer", "content": "x"}, "roles are user, assistant and tool"),
    "no role": ({"content": "x"}, "has no role"),
    "content in parts": ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "history[1].content is of type"),
    "content of numbers": ({"role": "assistant", "content": 1}, "not text"),
    "a result that is an object": (make_result(content={"a": 1}), "json.dumps"),
    "a blank text of a user": ({"role": "user", "content": " "}, "is empty"),
    "a user without content": ({"role": "user", "content": None}, "is empty"),
    "an unknown field": ({**USER, "name": "Ada"}, "'name'"),
    "calls of a user": ({**USER, "tool_calls": [CALL]}, "'tool_calls'"),
    "calls that are no list": ({"role": "assistant", "tool_calls": CALL}, "tool_calls is of type dict"),
    "a call without a name": (make_calls({"id": "c1"}), "tool_calls[0] is not a tool call"),
    "a call without an id": (make_calls({"name": "f"}), "tool_calls[0] is not a tool call"),
    "a nested call without a name": (make_calls({"id": "c1", "function": {"arguments": "{}"}}), "not a tool call"),
    "a call with more in it": (make_calls({**CALL, "extra": 1}), "not a tool call"),
    "arguments in a list": (make_calls({**CALL, "arguments": [1]}), "arguments of type list"),
    "two calls of one id": (make_calls(CALL, CALL), "'c1' twice"),
    "a result of nothing": (make_result(None), "no tool_call_id"),
    "invalid sources": ({**USER, "sources": ["a"]}, "history[1]: "),
    "an invalid state": ({"role": "assistant", "content": "a", "provider_state": []}, "history[1]: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_invalid_turn_is_refused_with_its_index(name: str) -> None:
    """The error is raised when the options are made, and says what to write instead."""
    item, words = WRONG[name]
    with expect_error(ConfigurationError, words):
        Options(history=[USER, item])


# --- Order --------------------------------------------------------------------------------------------------


def test_tool_results_are_sorted_by_their_calls() -> None:
    """Each result gets the name of its tool."""
    turns, waiting = in_order(read_turns([USER, make_calls(CALL, OTHER), make_result("c2"), make_result("c1"), USER]))
    assert [(turn.tool_call_id, turn.name) for turn in turns[2:4]] == [("c1", "f"), ("c2", "g")]
    assert waiting == []


def test_tool_calls_of_the_last_turn_wait_for_their_results() -> None:
    assert [call.id for call in in_order(read_turns([USER, make_calls(CALL)]))[1]] == ["c1"]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (
            [USER, make_result()],
            "history[1] is the result of the tool call 'c1', which the turn before does not contain",
        ),
        ([USER, make_calls(CALL), make_result("c9")], "'c9', which the turn before does not contain. Calls that wait"),
        ([USER, make_calls(CALL), make_result(), make_result()], "history[3] is a second result of the tool call 'c1'"),
        ([USER, make_calls(CALL), USER], "history[2] continues before there is a result of the tool call 'c1'"),
        ([USER, make_calls(CALL), {"role": "assistant", "content": "x"}], "history[2] continues"),
        ([USER, make_calls(CALL, OTHER), make_result()], "history ends before there is a result of the tool call 'c2'"),
        (
            [USER, make_calls(CALL), make_result(), USER, make_result()],
            "history[4] is the result of the tool call 'c1'",
        ),
    ],
)
def test_tool_results_that_do_not_match_the_calls_are_refused(items: list[dict[str, Any]], words: str) -> None:
    """Each tool call needs exactly one result, in the turns that follow it."""
    with expect_error(ConfigurationError, words):
        in_order(read_turns(items))


# --- Sources and prompt of a turn ---------------------------------------------------------------------------


@given(st.lists(st.text() | st.just(PAGE)), st.none() | st.text(min_size=1))
def test_a_turn_can_be_divided_into_its_sources_and_its_prompt(about: list[str | Attached], prompt: str | None) -> None:
    """The pieces are equal to those from which the turn was made."""
    turn = Turn.of_user(prompt, about)
    assert turn.pieces() == (about, prompt)
    if not turn.is_empty:
        assert read_turns([turn.as_item()]) == [turn]


def test_the_pieces_of_a_shortened_turn_have_all_of_its_text() -> None:
    """A caller may shorten the content of a turn in a stored history."""
    turn = Turn.of_user("Why?", ["A long text.", PAGE]).model_copy(update={"content": "A lo\n\nWhy?"})
    about, prompt = turn.pieces()
    assert "".join([*(piece for piece in about if isinstance(piece, str)), prompt or ""]) == "A lo\n\nWhy?"
