"""Options: settings of the answer, their validation, and their JSON."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from collections.abc import Callable
from enum import Enum, StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, create_model

from pollux_flows import CacheHandle, ConfigurationError, Options
from pollux_flows.config import PROVIDERS
from tests.documents import check_json_round_trip, expect_error, json_values, not_json, options

TOOL = {"name": "get_weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}
HANDLE = CacheHandle(name="caches/1", model="m", provider="gemini", expires_at=2e9)


class Invoice(BaseModel):
    """A model that lives in a module, so another process can import it."""

    total: int
    lines: list[str] = []


class Unsayable(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    module: ModuleType


class Colour(StrEnum):
    RED = "red"


class Level(int, Enum):
    HIGH = 3


# --- Options as a document ----------------------------------------------------------------------------------


def test_all_options_default_to_none() -> None:
    """Unset options use the provider's defaults."""
    assert set(Options().model_dump().values()) == {None}


@given(options())
def test_options_come_back_equal_from_json(options: Options) -> None:
    """Options can be a parameter of a flow."""
    check_json_round_trip(options)


@given(options())
def test_copies_and_pickles_of_options_are_equal(options: Options) -> None:
    pickled = pickle.loads(pickle.dumps(options))  # noqa: S301 (our own)
    for back in (pickled, copy.copy(options), copy.deepcopy(options), options.model_copy()):
        assert back == options
        assert hash(back) == hash(options)


def test_a_temperature_may_be_an_integer() -> None:
    """Options with `1` and with `1.0` are equal."""
    assert Options(temperature=1) == Options(temperature=1.0)
    assert Options(temperature=1, top_p=1).model_dump_json(exclude_none=True) == '{"temperature":1.0,"top_p":1.0}'


def test_options_are_immutable_and_copies_with_changes_are_validated() -> None:
    original = Options(temperature=0.0)
    with expect_error(ConfigurationError, "Options cannot be changed", "model_copy"):
        original.temperature = 1.0  # type: ignore[misc]
    assert original.model_copy(update={"temperature": 1.0}) == Options(temperature=1.0)
    with expect_error(ConfigurationError, "temperature"):
        original.model_copy(update={"temperature": "hot"})
    with expect_error(ConfigurationError, "exclude each other"):
        Options(reasoning_effort="low").model_copy(update={"reasoning_budget_tokens": 0})


@pytest.mark.parametrize(
    "make_options",
    [
        lambda inside: Options(tools=[{"name": "f", "parameters": inside}]),
        lambda inside: Options(history=[{"role": "assistant", "content": "a", "provider_state": inside}]),
        lambda inside: Options(continue_from={"state": inside}),
        lambda inside: Options(provider_options={"openai": {"metadata": inside}}),
        lambda inside: Options(response_schema={"type": "object", "default": inside}),
    ],
    ids=["tools", "history", "continue_from", "provider_options", "response_schema"],
)
def test_later_changes_to_the_callers_lists_do_not_change_the_options(make_options: Callable[[Any], Options]) -> None:
    """Options hold deep copies, because answers are found by the identity of the options."""
    inside: dict[str, Any] = {"old": ["unchanged"]}
    made = make_options(inside)
    before = made.model_dump_json()
    inside["old"].append("changed")
    inside["new"] = 1
    assert made.model_dump_json() == before


