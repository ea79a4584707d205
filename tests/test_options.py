"""Options: how to answer. What is left empty is left to the provider."""

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
from tests.documents import goes_through_json, json_values, not_json, options, refused

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


# --- A document ---------------------------------------------------------------------------------------------


def test_all_options_are_optional() -> None:
    """Whoever asks for nothing gets what the provider does by itself."""
    assert set(Options().model_dump().values()) == {None}


@given(options())
def test_options_go_through_json(options: Options) -> None:
    """Every combination, back and equal; so they can be a flow's parameter."""
    goes_through_json(options)


@given(options())
def test_options_are_the_same_in_copies_and_pickles(options: Options) -> None:
    """As they travel between tasks."""
    pickled = pickle.loads(pickle.dumps(options))  # noqa: S301 (our own)
    for back in (pickled, copy.copy(options), copy.deepcopy(options), options.model_copy()):
        assert back == options
        assert hash(back) == hash(options)


def test_whole_numbers_will_do_for_temperatures() -> None:
    """`1` is `1.0`, and the same options."""
    assert Options(temperature=1) == Options(temperature=1.0)
    assert Options(temperature=1, top_p=1).model_dump_json(exclude_none=True) == '{"temperature":1.0,"top_p":1.0}'


def test_options_never_change() -> None:
    """A copy with changes is checked like any other."""
    steady = Options(temperature=0.0)
    with refused(ConfigurationError, "Options cannot be changed", "model_copy"):
        steady.temperature = 1.0  # type: ignore[misc]
    assert steady.model_copy(update={"temperature": 1.0}) == Options(temperature=1.0)
    with refused(ConfigurationError, "temperature"):
        steady.model_copy(update={"temperature": "hot"})
    with refused(ConfigurationError, "exclude each other"):
        Options(reasoning_effort="low").model_copy(update={"reasoning_budget_tokens": 0})


@pytest.mark.parametrize(
    "given",
    [
        lambda inside: Options(tools=[{"name": "f", "parameters": inside}]),
        lambda inside: Options(history=[{"role": "assistant", "content": "a", "provider_state": inside}]),
        lambda inside: Options(continue_from={"state": inside}),
        lambda inside: Options(provider_options={"openai": {"metadata": inside}}),
        lambda inside: Options(response_schema={"type": "object", "default": inside}),
    ],
    ids=["tools", "history", "continue_from", "provider_options", "response_schema"],
)
def test_what_the_caller_does_to_his_own_lists_later_changes_nothing(given: Callable[[Any], Options]) -> None:
    """Options hold copies, all the way down: their identity names an answer."""
    inside: dict[str, Any] = {"kept": ["as it was"]}
    made = given(inside)
    before = made.model_dump_json()
    inside["kept"].append("changed")
    inside["new"] = 1
    assert made.model_dump_json() == before


# --- Wrong values -------------------------------------------------------------------------------------------


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
    """Whatever it is, the error is ours and says which field."""
    for value in values:
        with refused(ConfigurationError, "CacheHandle" if field == "cache" else field):
            Options(**{field: value})


@pytest.mark.parametrize("field", ["reasoning_budget_tokens", "max_tokens"])
def test_a_number_that_nobody_can_count_to_is_refused(field: str) -> None:
    """And its ten thousand digits are not repeated."""
    with refused(ConfigurationError, field) as caught:
        Options(**{field: 10**9999})
    assert len(str(caught.value)) < 300


def test_an_unknown_field_is_answered_with_the_known_ones() -> None:
    """In JSON as in Python."""
    with refused(ConfigurationError, "stop is not a field of Options", "max_tokens"):
        Options(stop=["\n"])  # type: ignore[call-arg]
    with refused(ConfigurationError, "stop is not a field of Options"):
        Options.model_validate_json('{"stop": []}')


