"""Request and Plan: from what the caller wants to calls with names, the same ones every time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows import CacheHandle, ConfigurationError, Options, Source, SourceError
from pollux_flows.config import PROVIDERS, ProviderName, Target
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.request import Request, make_request
from pollux_flows.state import identity
from pollux_flows.state.identity import request_identity, source_identity
from tests.documents import goes_through_json, refused

TARGET = Target(provider="gemini", model="gemini-2.5-flash-lite")
prompts = st.lists(st.text(min_size=1).filter(str.strip), max_size=5)


def request(asked: Any = "Why?", **changes: Any) -> Request:
    return make_request(asked, **{"target": TARGET, **changes})


def plan(asked: Any = "Why?", **changes: Any) -> Plan:
    return make_plan(request(asked, **changes))


def identities(asked: Any = "Why?", **changes: Any) -> list[str]:
    return [call.identity for call in plan(asked, **changes).calls]


# --- Request: what may be asked -----------------------------------------------------------------------------


def test_one_prompt_needs_no_list() -> None:
    """A string is one prompt, not its letters."""
    assert request("Why?").prompts == ["Why?"]
    assert request(("Why?", "How?")).prompts == ["Why?", "How?"]


def test_no_prompts_are_a_legal_request_for_nothing() -> None:
    """An empty list is what a pipeline sometimes has."""
    assert plan([]).calls == []
    assert plan([], sources=[Source.from_text("x")]).calls == []


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u00a0"])
def test_a_blank_prompt_is_named_by_its_index(blank: str) -> None:
    """Of twelve prompts one wants to know which."""
    with refused(ConfigurationError, "prompts[1] is blank", "or leave it out"):
        request(["Why?", blank])


@pytest.mark.parametrize("blank", ["", [" "]])
def test_a_lone_blank_prompt_needs_no_index(blank: Any) -> None:
    """There is only one."""
    with refused(ConfigurationError, "The prompt is blank"):
        request(blank)


@pytest.mark.parametrize("none", [None, [None], ["Why?", None]])
def test_without_a_prompt_there_is_a_source(none: Any) -> None:
    """None is a call without prompt text: the source speaks. With neither there is nothing to send."""
    assert None in request(none, sources=[Source.from_text("Describe the sea.")]).prompts
    with refused(ConfigurationError, "nothing to send: no prompt and no source"):
        request(none)


def test_a_cache_handle_alone_asks_nothing() -> None:
    """Gemini wants a prompt beside it."""
    handle = CacheHandle(name="c", model=TARGET.model, provider="gemini", expires_at=time.time() + 60)
    with pytest.raises(ConfigurationError, match="Write a prompt"):
        request(None, options=Options(cache=handle))


@pytest.mark.parametrize(
    "wrong", [1, True, {"Why?": 1}, {"Why?"}, b"Why?", (letter for letter in "Why?"), iter(["Why?"]), object()]
)
def test_prompts_are_a_string_or_a_list(wrong: Any) -> None:
    """Sets have no order, generators no second time, dicts are something else."""
    with refused(ConfigurationError, "prompts cannot be a", type(wrong).__name__, "a list of strings"):
        request(wrong)


@pytest.mark.parametrize("wrong", [1, b"Why?", ["Why?"], Source.from_text("Why?")])
def test_a_prompt_is_a_string(wrong: Any) -> None:
    """The error says which is not."""
    with refused(ConfigurationError, "prompts[1] is a", type(wrong).__name__):
        request(["Why?", wrong])


def test_a_prompt_holds_whole_characters() -> None:
    """Half a one fits into no request."""
    with refused(ConfigurationError, "prompts.1", "half a character"):
        request(["Why?", "\ud800"])


@pytest.mark.parametrize("wrong", [None, "text", Source.from_text("x"), {Source.from_text("x")}, 1, iter([])])
def test_sources_are_a_list(wrong: Any) -> None:
    """One source alone is the commonest slip."""
    with refused(SourceError, "sources is a", "Pass a list of Source objects"):
        request(sources=wrong)


@pytest.mark.parametrize("wrong", [None, "text", b"x", {"source_type": "text", "text": "x"}])
def test_a_source_is_a_source(wrong: Any) -> None:
    """The error says which is not, and how to make one."""
    with refused(SourceError, "sources[1] is a", "Source.from_text"):
        request(sources=[Source.from_text("x"), wrong])


@pytest.mark.parametrize("wrong", [{}, {"temperature": 1}, "fast", 1])
def test_options_are_options(wrong: Any) -> None:
    """A dict would not have been checked."""
    with refused(ConfigurationError, "options is a", "Pass Options(…)"):
        request(options=wrong)


@pytest.mark.parametrize("wrong", [None, "gemini", {"provider": "gemini"}, {"provider": "azure", "model": "m"}])
def test_a_target_is_a_target(wrong: Any) -> None:
    """In words, too."""
    with refused(ConfigurationError, "Target is not usable"):
        make_request("Why?", target=wrong)


def test_a_schema_is_looked_at_before_it_is_paid_for() -> None:
    """For answers and for tools."""
    with refused(ConfigurationError, "response_schema is not a usable JSON Schema"):
        request(options=Options(response_schema={"type": "integr"}))


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "objekt"},
        {"city": {"type": "string"}},
        {"city": "string"},
        {"type": "string"},
        {"$schema": 5},
        {"type": "object", "properties": {"city": "string"}},
    ],
    ids=str,
)
def test_parameters_of_a_tool_that_are_no_json_schema_are_refused(parameters: dict[str, Any]) -> None:
    """A map of fields is one by the letter, and asks for nothing."""
    with refused(ConfigurationError, "tools[1].parameters (f)", "'properties'"):
        request(options=Options(tools=[{"name": "e"}, {"name": "f", "parameters": parameters}]))


@pytest.mark.parametrize(
    "parameters", [{}, {"title": "F"}, {"properties": {"city": {}}}, {"x-order": 1, "type": "object"}]
)
def test_parameters_of_a_tool_may_say_little(parameters: dict[str, Any]) -> None:
    """No arguments, or any."""
    request(options=Options(tools=[{"name": "f", "parameters": parameters}]))


# --- Plan: one call per prompt ------------------------------------------------------------------------------


@given(prompts)
def test_calls_are_in_prompt_order(asked: list[str]) -> None:
    """One each, numbered from 0."""
    calls = plan(asked).calls
    assert [call.prompt for call in calls] == asked
    assert [call.index for call in calls] == list(range(len(asked)))
    assert {call.source for call in calls} <= {None}


@given(prompts)
def test_the_same_request_gives_the_same_plan(asked: list[str]) -> None:
    """Anywhere: also from the request's JSON, as another worker reads it."""
    made = request(asked, sources=[Source.from_text("x")], options=Options(temperature=0.5))
    there = Request.model_validate_json(made.model_dump_json())
    assert make_plan(there) == make_plan(made)
    goes_through_json(make_plan(made))