# --- Invalid values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("system_instruction", [1, b"x", ["x"], {}, True, "\ud800"]),
        ("temperature", [-0.1, 2.1, "1", True, float("nan"), float("inf"), 10**400, [], None.__class__]),
        ("top_p", [0, 1.1, "1", True, float("nan")]),
        ("reasoning_effort", [1, "", " ", b"low", True, ["low"], "\ud800"]),
        ("reasoning_budget_tokens", [-1, True, 1.5, "1", 10**400]),
        ("max_tokens", [0, -1, True, 1.5, "1", 10**400]),
        ("implicit_caching", [1, 0, "yes", [], "true"]),
        ("cache_ttl", ["2h", 300, True, ""]),
        ("cache", [1, [], {}, {"name": "c"}, object()]),
        ("tools", ["f", {}, 1, [1], ["f"], [None], [TOOL, 1], TOOL]),
        ("history", ["hello", {}, 1, [1], ["hello"], [None], {"role": "user"}]),
        ("continue_from", ["state", 1, [], [{}]]),
        ("provider_options", ["openai", 1, [], {"openai": 1}, {"openai": []}, {"openai": None}]),
        ("response_schema", [1, True, b"{}", [], [{}], int, dict, list[int], Invoice(total=1), "", "Invoice", "a.b:"]),
        ("temprature", [1.0]),
    ],
)
def test_a_wrong_value_is_named(field: str, values: list[Any]) -> None:
    """The error is a ConfigurationError that names the field."""
    for value in values:
        with expect_error(ConfigurationError, "CacheHandle" if field == "cache" else field):
            Options(**{field: value})


@pytest.mark.parametrize("field", ["reasoning_budget_tokens", "max_tokens"])
def test_the_error_about_a_huge_number_is_short(field: str) -> None:
    """The error does not repeat ten thousand digits."""
    with expect_error(ConfigurationError, field) as caught:
        Options(**{field: 10**9999})
    assert len(str(caught.value)) < 300


def test_the_error_about_an_unknown_field_lists_the_known_ones() -> None:
    """This holds for options from JSON as well."""
    with expect_error(ConfigurationError, "stop is not a field of Options", "max_tokens"):
        Options(stop=["\n"])  # type: ignore[call-arg]
    with expect_error(ConfigurationError, "stop is not a field of Options"):
        Options.model_validate_json('{"stop": []}')


@not_json
@pytest.mark.parametrize("depth", [0, 3])
def test_values_that_json_does_not_have_are_refused_at_any_depth(value: Any, depth: int) -> None:
    """The error names the place of a callable, bytes or a client."""
    inside = value
    for _ in range(depth):
        inside = {"deeper": [inside]}
    with expect_error(ConfigurationError, "tools.0"):
        Options(tools=[{"name": "f", "parameters": {"default": inside}}])
    with expect_error(ConfigurationError, "history.0"):
        Options(history=[{"role": "user", "content": inside}])
    with expect_error(ConfigurationError, "continue_from"):
        Options(continue_from={"state": inside})
    with expect_error(ConfigurationError, "provider_options.openai"):
        Options(provider_options={"openai": {"metadata": inside}})
    with expect_error(ConfigurationError, "response_schema"):
        Options(response_schema={"type": "object", "default": inside})


def test_the_error_about_a_value_in_a_schema_names_its_path() -> None:
    with expect_error(ConfigurationError, "parameters.properties.day[1] is of type function"):
        Options(tools=[{"name": "f", "parameters": {"properties": {"day": ["fri", lambda: None]}}}])


def test_tuples_and_enums_become_their_json_values() -> None:
    """They become lists, strings and numbers at once, so that the options come back equal from JSON."""
    made = Options(provider_options={"openai": {"days": ("mon", "tue"), "colour": Colour.RED, "level": Level.HIGH}})
    assert made.provider_options == {"openai": {"days": ["mon", "tue"], "colour": "red", "level": 3}}
    assert made.provider_options is not None
    assert type(made.provider_options["openai"]["colour"]) is str
    check_json_round_trip(made)


@given(st.dictionaries(st.text(), json_values))
def test_provider_options_may_be_any_json_object(fields: dict[str, Any]) -> None:
    """The object is stored unchanged."""
    made = Options(provider_options={"openai": fields})
    assert made.provider_options == {"openai": fields}


@pytest.mark.parametrize("provider", ["mock", "azure", "OpenAI", ""])
def test_provider_options_for_an_unknown_provider_are_refused(provider: str) -> None:
    """Such options would silently have no effect."""
    with expect_error(ConfigurationError, f"no provider {provider!r}", ", ".join(PROVIDERS)):
        Options(provider_options={provider: {}})


