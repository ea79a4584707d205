"""Request and Plan: validation of arguments, and calls with stable identities."""

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
from tests.documents import check_json_round_trip, expect_error

TARGET = Target(provider="gemini", model="gemini-2.5-flash-lite")
prompt_lists = st.lists(st.text(min_size=1).filter(str.strip), max_size=5)


def request(prompts: Any = "Why?", **changes: Any) -> Request:
    return make_request(prompts, **{"target": TARGET, **changes})


def plan(prompts: Any = "Why?", **changes: Any) -> Plan:
    return make_plan(request(prompts, **changes))


def identify(prompts: Any = "Why?", **changes: Any) -> list[str]:
    return [call.identity for call in plan(prompts, **changes).calls]


# --- Requests -----------------------------------------------------------------------------------------------


def test_a_string_is_one_prompt() -> None:
    """A string is not treated as a sequence of letters."""
    assert request("Why?").prompts == ["Why?"]
    assert request(("Why?", "How?")).prompts == ["Why?", "How?"]


def test_an_empty_list_of_prompts_makes_a_plan_without_calls() -> None:
    """A pipeline may produce an empty list."""
    assert plan([]).calls == []
    assert plan([], sources=[Source.from_text("x")]).calls == []


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u00a0"])
def test_a_blank_prompt_is_refused_by_its_index(blank: str) -> None:
    with expect_error(ConfigurationError, "prompts[1] is blank", "or leave it out"):
        request(["Why?", blank])


@pytest.mark.parametrize("blank", ["", [" "]])
def test_the_error_about_a_single_blank_prompt_has_no_index(blank: Any) -> None:
    with expect_error(ConfigurationError, "The prompt is blank"):
        request(blank)


@pytest.mark.parametrize("none", [None, [None], ["Why?", None]])
def test_a_call_without_a_prompt_needs_a_source(none: Any) -> None:
    """The prompt None stands for a call that sends only the sources."""
    assert None in request(none, sources=[Source.from_text("Describe the sea.")]).prompts
    with expect_error(ConfigurationError, "nothing to send: no prompt and no source"):
        request(none)


def test_a_cache_handle_without_a_prompt_is_refused() -> None:
    """Gemini requires a prompt beside a cache."""
    handle = CacheHandle(name="c", model=TARGET.model, provider="gemini", expires_at=time.time() + 60)
    with pytest.raises(ConfigurationError, match="Write a prompt"):
        request(None, options=Options(cache=handle))


@pytest.mark.parametrize(
    "wrong", [1, True, {"Why?": 1}, {"Why?"}, b"Why?", (letter for letter in "Why?"), iter(["Why?"]), object()]
)
def test_prompts_of_other_types_than_a_string_or_a_list_are_refused(wrong: Any) -> None:
    """A set has no order, and an iterator can be read only once."""
    with expect_error(ConfigurationError, "prompts cannot be a", type(wrong).__name__, "a list of strings"):
        request(wrong)


@pytest.mark.parametrize("wrong", [1, b"Why?", ["Why?"], Source.from_text("Why?")])
def test_a_prompt_that_is_no_string_is_refused_by_its_index(wrong: Any) -> None:
    with expect_error(ConfigurationError, "prompts[1] is a", type(wrong).__name__):
        request(["Why?", wrong])


def test_a_prompt_with_a_lone_surrogate_is_refused() -> None:
    """A lone surrogate cannot be encoded in a request."""
    with expect_error(ConfigurationError, "prompts.1", "half a character"):
        request(["Why?", "\ud800"])


@pytest.mark.parametrize("wrong", [None, "text", Source.from_text("x"), {Source.from_text("x")}, 1, iter([])])
def test_sources_that_are_no_list_are_refused(wrong: Any) -> None:
    """A single Source instead of a list is the most common mistake."""
    with expect_error(SourceError, "sources is a", "Pass a list of Source objects"):
        request(sources=wrong)