def test_identities_hold_across_versions() -> None:
    """Answers are found by them: what changes one makes all that was paid for unfindable. Change it knowingly."""
    assert identities("Why?", sources=[Source.from_text("x")]) == [
        "9e8ad12ba4cdfc3fd6901f15f579c3d7ee981371cdb2a842a89df66d32534fdc"
    ]


@given(prompts)
def test_every_call_has_a_name_of_its_own(asked: list[str]) -> None:
    """Asking the same thing twice is two calls."""
    assert len(set(identities(asked + asked))) == 2 * len(asked)


def test_which_of_two_equal_calls_it_is_does_not_depend_on_the_others() -> None:
    """The first is the first, whatever else is asked: a longer list finds the answers of the shorter one."""
    why, how, why_again = identities(["Why?", "How?", "Why?"])
    assert identities(["Why?", "Why?"]) == [why, why_again]
    assert identities(["How?", "Why?"]) == [how, why]


def test_a_field_that_a_later_version_adds_leaves_old_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who upgrades does not pay for everything again."""

    class Later(Options):
        seed: int | None = None

    before = request_identity(TARGET, Options(temperature=0.5), [])
    monkeypatch.setattr(identity, "OPTIONS_IN_KEY", identity.OPTIONS_IN_KEY | {"seed"})
    assert request_identity(TARGET, Later(temperature=0.5), []) == before
    assert request_identity(TARGET, Later(temperature=0.5, seed=1), []) != before


def test_each_source_by_itself() -> None:
    """For each source in turn, every prompt; numbered through."""
    one, other = Source.from_text("one"), Source.from_text("other")
    grid = plan(["Why?", "How?"], sources=[one, other], each_source=True)
    assert [(call.index, call.source, call.prompt) for call in grid.calls] == [
        (0, 0, "Why?"),
        (1, 0, "How?"),
        (2, 1, "Why?"),
        (3, 1, "How?"),
    ]
    assert [call.identity for call in grid.calls] == [
        *identities(["Why?", "How?"], sources=[one]),
        *identities(["Why?", "How?"], sources=[other]),
    ]


def test_each_of_no_sources_is_nothing() -> None:
    """There is nobody to ask about."""
    assert plan(["Why?"], each_source=True).calls == []


def test_a_part_of_a_plan_is_a_plan_about_one_source() -> None:
    """Its calls keep their names."""
    one, other = Source.from_text("one"), Source.from_text("other")
    grid = plan(["Why?", "How?"], sources=[one, other], each_source=True)
    part = grid.about(1)
    assert part.sources == [other]
    assert part.calls == grid.calls[2:]


def test_the_same_source_twice_is_asked_about_twice() -> None:
    """In a broadcast, too, each row is its own, and gets an answer of its own."""
    same = Source.from_text("same")
    first, second = plan(["Why?"], sources=[same, same], each_source=True).calls
    assert (first.source, second.source) == (0, 1)
    assert first.identity != second.identity
    (apart,) = plan(["Why?"], sources=[same], each_source=True).calls
    assert first.identity == apart.identity


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "no calls"),
        (["a\n b"], "1. a b"),
        ([None], "1. (sources only)"),
        (["x" * 100], f"1. {'x' * 76}…"),
        (["a", "b"], "2 calls, 1 to 2"),
    ],
)
def test_a_plan_has_a_title_for_people(asked: list[str | None], said: str) -> None:
    """As in the name of a task run: a single call by its prompt, several by their numbers."""
    assert plan(asked, sources=[Source.from_text("x")]).title == said


def test_a_call_about_one_source_says_which() -> None:
    """The rows of a broadcast can be told apart."""
    source = Source.from_text("x", identifier="north")
    (part,) = plan(["Why?"], sources=[source], each_source=True).parts()
    assert part.title == "1. north · Why?"


@pytest.mark.parametrize(
    ("calls", "wanted", "sizes"),
    [(0, None, []), (3, None, [1, 1, 1]), (32, None, [1] * 32), (33, None, [4] * 8 + [1]), (100, 40, [40, 40, 20])],
)
def test_a_plan_comes_in_parts_that_can_be_looked_at(calls: int, wanted: int | None, sizes: list[int]) -> None:
    """A part a call, up to 32; beyond, ten large ones at most. Together they are the plan."""
    whole = plan([f"p{n}" for n in range(calls)])
    parts = whole.parts(wanted)
    assert [len(part.calls) for part in parts] == sizes
    assert [call for part in parts for call in part.calls] == whole.calls
    assert all(part.sources is whole.sources and part.sharing == calls for part in parts)


# --- What a call is named by --------------------------------------------------------------------------------


def test_what_a_source_is_called_does_not_matter() -> None:
    """The same content under another name is the same question."""
    assert identities(sources=[Source.from_text("x", identifier="a")]) == identities(
        sources=[Source.from_text("x", identifier="b")]
    )


def test_the_order_of_sources_matters() -> None:
    """The model reads them in order."""
    one, other = Source.from_text("one"), Source.from_text("other")
    assert identities(sources=[one, other]) != identities(sources=[other, one])


def test_where_sources_and_prompts_begin_and_end_matters() -> None:
    """No two ways to cut the same text are the same question."""
    a, b, ab = Source.from_text("a"), Source.from_text("b"), Source.from_text("ab")
    cuts = [
        identities("ab"), identities("a", sources=[b]), identities("b", sources=[a]), identities("x", sources=[a, b]),
        identities("x", sources=[ab]), identities(None, sources=[ab]), identities("x", sources=[b, a]),
        identities("x", options=Options(system_instruction="ab")), identities("x", sources=[a, a, b]),
    ]  # fmt: skip
    assert len({cut[0] for cut in cuts}) == len(cuts)


def test_json_is_not_text() -> None:
    """The provider is told which it is."""
    assert identities(sources=[Source.from_text("1")]) != identities(sources=[Source.from_json(1)])


CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("the prompt", {"asked": "How?"}),
    ("the model", {"target": TARGET.model_copy(update={"model": "gemini-2.5-pro"})}),
    ("the provider", {"target": TARGET.model_copy(update={"provider": "local"})}),
    ("the address", {"target": TARGET.model_copy(update={"base_url": "http://h"})}),
    ("the mock", {"target": TARGET.model_copy(update={"use_mock": True})}),
    ("a source", {"sources": [Source.from_text("x")]}),
    *[
        (name, {"options": Options(**{name: value})})
        for name, value in {
            "system_instruction": "Be brief.",
            "response_schema": {"type": "object"},
            "tools": [{"name": "f"}],
            "temperature": 0.5,
            "top_p": 0.5,
            "reasoning_effort": "low",
            "reasoning_budget_tokens": 0,
            "max_tokens": 100,
            "cache": CacheHandle(name="c", model=TARGET.model, provider="gemini", expires_at=2e9),
            "provider_options": {"gemini": {"seed": 1}},
        }.items()
    ],
    ("tool_choice", {"options": Options(tools=[{"name": "f"}], tool_choice="required")}),
]


def test_whatever_can_change_the_answer_changes_the_name() -> None:
    """One change each, and no two the same."""
    names = [identities()[0], *[identities(**changes)[0] for _, changes in CHANGED]]
    assert len(set(names)) == len(CHANGED) + 1


def test_a_system_instruction_may_be_blank_but_not_unsaid() -> None:
    """Empty and absent are two things that a provider may tell apart."""
    assert identities(options=Options(system_instruction="")) != identities()


def test_the_shape_counts_and_not_its_name() -> None:
    """A model, its import string and its JSON Schema ask for the same."""
    by_name = Options(response_schema="pollux_flows.result:ToolCall")
    by_shape = Options(response_schema=by_name.response_json_schema())
    by_class = Options(response_schema=by_name.response_model())
    assert identities(options=by_name) == identities(options=by_shape) == identities(options=by_class)


def test_only_the_active_providers_options_count() -> None:
    """The others' are not sent."""
    assert identities(options=Options(provider_options={"openai": {"seed": 1}})) == identities()
    assert identities(options=Options(provider_options={"gemini": {"seed": 1}})) != identities()


