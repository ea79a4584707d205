"""Identity: the digest of a request or call, by which its saved answer is found."""

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

# --- Fields that are in the identity, and fields that are left out ------------------------------------------


def find_unlisted_fields(document: type[Document], in_key: set[str], left_out: dict[str, str]) -> set[str]:
    """Return fields that are in neither list, in both, or no longer in the document, and fields with a blank reason."""
    fields = set(document.model_fields)
    blank = {name for name, reason in left_out.items() if not reason.strip()}
    return (fields ^ (in_key | set(left_out))) | (in_key & set(left_out)) | blank


@pytest.mark.parametrize(
    ("document", "in_key", "left_out"),
    [
        (Target, identity.TARGET_IN_IDENTITY, {}),
        (Config, identity.TARGET_IN_IDENTITY, identity.CONFIG_LEFT_OUT),
        (Options, identity.OPTIONS_IN_IDENTITY, identity.OPTIONS_LEFT_OUT),
        (Source, identity.SOURCE_IN_IDENTITY, identity.SOURCE_LEFT_OUT),
        (Turn, identity.TURN_IN_IDENTITY, identity.TURN_LEFT_OUT),
    ],
)
def test_every_field_is_in_the_key_or_left_out_for_a_reason(
    document: type[Document], in_key: set[str], left_out: dict[str, str]
) -> None:
    """A field that changes answers and is not in the identity would lead to the answer to another question."""
    assert find_unlisted_fields(document, in_key, left_out) == set()


def test_the_check_finds_new_stale_duplicate_and_unexplained_fields() -> None:

    class Newer(Options):
        seed: int | None = None

    in_key, left_out = identity.OPTIONS_IN_IDENTITY, identity.OPTIONS_LEFT_OUT
    assert find_unlisted_fields(Newer, in_key, left_out) == {"seed"}
    assert find_unlisted_fields(Newer, in_key | {"seed"}, left_out) == set()
    assert find_unlisted_fields(Newer, in_key, {**left_out, "seed": "a reason"}) == set()
    assert find_unlisted_fields(Options, in_key | {"gone"}, left_out) == {"gone"}
    assert find_unlisted_fields(Options, in_key | {"implicit_caching"}, left_out) == {"implicit_caching"}
    assert find_unlisted_fields(Options, in_key, {**left_out, "implicit_caching": " "}) == {"implicit_caching"}


@pytest.mark.parametrize("field", sorted(identity.SOURCE_IN_IDENTITY))
def test_each_field_of_a_source_that_is_listed_as_in_the_key_changes_the_identity(field: str) -> None:
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
def test_a_field_of_a_source_that_is_listed_as_left_out_does_not_change_the_identity(field: str) -> None:
    page = Source.from_uri("https://h")
    others = {"size_bytes": 7, "trust_mime_type": True}
    other = page.model_copy(update={field: others.get(field, "another")})
    assert other != page
    assert source_identity(page, "gemini") == source_identity(other, "gemini")


def test_the_identity_of_a_file_is_that_of_its_content_and_type() -> None:
    """The name and the location of a file do not count."""
    one, other = (Source(source_type="file", uri=name) for name in ("a.pdf", "s3://bucket/b.pdf"))
    content = ("ab12", "application/pdf")
    assert source_identity(one, "openai", content) == source_identity(other, "openai", content)
    assert source_identity(one, "openai", content) != source_identity(one, "openai", ("cd34", "application/pdf"))
    assert source_identity(one, "openai", content) != source_identity(one, "openai", ("ab12", "text/plain"))


@given(configs, configs)
def test_limits_and_keys_are_not_in_the_identity(one: Config, other: Config) -> None:
    """Only the target of a Config counts."""
    same = one.target == other.target
    assert (request_identity(one.target, Options(), []) == request_identity(other.target, Options(), [])) == same


@pytest.mark.parametrize("field", sorted(identity.TURN_IN_IDENTITY))
def test_each_field_of_a_turn_that_is_listed_as_in_the_key_changes_the_identity(field: str) -> None:
    """Prior turns are sent with the prompt, and change the answer."""
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


def test_sources_of_a_turn_count_by_their_content_in_the_identity() -> None:
    """Their location does not count; the response id of the provider does."""
    turn, elsewhere = (
        Turn(role="user", content="a", sources=[Attached(source=Source.from_uri(address), sha256="1")])
        for address in ("https://h/a", "https://h/b")
    )
    assert conversation_identity([turn], ["x"], None) == conversation_identity([elsewhere], ["x"], None)
    assert conversation_identity([turn], ["x"], None) != conversation_identity([turn], ["y"], None)
    assert conversation_identity([turn], ["x"], None) != conversation_identity([turn], ["x"], "resp_1")
    assert conversation_identity([], [], None) is None


# --- Digests ------------------------------------------------------------------------------------------------