@not_json
@pytest.mark.parametrize("depth", [0, 3])
def test_nothing_hides_in_options_that_json_does_not_have(value: Any, depth: int) -> None:
    """No callable, no bytes, no client: refused where they stand, and the error says where that is."""
    inside = value
    for _ in range(depth):
        inside = {"deeper": [inside]}
    with refused(ConfigurationError, "tools.0"):
        Options(tools=[{"name": "f", "parameters": {"default": inside}}])
    with refused(ConfigurationError, "history.0"):
        Options(history=[{"role": "user", "content": inside}])
    with refused(ConfigurationError, "continue_from"):
        Options(continue_from={"state": inside})
    with refused(ConfigurationError, "provider_options.openai"):
        Options(provider_options={"openai": {"metadata": inside}})
    with refused(ConfigurationError, "response_schema"):
        Options(response_schema={"type": "object", "default": inside})


def test_the_place_of_a_wrong_value_is_spelt_out() -> None:
    """In a schema of a thousand lines one wants to know."""
    with refused(ConfigurationError, "parameters.properties.day[1] is of type function"):
        Options(tools=[{"name": "f", "parameters": {"properties": {"day": ["fri", lambda: None]}}}])


def test_tuples_and_enums_are_what_they_are_in_json() -> None:
    """A list, a string, a number; and stay so, so that they come back equal."""
    made = Options(provider_options={"openai": {"days": ("mon", "tue"), "colour": Colour.RED, "level": Level.HIGH}})
    assert made.provider_options == {"openai": {"days": ["mon", "tue"], "colour": "red", "level": 3}}
    assert made.provider_options is not None
    assert type(made.provider_options["openai"]["colour"]) is str
    goes_through_json(made)


@given(st.dictionaries(st.text(), json_values))
def test_any_json_object_is_a_providers_option(fields: dict[str, Any]) -> None:
    """They go to the provider as they are; nothing in them is interpreted here."""
    made = Options(provider_options={"openai": fields})
    assert made.provider_options == {"openai": fields}


@pytest.mark.parametrize("provider", ["mock", "azure", "OpenAI", ""])
def test_provider_options_are_for_known_providers(provider: str) -> None:
    """Fields for nobody would be dropped silently."""
    with refused(ConfigurationError, f"no provider {provider!r}", ", ".join(PROVIDERS)):
        Options(provider_options={provider: {}})


# --- Fields that exclude each other -------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 1024])
def test_effort_and_budget_are_two_ways_to_say_one_thing(budget: int) -> None:
    """A budget of 0 says something, too."""
    with refused(ConfigurationError, "reasoning_effort and reasoning_budget_tokens exclude each other"):
        Options(reasoning_effort="low", reasoning_budget_tokens=budget)


def test_history_and_continue_from_are_two_ways_to_say_one_thing() -> None:
    """An empty history says that there was none."""
    with refused(ConfigurationError, "history and continue_from exclude each other"):
        Options(history=[], continue_from={})


def test_effort_may_be_written_in_any_case() -> None:
    """Forms capitalise."""
    assert Options(reasoning_effort=" High ").reasoning_effort == "high"


def test_a_conversation_is_not_for_logs() -> None:
    """It is long, and what follows the ? of an address in it may be secret."""
    history = [{"role": "user", "content": "hi, secret"}]
    state = {"_conversation_state": {"history": history}}
    assert "secret" not in f"{Options(history=history)} {Options(continue_from=state)!r}"


@pytest.mark.parametrize("turn", [{}, {"content": "hi"}, {"role": None}, {"role": 1}])
def test_every_turn_says_whose_it_was(turn: dict[str, Any]) -> None:
    """Or the provider would."""
    with refused(ConfigurationError, "history[1]", "'role': 'user'"):
        Options(history=[{"role": "user", "content": "hi"}, turn])


# --- Tools --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "required", "none", {"name": "get_weather"}])
def test_a_tool_can_be_chosen(choice: Any) -> None:
    """By a word for all of them, or by its name."""
    assert Options(tools=[TOOL], tool_choice=choice).tool_choice == choice


@pytest.mark.parametrize(
    "choice", ["any", "get_weather", "", 1, True, [], {}, {"name": 1}, {"tool": "f"}, {"name": "get_weather", "x": 1}]
)
def test_a_choice_of_another_shape_is_refused(choice: Any) -> None:
    """With the shapes there are."""
    with refused(ConfigurationError, "tool_choice", "'auto', 'required', 'none' or {'name': 'the_tool'}"):
        Options(tools=[TOOL], tool_choice=choice)


