"""Identity: the name by which an answer that was paid for is found again."""

from __future__ import annotations

import hashlib
import json
import string
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pollux_flows import Config, Options, Source
from pollux_flows.config import Target
from pollux_flows.document import Document
from pollux_flows.state import identity
from pollux_flows.state.identity import (
    call_identity,
    conversation_identity,
    digest,
    request_identity,
    source_identity,
)
from pollux_flows.turn import Attached, Turn, read_turns
from tests.documents import configs, json_objects, json_values, options, sources

# --- Every field is in the key, or left out for a reason ----------------------------------------------------


def unaccounted(document: type[Document], in_key: set[str], left_out: dict[str, str]) -> set[str]:
    """Fields that are in neither, in both, or no longer there; and reasons that are none."""
    fields = set(document.model_fields)
    blank = {name for name, reason in left_out.items() if not reason.strip()}
    return (fields ^ (in_key | set(left_out))) | (in_key & set(left_out)) | blank


@pytest.mark.parametrize(
    ("document", "in_key", "left_out"),
    [
        (Target, identity.TARGET_IN_KEY, {}),
        (Config, identity.TARGET_IN_KEY, identity.CONFIG_LEFT_OUT),
        (Options, identity.OPTIONS_IN_KEY, identity.OPTIONS_LEFT_OUT),
        (Source, identity.SOURCE_IN_KEY, identity.SOURCE_LEFT_OUT),
        (Turn, identity.TURN_IN_KEY, identity.TURN_LEFT_OUT),
    ],
)
def test_every_field_is_in_the_key_or_left_out_for_a_reason(
    document: type[Document], in_key: set[str], left_out: dict[str, str]
) -> None:
    """A new field that changes answers and is not in the key would hand out another question's answer."""
    assert unaccounted(document, in_key, left_out) == set()


def test_that_test_can_fail() -> None:
    """A new field, a stale name, a field on both sides, a missing reason: each is noticed."""

    class Newer(Options):
        seed: int | None = None

    in_key, left_out = identity.OPTIONS_IN_KEY, identity.OPTIONS_LEFT_OUT
    assert unaccounted(Newer, in_key, left_out) == {"seed"}
    assert unaccounted(Newer, in_key | {"seed"}, left_out) == set()
    assert unaccounted(Newer, in_key, {**left_out, "seed": "a reason"}) == set()
    assert unaccounted(Options, in_key | {"gone"}, left_out) == {"gone"}
    assert unaccounted(Options, in_key | {"implicit_caching"}, left_out) == {"implicit_caching"}
    assert unaccounted(Options, in_key, {**left_out, "implicit_caching": " "}) == {"implicit_caching"}


@pytest.mark.parametrize("field", sorted(identity.SOURCE_IN_KEY))
def test_every_field_of_a_source_in_the_key_is_really_in_it(field: str) -> None:
    """Not only on the list: changing it alone changes the name."""
    page = Source.from_uri("https://h", mime_type="video/mp4")
    changed: dict[str, Source] = {
        "source_type": Source.from_youtube("https://h"),
        "mime_type": page.model_copy(update={"mime_type": "video/webm"}),
        "text": Source.from_text("b"),
        "uri": page.model_copy(update={"uri": "https://other"}),
        "gemini_video": page.with_gemini_video_settings(fps=1),
        "gemini_url_context": page.with_gemini_url_context(),
    }
    before = Source.from_text("a") if field == "text" else page
    assert source_identity(before, "gemini") != source_identity(changed[field], "gemini")


@pytest.mark.parametrize("field", sorted(identity.SOURCE_LEFT_OUT))
def test_what_is_left_out_of_a_source_is_really_left_out(field: str) -> None:
    """Names are for people."""
    page = Source.from_uri("https://h")
    others = {"size_bytes": 7, "trust_mime_type": True}
    other = page.model_copy(update={field: others.get(field, "another")})
    assert other != page
    assert source_identity(page, "gemini") == source_identity(other, "gemini")


def test_a_file_is_what_is_in_it() -> None:
    """Under another name, in another place, the same; with other content, or as another type, another."""
    one, other = (Source(source_type="file", uri=name) for name in ("a.pdf", "s3://bucket/b.pdf"))
    content = ("ab12", "application/pdf")
    assert source_identity(one, "openai", content) == source_identity(other, "openai", content)
    assert source_identity(one, "openai", content) != source_identity(one, "openai", ("cd34", "application/pdf"))
    assert source_identity(one, "openai", content) != source_identity(one, "openai", ("ab12", "text/plain"))


@given(configs, configs)
def test_limits_and_keys_are_left_out(one: Config, other: Config) -> None:
    """Who pays, how often it is tried and how long it may take do not change what is said."""
    same = one.target == other.target
    assert (request_identity(one.target, Options(), []) == request_identity(other.target, Options(), [])) == same


@pytest.mark.parametrize("field", sorted(identity.TURN_IN_KEY))
def test_every_field_of_a_turn_in_the_key_is_really_in_it(field: str) -> None:
    """What was said before is sent again, and changes the answer."""
    turn = Turn(role="assistant", content="a")
    changed: dict[str, Any] = {
        "role": "user",
        "content": "b",
        "tool_calls": [{"id": "c", "name": "f", "arguments": "{}"}],
        "tool_call_id": "c",
        "sources": [1],
        "provider_state": {"signature": "s"},
    }
    other = turn.model_copy(update={field: changed[field]})
    assert conversation_identity([turn], [], None) != conversation_identity([other], [], None)