# --- Fields that exclude each other -------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 1024])
def test_reasoning_effort_and_budget_exclude_each_other(budget: int) -> None:
    """A budget of 0 counts as set."""
    with expect_error(ConfigurationError, "reasoning_effort and reasoning_budget_tokens exclude each other"):
        Options(reasoning_effort="low", reasoning_budget_tokens=budget)


def test_history_and_continue_from_exclude_each_other() -> None:
    """An empty history counts as set."""
    with expect_error(ConfigurationError, "history and continue_from exclude each other"):
        Options(history=[], continue_from={})


def test_the_case_of_a_reasoning_effort_does_not_matter() -> None:
    """Forms capitalise words."""
    assert Options(reasoning_effort=" High ").reasoning_effort == "high"


def test_the_repr_of_options_does_not_show_a_conversation() -> None:
    """A conversation is long, and the query of an address in it may be secret."""
    history = [{"role": "user", "content": "hi, secret"}]
    state = {"_conversation_state": {"history": history}}
    assert "secret" not in f"{Options(history=history)} {Options(continue_from=state)!r}"


@pytest.mark.parametrize("turn", [{}, {"content": "hi"}, {"role": None}, {"role": 1}])
def test_a_turn_without_a_valid_role_is_refused(turn: dict[str, Any]) -> None:
    """The error names the index of the turn."""
    with expect_error(ConfigurationError, "history[1]", "'role': 'user'"):
        Options(history=[{"role": "user", "content": "hi"}, turn])


# --- Tools --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "required", "none", {"name": "get_weather"}])
def test_a_tool_choice_is_a_word_or_the_name_of_a_tool(choice: Any) -> None:
    assert Options(tools=[TOOL], tool_choice=choice).tool_choice == choice


@pytest.mark.parametrize(
    "choice", ["any", "get_weather", "", 1, True, [], {}, {"name": 1}, {"tool": "f"}, {"name": "get_weather", "x": 1}]
)
def test_an_invalid_tool_choice_is_refused(choice: Any) -> None:
    """The error lists the valid forms."""
    with expect_error(ConfigurationError, "tool_choice", "'auto', 'required', 'none' or {'name': 'the_tool'}"):
        Options(tools=[TOOL], tool_choice=choice)


def test_a_tool_choice_of_an_unknown_tool_is_refused() -> None:
    """The error lists the tools."""
    with expect_error(ConfigurationError, "'get_wether'", "get_weather"):
        Options(tools=[TOOL], tool_choice={"name": "get_wether"})


@pytest.mark.parametrize("tools", [None, []])
def test_a_tool_choice_without_tools_is_refused(tools: Any) -> None:
    """The refusal comes before the provider would reply with a 400."""
    with expect_error(ConfigurationError, "tool_choice is set, but there are no tools"):
        Options(tools=tools, tool_choice="auto")


@pytest.mark.parametrize(
    "tool",
    [
        {},
        {"name": None},
        {"name": ""},
        {"name": "get weather"},
        {"name": "1st"},
        {"name": "a" * 65},
        {"name": "straße"},
        {"type": "function", "function": TOOL},
        {**TOOL, "type": "function"},
        {**TOOL, "input_schema": {}},
        {**TOOL, "description": None},
        {**TOOL, "description": 1},
        {**TOOL, "parameters": None},
        {**TOOL, "parameters": []},
        {**TOOL, "strict": "yes"},
        {**TOOL, "strict": 1},
    ],
)
def test_an_invalid_tool_is_refused(tool: dict[str, Any]) -> None:
    """Tools have one form for all providers; the forms of the providers' own APIs are refused."""
    with expect_error(ConfigurationError, "tool"):
        Options(tools=[tool])


def test_two_tools_of_the_same_name_are_refused() -> None:
    """A call of the model would be ambiguous."""
    with expect_error(ConfigurationError, "Two tools are named 'get_weather'"):
        Options(tools=[TOOL, {"name": "other"}, TOOL])


