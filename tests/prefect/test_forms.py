"""Tests of run forms: the fields that the Prefect UI shows for a flow, and the values that it sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from pydantic import TypeAdapter

from pollux_flows import ConfigurationError, Options, Source, SourceError, flows
from pollux_flows.flows.run_names import is_generated
from pollux_flows.flows.ui_forms import OptionsField, SourceField

SOURCE: TypeAdapter[Source] = TypeAdapter(SourceField)
OPTIONS: TypeAdapter[Options | None] = TypeAdapter(OptionsField)
DEPLOYED = [
    flows.realtime, flows.fan_out, flows.fan_in, flows.broadcast, flows.submit, flows.deferred, flows.collect,
    flows.cancel, flows.resubmit, flows.wait_for, flows.sweep, flows.warm_cache, flows.converse,
]  # fmt: skip


def read_form(flow: Callable[..., Any]) -> dict[str, Any]:
    return parameter_schema(flow).model_dump_for_openapi()


@pytest.mark.parametrize("flow", DEPLOYED, ids=lambda flow: flow.name)
def test_every_field_has_a_title_and_a_description(flow: Flow[..., Any]) -> None:
    """Titles are words, not names of variables, and the parameters stand in the order of `position`."""
    fields = read_form(flow)["properties"]
    for name, field in fields.items():
        assert field["description"], name
        assert field["title"][0].isupper(), name
        assert "_" not in field["title"]
    assert [field["position"] for field in fields.values()] == list(range(len(fields)))


@pytest.mark.parametrize("flow", DEPLOYED, ids=lambda flow: flow.name)
def test_no_field_is_a_json_editor(flow: Flow[..., Any]) -> None:
    """The UI shows an editor for a field without a type, an object without fields, and an item of several types."""
    schema = read_form(flow)

    def resolve(shown: dict[str, Any]) -> dict[str, Any]:
        return schema["definitions"][shown["$ref"].rpartition("/")[2]] if "$ref" in shown else shown

    for field in schema["properties"].values():
        for tab in map(resolve, field.get("anyOf", [field])):
            assert tab["type"] != "object" or tab["properties"]
            assert tab["type"] != "array" or resolve(tab["items"])["type"] in {"string", "object"}


@pytest.mark.parametrize("flow", DEPLOYED[:6], ids=lambda flow: flow.name)
def test_every_flow_with_answers_has_an_output_field(flow: Flow[..., Any]) -> None:
    field = read_form(flow)["properties"]["output"]
    assert (field["title"], field["type"]) == ("Output", "string")


def test_a_job_is_picked_as_a_block() -> None:
    for flow in (flows.cancel, flows.resubmit, flows.wait_for):
        block, name = read_form(flow)["properties"]["job"]["anyOf"]
        assert block["$ref"].endswith("PolluxDeferredJob")
        assert name == {"title": "name", "type": "string"}


def test_a_number_that_is_too_small_is_refused_at_its_field() -> None:
    schema, values = (
        read_form(flows.converse),
        {"prompt": "Why?", "provider": {}, "max_rounds": 0, "max_cost_usd": -0.5},
    )
    refused = {str(error.path[0]): error.message for error in validate(values, schema) if error.path}
    assert refused["max_rounds"] == "0 is less than the minimum of 1"
    assert refused["max_cost_usd"] == "-0.5 is less than the minimum of 0"


def test_optional_numbers_and_texts_are_one_input() -> None:
    fields = read_form(flows.fan_out)["properties"]
    assert fields["max_cost_usd"]["type"] == "number"
    assert fields["prompts_from"]["type"] == "string"
    assert "default" not in fields["max_age"]
    assert read_form(flows.map_rows)["properties"]["columns"]["type"] == "array"


@pytest.mark.parametrize(
    "parameters",
    [
        {"prompts": ["a"], "max_age": None, "max_cost_usd": None, "options": None, "cache": None, "prompts_from": None},
        {"prompts_from": "a\nb"},
        {"prompts": ["a"], "sources": [Source.from_text("x").model_dump(mode="json")]},
        {"prompts": ["a"], "sources": [{"paste": "x", "details": None}], "calls_per_task": 3},
        {"prompts": ["a"], "options": Options(temperature=0.5, top_p=0.5).model_dump(mode="json")},
        {"prompts": ["a"], "options": {"tool_choice": {"name": "look"}, "tools": [{"name": "look"}]}},
    ],
)
def test_parameters_that_programs_send_pass_the_validation_of_the_server(parameters: dict[str, Any]) -> None:
    """The server validates a run's parameters with the form's schema."""
    validate(
        {"provider": {"$ref": "x"}, **parameters}, _allow_any_provider(read_form(flows.fan_out)), raise_on_error=True
    )


def _allow_any_provider(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        **schema,
        "properties": {**schema["properties"], "provider": {}},
        "definitions": {**schema["definitions"], "PolluxCache": {}},
    }


@pytest.mark.parametrize(
    ("pasted", "kind", "place"),
    [
        ("https://example.com/a.pdf", "uri", "https://example.com/a.pdf"),
        (" https://example.com/a.pdf\n", "uri", "https://example.com/a.pdf"),
        ("https://www.youtube.com/watch?v=abc", "youtube", "https://www.youtube.com/watch?v=abc"),
        ("https://youtu.be/abc", "youtube", "https://youtu.be/abc"),
        ("1706.03762", "arxiv", "https://arxiv.org/pdf/1706.03762.pdf"),
        ("arXiv:1706.03762v2", "arxiv", "https://arxiv.org/pdf/1706.03762v2.pdf"),
        ("https://arxiv.org/abs/1706.03762", "arxiv", "https://arxiv.org/pdf/1706.03762.pdf"),
        ("s3://bucket/report.pdf", "file", "s3://bucket/report.pdf"),
        ("/data/report", "file", "/data/report"),
        ("report.pdf", "file", "report.pdf"),
        ("./a folder/b.txt", "file", "./a folder/b.txt"),
        ("C:\\data\\a.pdf", "file", "C:\\data\\a.pdf"),
    ],
)
def test_a_pasted_line_is_a_path_an_address_or_an_id(pasted: str, kind: str, place: str) -> None:
    source = SOURCE.validate_python({"paste": pasted, "details": None})
    assert (source.source_type, source.uri) == (kind, place)
    assert SOURCE.validate_python(pasted) == source


@pytest.mark.parametrize(
    "pasted",
    ["Version 3.11 is out.", "one\ntwo.pdf", "Yes or no", "3.14", "See https://example.com/a.pdf", "Dr.House says: no"],
)
def test_other_pasted_text_is_a_text_source(pasted: str) -> None:
    source = SOURCE.validate_python({"paste": pasted})
    assert (source.source_type, source.text) == ("text", pasted)


def test_details_of_a_source_override_the_guess() -> None:
    text = SOURCE.validate_python({"paste": "report.pdf", "details": {"source_type": "text"}})
    assert text == Source.from_text("report.pdf")
    video = SOURCE.validate_python(
        {"paste": "https://youtu.be/abc", "details": {"start_offset": "10s", "fps": 2.0, "mime_type": None}}
    )
    assert video == Source.from_youtube("https://youtu.be/abc").with_gemini_video_settings(start_offset="10s", fps=2.0)


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(SourceError, match="A source is empty"):
        SOURCE.validate_python({"details": {"mime_type": "text/plain"}})


def test_options_of_a_form_equal_those_of_a_program() -> None:
    shown = {
        "system_instruction": "Be brief.",
        "response_schema": [{"name": "total", "type": "number", "description": "In euros."}, {"name": "paid"}],
        "more": {"top_p": 0.5, "implicit_caching": "off"},
    }
    assert OPTIONS.validate_python(shown) == Options(
        system_instruction="Be brief.",
        top_p=0.5,
        implicit_caching=False,
        response_schema={
            "type": "object",
            "properties": {"total": {"type": "number", "description": "In euros."}, "paid": {"type": "string"}},
            "required": ["total", "paid"],
            "additionalProperties": False,
        },
    )


@pytest.mark.parametrize("fields", [[{"name": ""}], [{"name": "a"}, {"name": "a"}], [{"name": "a", "type": "file"}]])
def test_a_field_of_a_structured_answer_needs_a_name_and_a_type(fields: list[dict[str, str]]) -> None:
    with pytest.raises(ConfigurationError, match="of the structured answer is not usable"):
        OPTIONS.validate_python({"response_schema": fields})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quick-hippo", True),
        ("sigma773-andrast", True),
        ("psi-canis-majoris-warp", True),
        ("Handmade-Tiger", True),
        ("nightly-report", False),
        ("Nightly report", False),
        ("invoices", False),
    ],
)
def test_typed_run_names_are_distinguished_from_generated_ones(name: str, expected: bool) -> None:
    assert is_generated(name) is expected