@pytest.mark.parametrize("wrong", [None, "text", b"x", {"source_type": "text", "text": "x"}])
def test_an_invalid_source_is_refused_by_its_index(wrong: Any) -> None:
    """The error names a function that makes a Source."""
    with expect_error(SourceError, "sources[1] is a", "Source.from_text"):
        request(sources=[Source.from_text("x"), wrong])


@pytest.mark.parametrize("wrong", [{}, {"temperature": 1}, "fast", 1])
def test_options_of_another_type_are_refused(wrong: Any) -> None:
    """A dict is refused because its fields are not validated."""
    with expect_error(ConfigurationError, "options is a", "Pass Options(…)"):
        request(options=wrong)


@pytest.mark.parametrize("wrong", [None, "gemini", {"provider": "gemini"}, {"provider": "azure", "model": "m"}])
def test_an_invalid_target_is_refused(wrong: Any) -> None:
    """The error is a ConfigurationError."""
    with expect_error(ConfigurationError, "Target is not usable"):
        make_request("Why?", target=wrong)


def test_an_invalid_response_schema_is_refused_before_the_call() -> None:
    with expect_error(ConfigurationError, "response_schema is not a usable JSON Schema"):
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
    """A plain map of fields is a valid JSON Schema that describes nothing, so it is refused as well."""
    with expect_error(ConfigurationError, "tools[1].parameters (f)", "'properties'"):
        request(options=Options(tools=[{"name": "e"}, {"name": "f", "parameters": parameters}]))


@pytest.mark.parametrize(
    "parameters", [{}, {"title": "F"}, {"properties": {"city": {}}}, {"x-order": 1, "type": "object"}]
)
def test_parameters_of_a_tool_may_be_incomplete(parameters: dict[str, Any]) -> None:
    """Such a tool takes no arguments, or any arguments."""
    request(options=Options(tools=[{"name": "f", "parameters": parameters}]))


# --- Plans --------------------------------------------------------------------------------------------------


@given(prompt_lists)
def test_calls_are_in_the_order_of_the_prompts(prompts: list[str]) -> None:
    """Each prompt has one call, and calls are numbered from 0."""
    calls = plan(prompts).calls
    assert [call.prompt for call in calls] == prompts
    assert [call.index for call in calls] == list(range(len(prompts)))
    assert {call.source for call in calls} <= {None}


@given(prompt_lists)
def test_equal_requests_make_equal_plans(prompts: list[str]) -> None:
    """Another worker makes an equal plan from the JSON of the request."""
    made = request(prompts, sources=[Source.from_text("x")], options=Options(temperature=0.5))
    restored = Request.model_validate_json(made.model_dump_json())
    assert make_plan(restored) == make_plan(made)
    check_json_round_trip(make_plan(made))


def test_identities_are_stable_across_versions() -> None:
    """Saved answers are found by their identity. A change of identities makes all of them unfindable."""
    assert identify("Why?", sources=[Source.from_text("x")]) == [
        "9e8ad12ba4cdfc3fd6901f15f579c3d7ee981371cdb2a842a89df66d32534fdc"
    ]


@given(prompt_lists)
def test_every_call_of_a_plan_has_its_own_identity(prompts: list[str]) -> None:
    """Two equal prompts are two calls."""
    assert len(set(identify(prompts + prompts))) == 2 * len(prompts)


def test_the_occurrence_of_a_prompt_does_not_depend_on_other_prompts() -> None:
    """A run with a longer list of prompts finds the answers of a run with a shorter one."""
    why, how, why_again = identify(["Why?", "How?", "Why?"])
    assert identify(["Why?", "Why?"]) == [why, why_again]
    assert identify(["How?", "Why?"]) == [how, why]


