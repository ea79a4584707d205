"""Turn: a history is read as it was meant, or refused where it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows import ConfigurationError, Options, Source
from pollux_flows.turn import Attached, Turn, in_order, read_turns
from tests.documents import goes_through_json, refused

CALL: dict[str, Any] = {"id": "c1", "name": "f", "arguments": '{"a": 1}'}
OTHER: dict[str, Any] = {**CALL, "id": "c2", "name": "g"}
USER: dict[str, Any] = {"role": "user", "content": "hi"}
PAGE = Attached(source=Source.from_uri("https://h/a.pdf"), sha256="1")


def result(name: Any = "c1", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": "1", **more}


def calling(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [*calls]}


# --- Reading ------------------------------------------------------------------------------------------------


def test_turns_are_read_as_they_are_written() -> None:
    """And written again as they were, but for what is empty."""
    items = [USER, calling(CALL), result(), {"role": "assistant", "content": "ho", "provider_state": {"x": [1]}}]
    turns = read_turns(items)
    assert [turn.as_item() for turn in turns] == [USER, {**calling(CALL), "content": ""}, result(), items[3]]
    for turn in turns:
        goes_through_json(turn)


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c1", "name": "f", "arguments": {"a": 1}},
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": {"a": 1}}},
    ],
)
def test_a_call_may_be_written_in_several_ways(call: dict[str, Any]) -> None:
    """Its name and its arguments are the same in all of them."""
    (turn,) = read_turns([calling(call)])
    (made,) = turn.tool_calls
    assert (made.id, made.name, json.loads(made.arguments)) == ("c1", "f", {"a": 1})


@pytest.mark.parametrize("arguments", [None, "", {}, "{}"])
def test_a_call_may_have_no_arguments(arguments: Any) -> None:
    """They are an empty object then."""
    (turn,) = read_turns([calling({**CALL, "arguments": arguments})])
    assert turn.tool_calls[0].arguments == "{}"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another role": ({"role": "system", "content": "Be kind."}, "system_instruction"),
    "a developer": ({"role": "developer", "content": "x"}, "roles are user, assistant and tool"),
    "no role": ({"content": "x"}, "has no role"),
    "content in parts": ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "history[1].content is of type"),
    "content of numbers": ({"role": "assistant", "content": 1}, "not text"),
    "a result that is an object": (result(content={"a": 1}), "json.dumps"),
    "a user who says nothing": ({"role": "user", "content": " "}, "is empty"),
    "a user without content": ({"role": "user", "content": None}, "is empty"),
    "a field that nobody sends": ({**USER, "name": "Ada"}, "'name'"),
    "calls of a user": ({**USER, "tool_calls": [CALL]}, "'tool_calls'"),
    "calls that are no list": ({"role": "assistant", "tool_calls": CALL}, "tool_calls is of type dict"),
    "a call without a name": (calling({"id": "c1"}), "tool_calls[0] is not a tool call"),
    "a call without an id": (calling({"name": "f"}), "tool_calls[0] is not a tool call"),
    "a nested call without a name": (calling({"id": "c1", "function": {"arguments": "{}"}}), "not a tool call"),
    "a call with more in it": (calling({**CALL, "extra": 1}), "not a tool call"),
    "arguments in a list": (calling({**CALL, "arguments": [1]}), "arguments of type list"),
    "two calls of one id": (calling(CALL, CALL), "'c1' twice"),
    "a result of nothing": (result(None), "no tool_call_id"),
    "sources that are none": ({**USER, "sources": ["a"]}, "history[1]: "),
    "a state that is none": ({"role": "assistant", "content": "a", "provider_state": []}, "history[1]: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_turn_is_refused_where_it_stands(name: str) -> None:
    """When the options are made already: with its place, and what to write instead."""
    item, words = WRONG[name]
    with refused(ConfigurationError, words):
        Options(history=[USER, item])


# --- Order --------------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_their_calls() -> None:
    """With the names of their tools."""
    turns, waiting = in_order(read_turns([USER, calling(CALL, OTHER), result("c2"), result("c1"), USER]))
    assert [(turn.tool_call_id, turn.name) for turn in turns[2:4]] == [("c1", "f"), ("c2", "g")]
    assert waiting == []


def test_calls_without_results_wait() -> None:
    """Those of the last turn."""
    assert [call.id for call in in_order(read_turns([USER, calling(CALL)]))[1]] == ["c1"]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([USER, result()], "history[1] is the result of the tool call 'c1', which the turn before does not contain"),
        ([USER, calling(CALL), result("c9")], "'c9', which the turn before does not contain. Calls that wait"),
        ([USER, calling(CALL), result(), result()], "history[3] is a second result of the tool call 'c1'"),
        ([USER, calling(CALL), USER], "history[2] continues before there is a result of the tool call 'c1'"),
        ([USER, calling(CALL), {"role": "assistant", "content": "x"}], "history[2] continues"),
        ([USER, calling(CALL, OTHER), result()], "history ends before there is a result of the tool call 'c2'"),
        ([USER, calling(CALL), result(), USER, result()], "history[4] is the result of the tool call 'c1'"),
    ],
)  # fmt: skip
def test_calls_and_results_belong_together(items: list[dict[str, Any]], words: str) -> None:
    """Each call has one result, in the turns that follow it."""
    with refused(ConfigurationError, words):
        in_order(read_turns(items))


# --- What a turn was about ----------------------------------------------------------------------------------


@given(st.lists(st.text() | st.just(PAGE)), st.none() | st.text(min_size=1))
def test_what_a_turn_was_about_comes_apart_again(about: list[str | Attached], prompt: str | None) -> None:
    """Piece by piece, whatever is in them."""
    turn = Turn.of_user(prompt, about)
    assert turn.pieces() == (about, prompt)
    if not turn.is_empty:
        assert read_turns([turn.as_item()]) == [turn]


def test_a_turn_that_somebody_shortened_loses_no_more() -> None:
    """All that is in it is still said."""
    turn = Turn.of_user("Why?", ["A long text.", PAGE]).model_copy(update={"content": "A lo\n\nWhy?"})
    about, prompt = turn.pieces()
    assert "".join([*(piece for piece in about if isinstance(piece, str)), prompt or ""]) == "A lo\n\nWhy?"