def reverse_keys(value: Any) -> Any:
    """Return the value with the keys of each dict in reverse order."""
    if isinstance(value, dict):
        return {key: reverse_keys(value[key]) for key in reversed(value)}
    return [reverse_keys(item) for item in value] if isinstance(value, list) else value


@given(json_values)
def test_the_order_of_keys_does_not_change_a_digest(value: Any) -> None:
    assert digest("x", value) == digest("x", reverse_keys(value))


@given(json_values, json_values)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    """Types count: True, 1 and "1" differ, and so do [] and {}."""
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest("x", one) == digest("x", other)) == same


@given(st.text(string.ascii_letters), st.text(string.ascii_letters), json_values)
def test_the_label_is_part_of_a_digest(one: str, other: str, value: Any) -> None:
    """Equal values with different labels, such as a source and a prompt, have different digests."""
    assume(one != other)
    assert digest(one, value) != digest(other, value)


def test_a_digest_is_the_sha_256_of_the_label_and_canonical_json() -> None:
    assert (
        digest("call", {"b": [1, "ü"], "a": None})
        == hashlib.sha256('call\n{"a":null,"b":[1,"ü"]}'.encode()).hexdigest()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_json_has_no_digest(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest("x", value)


# --- Requests and calls -------------------------------------------------------------------------------------

TARGET = Target(provider="gemini", model="m")


@given(options(), options())
def test_identities_are_equal_exactly_if_the_options_are_equivalent(one: Options, other: Options) -> None:
    """An empty history is equivalent to no history."""

    def identify(options: Options) -> str:
        turns = read_turns(options.history or [])
        return request_identity(TARGET, options, [], conversation_identity(turns, [], None))

    def describe(options: Options) -> Any:
        fields = options.model_dump(mode="json", exclude={"implicit_caching", "cache_ttl", "continue_from"})
        fields["history"] = fields["history"] or None
        if isinstance(
            handle := fields["cache"], dict
        ):  # a handle counts by the contents of its cache or, if unknown, its name
            fields["cache"] = {"contents": handle["contents"]} if handle["contents"] else {"name": handle["name"]}
        fields["response_schema"] = options.response_json_schema()
        own = (options.provider_options or {}).get("gemini")
        fields["provider_options"] = None if own is None else json.dumps({name: own[name] for name in sorted(own)})
        return json.dumps(fields, sort_keys=True)

    assert (identify(one) == identify(other)) == (describe(one) == describe(other))


@given(options())
def test_options_from_json_have_the_same_identity(options: Options) -> None:
    """A worker that reads the options from JSON finds the saved answers."""
    back = Options.model_validate_json(options.model_dump_json())
    assert request_identity(TARGET, back, []) == request_identity(TARGET, options, [])


@given(json_objects)
def test_the_order_of_request_fields_in_provider_options_does_not_change_the_identity(fields: dict[str, Any]) -> None:
    """The provider reads these fields by name."""
    one, other = (
        Options(provider_options={"gemini": each}) for each in (fields, {key: fields[key] for key in reversed(fields)})
    )
    assert request_identity(TARGET, one, []) == request_identity(TARGET, other, [])


def _with_schema(*fields: str) -> Options:
    properties = {name: {"type": "string"} for name in fields}
    return Options(provider_options={"gemini": {"response_json_schema": {"properties": properties, "type": "object"}}})


def test_the_order_of_a_schemas_fields_in_provider_options_changes_the_identity() -> None:
    """Providers answer the fields of a schema in order, and a verdict before its reasons may differ."""
    one, other = _with_schema("reasons", "verdict"), _with_schema("verdict", "reasons")
    assert request_identity(TARGET, one, []) != request_identity(TARGET, other, [])


def test_sorted_provider_options_have_the_identity_of_version_0_1_0() -> None:
    """In that version the order did not count; its saved answers are still found."""
    earlier = "04dbf6f23c974f5f569968b149900c1c3979cc97440daff98b4346a128730289"
    assert request_identity(TARGET, _with_schema("a", "b"), []) == earlier


@given(sources, sources)
def test_identities_of_sources_are_equal_exactly_if_their_contents_are(one: Source, other: Source) -> None:

    def strip_identifier(source: Source) -> Source:
        return source.model_copy(update={"identifier": "same"})

    identities = (source_identity(one, "gemini"), source_identity(other, "gemini"))
    assert (identities[0] == identities[1]) == (strip_identifier(one) == strip_identifier(other))


@given(st.none() | st.text(), st.none() | st.text(), st.integers(0, 3), st.integers(0, 3))
def test_the_identity_of_a_call_has_its_request_prompt_and_occurrence(
    one: str | None, other: str | None, first: int, second: int
) -> None:
    """A missing prompt and an empty one have different identities."""
    identities = (call_identity("r", one, first), call_identity("r", other, second))
    assert (identities[0] == identities[1]) == ((one, first) == (other, second))
    assert call_identity("r", one, first) != call_identity("s", one, first)