def test_a_new_option_at_its_default_does_not_change_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade, saved answers are still found."""

    class Later(Options):
        seed: int | None = None

    before = request_identity(TARGET, Options(temperature=0.5), [])
    monkeypatch.setattr(identity, "OPTIONS_IN_KEY", identity.OPTIONS_IN_KEY | {"seed"})
    assert request_identity(TARGET, Later(temperature=0.5), []) == before
    assert request_identity(TARGET, Later(temperature=0.5, seed=1), []) != before


def test_a_broadcast_asks_each_prompt_about_each_source() -> None:
    """Calls are ordered by source, then by prompt, and have the identities of calls about a single source."""
    one, other = Source.from_text("one"), Source.from_text("other")
    grid = plan(["Why?", "How?"], sources=[one, other], each_source=True)
    assert [(call.index, call.source, call.prompt) for call in grid.calls] == [
        (0, 0, "Why?"),
        (1, 0, "How?"),
        (2, 1, "Why?"),
        (3, 1, "How?"),
    ]
    assert [call.identity for call in grid.calls] == [
        *identify(["Why?", "How?"], sources=[one]),
        *identify(["Why?", "How?"], sources=[other]),
    ]


def test_a_broadcast_without_sources_has_no_calls() -> None:
    assert plan(["Why?"], each_source=True).calls == []


def test_the_part_of_a_broadcast_about_one_source_is_a_plan() -> None:
    """The calls of the part have the same identities."""
    one, other = Source.from_text("one"), Source.from_text("other")
    grid = plan(["Why?", "How?"], sources=[one, other], each_source=True)
    part = grid.about(1)
    assert part.sources == [other]
    assert part.calls == grid.calls[2:]


def test_equal_sources_of_a_broadcast_have_calls_with_different_identities() -> None:
    """Each row of a broadcast gets its own answer."""
    same = Source.from_text("same")
    first, second = plan(["Why?"], sources=[same, same], each_source=True).calls
    assert (first.source, second.source) == (0, 1)
    assert first.identity != second.identity
    (single,) = plan(["Why?"], sources=[same], each_source=True).calls
    assert first.identity == single.identity


@pytest.mark.parametrize(
    ("prompts", "title"),
    [
        ([], "no calls"),
        (["a\n b"], "1. a b"),
        ([None], "1. (sources only)"),
        (["x" * 100], f"1. {'x' * 76}…"),
        (["a", "b"], "2 calls, 1 to 2"),
    ],
)
def test_the_title_of_a_plan_names_its_calls(prompts: list[str | None], title: str) -> None:
    """Task runs are named by this title: a single call by its prompt, and several calls by their numbers."""
    assert plan(prompts, sources=[Source.from_text("x")]).title == title


def test_the_title_of_a_call_about_one_source_names_the_source() -> None:
    source = Source.from_text("x", identifier="north")
    (part,) = plan(["Why?"], sources=[source], each_source=True).parts()
    assert part.title == "1. north · Why?"


@pytest.mark.parametrize(
    ("calls", "wanted", "sizes"),
    [(0, None, []), (3, None, [1, 1, 1]), (32, None, [1] * 32), (33, None, [4] * 8 + [1]), (100, 40, [40, 40, 20])],
)
def test_a_plan_is_divided_into_parts(calls: int, wanted: int | None, sizes: list[int]) -> None:
    """Up to 32 calls, each is a part; more calls are divided into at most ten parts."""
    complete = plan([f"p{n}" for n in range(calls)])
    parts = complete.parts(wanted)
    assert [len(part.calls) for part in parts] == sizes
    assert [call for part in parts for call in part.calls] == complete.calls
    assert all(part.sources is complete.sources and part.sharing == calls for part in parts)


# --- Identities of calls ------------------------------------------------------------------------------------


def test_the_identifier_of_a_source_does_not_change_the_identity() -> None:
    """Only the content of a source counts."""
    assert identify(sources=[Source.from_text("x", identifier="a")]) == identify(
        sources=[Source.from_text("x", identifier="b")]
    )


def test_the_order_of_sources_changes_the_identity() -> None:
    """The model reads the sources in order."""
    one, other = Source.from_text("one"), Source.from_text("other")
    assert identify(sources=[one, other]) != identify(sources=[other, one])


def test_the_boundaries_of_sources_and_prompts_change_the_identity() -> None:
    """Requests that divide the same text differently have different identities."""
    a, b, ab = Source.from_text("a"), Source.from_text("b"), Source.from_text("ab")
    cuts = [
        identify("ab"), identify("a", sources=[b]), identify("b", sources=[a]), identify("x", sources=[a, b]),
        identify("x", sources=[ab]), identify(None, sources=[ab]), identify("x", sources=[b, a]),
        identify("x", options=Options(system_instruction="ab")), identify("x", sources=[a, a, b]),
    ]  # fmt: skip
    assert len({cut[0] for cut in cuts}) == len(cuts)


def test_a_json_source_and_a_text_source_have_different_identities() -> None:
    """The provider gets the type of a source."""
    assert identify(sources=[Source.from_text("1")]) != identify(sources=[Source.from_json(1)])


CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("the prompt", {"prompts": "How?"}),
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


def test_everything_that_can_change_the_answer_changes_the_identity() -> None:
    """Each change leads to another identity."""
    names = [identify()[0], *[identify(**changes)[0] for _, changes in CHANGED]]
    assert len(set(names)) == len(CHANGED) + 1


def test_an_empty_system_instruction_and_none_have_different_identities() -> None:
    """A provider may distinguish them."""
    assert identify(options=Options(system_instruction="")) != identify()


def test_a_response_schema_counts_by_its_json_schema_in_the_identity() -> None:
    """A model, its import string and its JSON Schema have the same identity."""
    by_name = Options(response_schema="pollux_flows.result:ToolCall")
    by_shape = Options(response_schema=by_name.response_json_schema())
    by_class = Options(response_schema=by_name.response_model())
    assert identify(options=by_name) == identify(options=by_shape) == identify(options=by_class)


def test_only_options_for_the_active_provider_change_the_identity() -> None:
    """Options for other providers are not sent."""
    assert identify(options=Options(provider_options={"openai": {"seed": 1}})) == identify()
    assert identify(options=Options(provider_options={"gemini": {"seed": 1}})) != identify()


def test_implicit_caching_does_not_change_the_identity() -> None:
    """Caching changes the cost, not the answer."""
    assert identify(options=Options(implicit_caching=False)) == identify()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_hints_for_gemini_change_only_identities_for_gemini(provider: ProviderName) -> None:
    """The hints are not sent to other providers."""
    video = Source.from_youtube("https://youtu.be/x")
    page = Source.from_uri("https://h")
    for plain, hinted in (
        (video, video.with_gemini_video_settings(fps=1)),
        (page, page.with_gemini_url_context()),
    ):
        differs = source_identity(plain, provider) != source_identity(hinted, provider)
        assert differs == (provider == "gemini")
        target = Target(provider=provider, model="m")
        source_identities = [[source_identity(source, provider)] for source in (plain, hinted)]
        differs = request_identity(target, Options(), source_identities[0]) != request_identity(
            target, Options(), source_identities[1]
        )
        assert differs == (provider == "gemini")


# --- Cache handles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ago", [0.0, 1.0, 3600.0])
def test_an_expired_handle_is_refused_before_the_call(ago: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle that expires at this second counts as expired; the error says for how long, and what to do."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    handle = CacheHandle(name="caches/1", model=TARGET.model, provider="gemini", expires_at=1_000_000.0 - ago)
    with expect_error(ConfigurationError, "caches/1 expired", f"{ago:.0f} seconds ago", "create_cache"):
        plan(options=Options(cache=handle))


def test_a_handle_that_has_not_expired_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handle may expire immediately afterwards."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    handle = CacheHandle(name="caches/1", model=TARGET.model, provider="gemini", expires_at=1_000_000.1)
    assert plan(options=Options(cache=handle)).options.cache == handle


def test_the_json_of_a_plan_has_exactly_these_fields() -> None:
    """Tasks get this JSON, which has no key."""
    made = plan(["Why?"], sources=[Source.from_text("x")])
    assert set(json.loads(made.model_dump_json())) == {"target", "options", "sources", "contents", "calls", "sharing"}