# --- Schemas ------------------------------------------------------------------------------------------------


def test_an_importable_response_model_is_stored_as_its_import_string() -> None:
    """Another process imports the model, and returns its instances."""
    made = Options(response_schema=Invoice)
    assert json.loads(made.model_dump_json())["response_schema"] == f"{__name__}:Invoice"
    back = Options.model_validate_json(made.model_dump_json())
    assert back == made
    assert back.response_model() is made.response_model() is Invoice
    assert back.response_json_schema() == Invoice.model_json_schema()


def test_a_local_response_model_is_stored_as_its_schema() -> None:
    """A model in a function or in a notebook cannot be imported by another process."""

    class Local(BaseModel):
        total: int

    made = Options(response_schema=Local)
    assert made.response_model() is Local
    back = Options.model_validate_json(made.model_dump_json())
    assert back == made
    assert back.response_model() is None
    assert back.response_json_schema() == Local.model_json_schema()


def test_a_response_model_with_the_name_of_another_is_stored_as_its_schema() -> None:
    """Its import string would lead to the other model."""
    impostor = create_model("Invoice", __module__=__name__, sum=(float, ...))
    made = Options(response_schema=impostor)
    assert Options.model_validate_json(made.model_dump_json()).response_json_schema() == impostor.model_json_schema()


def test_a_response_schema_is_stored_unchanged() -> None:
    """The versions of the schema for each provider are made elsewhere."""
    schema = {"type": "object", "properties": {"properties": {"type": "string"}}}
    assert Options(response_schema=schema).response_json_schema() == schema
    assert Options(response_schema=schema).response_model() is None
    assert Options().response_json_schema() is None


def test_the_json_schema_of_options_is_fit_for_a_form() -> None:
    """The UI builds a form from the schema; in it, a response model is an import string."""
    schema = Options.model_json_schema()
    assert schema["properties"]["response_schema"]["anyOf"][0] == {"type": "string"}
    assert all("description" in field for field in schema["properties"].values())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:Model", "No module named 'no_such_module'"),
        (f"{__name__}:Nothing", "has no attribute 'Nothing'"),
        (f"{__name__}:TOOL", "is not a Pydantic model"),
        (f"{__name__}:Colour", "is not a Pydantic model"),
        ("a..b:C", "cannot be imported here"),
        (".relative:Model", "import string like 'my_pkg.models:Invoice'"),
        ("os.system", "import string like 'my_pkg.models:Invoice'"),
        ("pkg:Model; import os", "import string like 'my_pkg.models:Invoice'"),
    ],
)
def test_an_invalid_import_string_is_refused(name: str, words: str) -> None:
    """The error is raised when the options are made, not after the answer."""
    with expect_error(ConfigurationError, name, words):
        Options(response_schema=name)


@pytest.mark.parametrize(
    "code", ["raise RuntimeError('boom')", "def (", "raise SystemExit(3)", "import no_such_module"]
)
def test_the_error_about_a_module_that_cannot_be_imported_names_the_reason(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever exception the import raises, the error is a ConfigurationError that names the module."""
    (tmp_path / "pollux_broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pollux_broken", raising=False)
    with expect_error(
        ConfigurationError, "'pollux_broken:Model' cannot be imported here", "Error" if "System" not in code else "3"
    ):
        Options(response_schema="pollux_broken:Model")


@pytest.mark.parametrize("model", [Unsayable, BaseModel])
def test_a_model_without_a_schema_is_refused(model: type[BaseModel]) -> None:
    """The provider needs a JSON Schema."""
    with expect_error(ConfigurationError, f"{model.__name__} has no JSON Schema"):
        Options(response_schema=model)


# --- Cache handles ------------------------------------------------------------------------------------------


def test_a_cache_handle_may_be_passed_as_its_json() -> None:
    assert Options(cache=HANDLE) == Options.model_validate({"cache": HANDLE.model_dump()})