def test_what_was_attached_to_a_turn_is_what_is_in_it() -> None:
    """Not where it lies; and the id under which the provider keeps it all counts as well."""
    turn, elsewhere = (
        Turn(role="user", content="a", sources=[Attached(source=Source.from_uri(address), sha256="1")])
        for address in ("https://h/a", "https://h/b")
    )
    assert conversation_identity([turn], ["x"], None) == conversation_identity([elsewhere], ["x"], None)
    assert conversation_identity([turn], ["x"], None) != conversation_identity([turn], ["y"], None)
    assert conversation_identity([turn], ["x"], None) != conversation_identity([turn], ["x"], "resp_1")
    assert conversation_identity([], [], None) is None


# --- Digests ------------------------------------------------------------------------------------------------


def shuffled(value: Any) -> Any:
    """The same JSON with every dict the other way round."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(json_values)
def test_the_order_of_keys_does_not_matter(value: Any) -> None:
    """JSON has none."""
    assert digest("x", value) == digest("x", shuffled(value))


@given(json_values, json_values)
def test_different_values_have_different_names(one: Any, other: Any) -> None:
    """True is not 1, 1 is not "1", and [] is not {}."""
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest("x", one) == digest("x", other)) == same


@given(st.text(string.ascii_letters), st.text(string.ascii_letters), json_values)
def test_a_name_belongs_to_its_kind(one: str, other: str, value: Any) -> None:
    """The same value as a source and as a prompt are two things."""
    assume(one != other)
    assert digest(one, value) != digest(other, value)


def test_a_name_is_a_sha_256() -> None:
    """Of the label and canonical JSON; anybody can compute it again."""
    assert (
        digest("call", {"b": [1, "ü"], "a": None})
        == hashlib.sha256('call\n{"a":null,"b":[1,"ü"]}'.encode()).hexdigest()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_json_has_no_name(value: float) -> None:
    """Nothing is named by accident."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest("x", value)


# --- Requests and calls -------------------------------------------------------------------------------------

TARGET = Target(provider="gemini", model="m")


@given(options(), options())
def test_options_that_say_different_things_have_different_names(one: Options, other: Options) -> None:
    """And those that say the same have the same. No history is an empty one."""

    def named(options: Options) -> str:
        turns = read_turns(options.history or [])
        return request_identity(TARGET, options, [], conversation_identity(turns, [], None))

    def said(options: Options) -> Any:
        told = options.model_dump(mode="json", exclude={"implicit_caching", "cache_ttl", "continue_from"})
        told["history"] = told["history"] or None
        if isinstance(handle := told["cache"], dict):  # of a handle counts what is in its cache or, unknown, its name
            told["cache"] = {"contents": handle["contents"]} if handle["contents"] else {"name": handle["name"]}
        told["response_schema"] = options.response_json_schema()
        own = (options.provider_options or {}).get("gemini")
        told["provider_options"] = None if own is None else json.dumps({name: own[name] for name in sorted(own)})
        return json.dumps(told, sort_keys=True)

    assert (named(one) == named(other)) == (said(one) == said(other))


@given(options())
def test_a_name_survives_storage(options: Options) -> None:
    """A worker that reads the options from JSON finds the same answers."""
    back = Options.model_validate_json(options.model_dump_json())
    assert request_identity(TARGET, back, []) == request_identity(TARGET, options, [])


@given(json_objects)
def test_the_order_of_request_fields_in_provider_options_does_not_matter(fields: dict[str, Any]) -> None:
    """They are members of one JSON object that the provider reads by name."""
    one, other = (
        Options(provider_options={"gemini": each}) for each in (fields, {key: fields[key] for key in reversed(fields)})
    )
    assert request_identity(TARGET, one, []) == request_identity(TARGET, other, [])


def _with_schema(*fields: str) -> Options:
    properties = {name: {"type": "string"} for name in fields}
    return Options(provider_options={"gemini": {"response_json_schema": {"properties": properties, "type": "object"}}})


def test_the_order_of_a_schemas_fields_in_provider_options_counts() -> None:
    """Providers answer a schema's fields in their order: a verdict before its reasons is another answer."""
    one, other = _with_schema("reasons", "verdict"), _with_schema("verdict", "reasons")
    assert request_identity(TARGET, one, []) != request_identity(TARGET, other, [])


def test_sorted_provider_options_keep_the_identity_that_they_were_stored_under() -> None:
    """Computed by version 0.1.0, before order counted: those answers are found."""
    earlier = "04dbf6f23c974f5f569968b149900c1c3979cc97440daff98b4346a128730289"
    assert request_identity(TARGET, _with_schema("a", "b"), []) == earlier


@given(sources, sources)
def test_sources_that_differ_have_different_names(one: Source, other: Source) -> None:
    """Whatever made them."""

    def content(source: Source) -> Source:
        return source.model_copy(update={"identifier": "same"})

    names = (source_identity(one, "gemini"), source_identity(other, "gemini"))
    assert (names[0] == names[1]) == (content(one) == content(other))


@given(st.none() | st.text(), st.none() | st.text(), st.integers(0, 3), st.integers(0, 3))
def test_a_call_is_its_prompt_and_which_time_it_is_asked(
    one: str | None, other: str | None, first: int, second: int
) -> None:
    """No prompt is not an empty prompt."""
    names = (call_identity("r", one, first), call_identity("r", other, second))
    assert (names[0] == names[1]) == ((one, first) == (other, second))
    assert call_identity("r", one, first) != call_identity("s", one, first)
