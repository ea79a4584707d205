"""Tests of templates: only column names are evaluated, and the cells of a row are never read as a template."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows import ConfigurationError
from pollux_flows.tables.template import RowError, Template


def render(text: str, **row: Any) -> str:
    return Template.parse(text).render(row)


def test_a_template_is_filled_with_the_cells_of_a_row() -> None:
    template = Template.parse("Summarize {title}: {body} ({title})")
    assert template.columns == ("title", "body")
    assert template.render({"title": "A", "body": "B", "other": 1}) == "Summarize A: B (A)"


def test_double_braces_are_braces() -> None:
    assert render('{{"a": {x}}} }}{{', x=1) == '{"a": 1} }{'
    assert Template.parse("no column, {{x}}").columns == ()


@pytest.mark.parametrize("name", ["0", "two words", "ä-é", "a/b", "$x", "__class__", "a(b)", "x%"])
def test_a_column_may_have_any_other_name(name: str) -> None:
    assert Template.parse(f"{{{name}}}").render({name: "cell"}) == "cell"


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("{0.__class__}", "an attribute"),
        ("{a.b}", "an attribute"),
        ("{a.__init__.__globals__[os]}", "an attribute"),
        ("{a[0]}", "an item"),
        ("{a!r}", "a conversion"),
        ("{a:>10}", "a format"),
        ("{a:{b}}", "a { without a }"),
        ("{a:>999999999}", "a format"),
        ('Return {"a": 1}', "a format"),
        ("{}", "without a column name"),
        ("{ }", "without a column name"),
        ("{a", "a { without a }"),
        ("a}", "a } without a {"),
        ("{{a}", "a } without a {"),
        ("{a}}", "a } without a {"),
        ("{a{b}", "a { without a }"),
        ("", "blank"),
        (" \n", "blank"),
    ],
)
def test_a_field_with_more_than_a_name_is_refused(text: str, refusal: str) -> None:
    with pytest.raises(ConfigurationError, match=refusal) as caught:
        Template.parse(text)
    assert caught.value.hint


def test_a_refusal_names_the_line_and_column() -> None:
    with pytest.raises(ConfigurationError, match=r"line 2, column 4: '\{a\.b\} and so on'"):
        Template.parse("One\ntwo{a.b} and so on")


@pytest.mark.parametrize("cell", ["{b}", "{{b}}", "{0.__class__}", "%(b)s", "}", "{", "$b", "\\{b}", "{a}"])
def test_a_cell_is_never_read_as_a_template(cell: str) -> None:
    assert render("{a}|{b}", a=cell, b="secret") == f"{cell}|secret"


@given(st.text(), st.text())
def test_any_text_is_inserted_unchanged(cell: str, literal: str) -> None:
    escaped = literal.replace("{", "{{").replace("}", "}}")
    assert render(f">{escaped}{{a}}", a=cell) == f">{literal}{cell}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("007", "007"),
        (7, "7"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        (Decimal("1.10"), "1.10"),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),  # noqa: DTZ001 (as tables have them)
        (time(3, 4), "03:04:00"),
        (timedelta(days=1, microseconds=10), "PT86400.00001S"),
        (float("inf"), "Infinity"),
        (["ä", 1, None], '["ä", 1, null]'),
        ({"a": {"b": [True, date(2026, 1, 2), float("nan")]}}, '{"a": {"b": [true, "2026-01-02", null]}}'),
        ([("key", 1)], '[["key", 1]]'),
    ],
)
def test_values_that_are_no_text_are_rendered_as_json(value: Any, text: str) -> None:
    assert render("{a}", a=value) == text


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_null_cell_is_refused(value: object) -> None:
    with pytest.raises(RowError, match="'a' is null") as caught:
        render("Say {a}", a=value)
    assert caught.value.hint
    with pytest.raises(RowError, match="'a' is null"):
        render("Say {a}")


def test_a_blank_prompt_is_refused() -> None:
    assert render("Say {a}", a="") == "Say "
    with pytest.raises(RowError, match="blank"):
        render("{a} ", a="\n")


def test_cells_with_bytes_are_refused() -> None:
    with pytest.raises(RowError, match="bytes"):
        render("{a}", a=b"%PDF")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each, max_size=3)))
def test_nested_values_come_back_from_the_prompt(value: Any) -> None:
    assert json.loads(render("{a}", a=[value])) == [value]