def test_what_only_costs_does_not_count() -> None:
    """Caching changes the bill, not the answer."""
    assert identities(options=Options(implicit_caching=False)) == identities()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_geminis_hints_count_for_gemini_only(provider: ProviderName) -> None:
    """Others never see them."""
    whole = Source.from_youtube("https://youtu.be/x")
    page = Source.from_uri("https://h")
    for plain, hinted in (
        (whole, whole.with_gemini_video_settings(fps=1)),
        (page, page.with_gemini_url_context()),
    ):
        differs = source_identity(plain, provider) != source_identity(hinted, provider)
        assert differs == (provider == "gemini")
        target = Target(provider=provider, model="m")
        named = [[source_identity(source, provider)] for source in (plain, hinted)]
        differs = request_identity(target, Options(), named[0]) != request_identity(target, Options(), named[1])
        assert differs == (provider == "gemini")


# --- Cache handles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ago", [0.0, 1.0, 3600.0])
def test_an_expired_handle_is_refused_before_anything_is_sent(ago: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the very second, too; the error says for how long it has been gone and what to do."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    handle = CacheHandle(name="caches/1", model=TARGET.model, provider="gemini", expires_at=1_000_000.0 - ago)
    with refused(ConfigurationError, "caches/1 expired", f"{ago:.0f} seconds ago", "create_cache"):
        plan(options=Options(cache=handle))


def test_a_living_handle_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to its last moment."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    handle = CacheHandle(name="caches/1", model=TARGET.model, provider="gemini", expires_at=1_000_000.1)
    assert plan(options=Options(cache=handle)).options.cache == handle


def test_a_plan_says_no_more_than_its_json() -> None:
    """It is what tasks are given: plain data, keys nowhere."""
    made = plan(["Why?"], sources=[Source.from_text("x")])
    assert set(json.loads(made.model_dump_json())) == {"target", "options", "sources", "contents", "calls", "sharing"}