def test_only_a_tool_that_is_there_can_be_chosen() -> None:
    """The error lists them."""
    with refused(ConfigurationError, "'get_wether'", "get_weather"):
        Options(tools=[TOOL], tool_choice={"name": "get_wether"})


@pytest.mark.parametrize("tools", [None, []])
def test_without_tools_there_is_no_choice(tools: Any) -> None:
    """PriorTurn here, rather than as the provider's 400."""
    with refused(ConfigurationError, "tool_choice is set, but there are no tools"):
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
def test_a_tool_has_the_one_shape(tool: dict[str, Any]) -> None:
    """It is the same for all providers; another provider's shape is refused, with ours."""
    with refused(ConfigurationError, "tool"):
        Options(tools=[tool])


def test_two_tools_need_two_names() -> None:
    """The model could not tell which it calls."""
    with refused(ConfigurationError, "Two tools are named 'get_weather'"):
        Options(tools=[TOOL, {"name": "other"}, TOOL])


# --- Schemas ------------------------------------------------------------------------------------------------


def test_a_model_travels_by_its_name() -> None:
    """Another process imports it and makes the same instances."""
    made = Options(response_schema=Invoice)
    assert json.loads(made.model_dump_json())["response_schema"] == f"{__name__}:Invoice"
    back = Options.model_validate_json(made.model_dump_json())
    assert back == made
    assert back.response_model() is made.response_model() is Invoice
    assert back.response_json_schema() == Invoice.model_json_schema()


def test_a_model_that_nobody_else_can_import_travels_as_its_schema() -> None:
    """Made within a function, say, or in a notebook."""

    class Local(BaseModel):
        total: int

    made = Options(response_schema=Local)
    assert made.response_model() is Local
    back = Options.model_validate_json(made.model_dump_json())
    assert back == made
    assert back.response_model() is None
    assert back.response_json_schema() == Local.model_json_schema()


def test_a_model_that_hides_behind_anothers_name_travels_as_its_schema() -> None:
    """A name that leads to something else is not its name."""
    impostor = create_model("Invoice", __module__=__name__, sum=(float, ...))
    made = Options(response_schema=impostor)
    assert Options.model_validate_json(made.model_dump_json()).response_json_schema() == impostor.model_json_schema()


def test_a_schema_is_kept_as_it_is_written() -> None:
    """It is the caller's; each provider gets its own version of it elsewhere."""
    schema = {"type": "object", "properties": {"properties": {"type": "string"}}}
    assert Options(response_schema=schema).response_json_schema() == schema
    assert Options(response_schema=schema).response_model() is None
    assert Options().response_json_schema() is None


def test_a_form_can_show_options() -> None:
    """The UI builds its form from this; a model class is typed there as its import string."""
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
def test_a_name_that_leads_nowhere_says_so(name: str, words: str) -> None:
    """When the options are made, not when the answer is there."""
    with refused(ConfigurationError, name, words):
        Options(response_schema=name)


@pytest.mark.parametrize(
    "code", ["raise RuntimeError('boom')", "def (", "raise SystemExit(3)", "import no_such_module"]
)
def test_a_module_that_breaks_on_import_says_so(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may raise anything; the caller gets one error that names the module and its complaint."""
    (tmp_path / "pollux_broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pollux_broken", raising=False)
    with refused(
        ConfigurationError, "'pollux_broken:Model' cannot be imported here", "Error" if "System" not in code else "3"
    ):
        Options(response_schema="pollux_broken:Model")


@pytest.mark.parametrize("model", [Unsayable, BaseModel])
def test_a_model_without_a_schema_is_refused(model: type[BaseModel]) -> None:
    """There would be nothing to send."""
    with refused(ConfigurationError, f"{model.__name__} has no JSON Schema"):
        Options(response_schema=model)


# --- Cache handles ------------------------------------------------------------------------------------------


def test_a_handle_may_be_a_handle_or_its_json() -> None:
    """As it comes back from storage."""
    assert Options(cache=HANDLE) == Options.model_validate({"cache": HANDLE.model_dump()})
