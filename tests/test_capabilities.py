"""The provider matrix, and the one gate that reads it: what cannot be answered is refused before anything is sent.

The tables here are typed from the seeds' page *Provider Capabilities*, not taken from the code; but for YouTube, which
OpenAI and Anthropic have no way to open.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from pollux_flows import CacheHandle, Config, ConfigurationError, Options, Source, create_cache, run
from pollux_flows.capabilities import MATRIX, check, require, support
from pollux_flows.config import PROVIDERS, ProviderName, Target
from pollux_flows.errors import PolluxError
from tests.documents import expect_error

# A model of each provider that can do whatever its provider can.
MODELS: dict[ProviderName, str] = {
    "gemini": "gemini-3-pro",
    "openai": "gpt-5-mini",
    "anthropic": "claude-opus-4-5",
    "openrouter": "openai/gpt-5-mini",
    "local": "llama",
}
TOOL = {"name": "get_weather", "parameters": {"type": "object"}}
SCHEMA = {"type": "object", "properties": {"total": {"type": "integer"}}}

#                      gemini openai anthropic openrouter local
PAGE = """
text                    yes    yes    yes       yes        yes
many_prompts            yes    yes    yes       yes        yes
local_files             yes    yes    yes       yes        no
pdf_urls                yes    yes    yes       model      no
image_urls              yes    yes    yes       model      no
youtube                 yes    no     no        no         no
persistent_cache        yes    no     no        no         no
implicit_caching        no     no     yes       no         no
automatic_caching       yes    yes    no        model      model
structured_output       yes    yes    yes       model      yes
reasoning_output        yes    yes    yes       model      model
reasoning_effort        yes    yes    yes       model      no
reasoning_budget        yes    no     yes       no         no
deferred                yes    yes    yes       no         no
tools                   yes    yes    yes       model      no
conversation            yes    yes    yes       yes        yes
tool_results            yes    yes    yes       model      no
"""
CELLS = [
    (row.split()[0], provider, said)
    for row in PAGE.strip().splitlines()
    for provider, said in zip(PROVIDERS, row.split()[1:], strict=True)
]
# How each capability is asked for, where it is asked for in options.
ASKED: dict[str, dict[str, Any]] = {
    "implicit_caching": {"implicit_caching": True},
    "structured_output": {"response_schema": SCHEMA},
    "reasoning_effort": {"reasoning_effort": "high"},
    "reasoning_budget": {"reasoning_budget_tokens": 2048},
    "tools": {"tools": [TOOL], "tool_choice": "auto"},
}
SOURCES: dict[str, list[Source]] = {
    "local_files": [Source(source_type="file", uri="report.pdf")],
    "pdf_urls": [Source.from_arxiv("2301.07041"), Source.from_uri("https://h/a.pdf", mime_type="application/pdf")],
    "image_urls": [Source.from_uri("https://h/a.png", mime_type="image/png")],
    "youtube": [Source.from_youtube("https://youtu.be/x")],
}


def target(provider: ProviderName, model: str | None = None) -> Target:
    return Target(provider=provider, model=model or MODELS[provider])


def gate(
    provider: ProviderName, *, model: str | None = None, sources: list[Source] | None = None, **asked: Any
) -> None:
    check(target(provider, model), Options(**asked), sources or [])


# --- The matrix ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("capability", "provider", "said"), CELLS)
def test_the_matrix_is_the_page(capability: str, provider: ProviderName, said: str) -> None:
    """Cell by cell; ⚠️ is `model`: the model, the route or the server decides."""
    assert support(provider, capability) == said


def test_only_sampling_is_not_on_the_page() -> None:
    """Anthropic stopped taking temperatures after it was written."""
    assert set(MATRIX) - {capability for capability, _, _ in CELLS} == {"sampling"}
    assert [support(provider, "sampling") for provider in PROVIDERS] == ["yes", "model", "no", "yes", "yes"]


@pytest.mark.parametrize(("capability", "provider", "said"), CELLS)
def test_every_no_is_an_error_with_a_way_out(capability: str, provider: ProviderName, said: str) -> None:
    """It names the provider and what it cannot do, and the hint says what to do instead."""
    if said != "no":
        require(provider, capability)
        return
    if capability == "automatic_caching":  # nobody asks for it: it happens
        return
    with expect_error(ConfigurationError, f"Provider {provider!r} does not support", capability) as caught:
        require(provider, capability)
    assert caught.value.hint


@pytest.mark.parametrize(("capability", "provider", "said"), [cell for cell in CELLS if cell[0] in ASKED])
def test_the_gate_lets_through_what_the_provider_can(capability: str, provider: ProviderName, said: str) -> None:
    """And nothing else."""
    if said == "no":
        with expect_error(ConfigurationError, capability) as caught:
            gate(provider, **ASKED[capability])
        assert caught.value.hint
    else:
        gate(provider, **ASKED[capability])


@pytest.mark.parametrize(("capability", "provider", "said"), [cell for cell in CELLS if cell[0] in SOURCES])
def test_sources_that_a_provider_cannot_read_are_refused(capability: str, provider: ProviderName, said: str) -> None:
    """The others pass; which of them a provider takes in which form is looked at once they have been read."""
    for source in SOURCES[capability]:
        if said != "no":
            gate(provider, sources=[Source.from_text("fine"), source])
            continue
        with expect_error(ConfigurationError, f"does not support {MATRIX[capability].title}") as caught:
            gate(provider, sources=[Source.from_text("fine"), source])
        assert caught.value.hint


@pytest.mark.parametrize("provider", PROVIDERS)
def test_text_and_json_go_everywhere(provider: ProviderName) -> None:
    """With all that any provider understands."""
    sources = [Source.from_text("hi"), Source.from_json({"n": 1})]
    gate(provider, sources=sources, system_instruction="Be brief.", max_tokens=100)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("asked", [{"temperature": 0.0}, {"top_p": 0.5}])
def test_sampling_is_the_models_business_or_refused(provider: ProviderName, asked: dict[str, Any]) -> None:
    """A temperature of 0 is a temperature."""
    if provider == "anthropic":
        with expect_error(ConfigurationError, "sampling", "Leave temperature and top_p out"):
            gate(provider, **asked)
    else:
        gate(provider, model="gpt-4.1-mini" if provider == "openai" else None, **asked)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_implicit_caching_can_be_declined_everywhere(provider: ProviderName) -> None:
    """False asks for nothing."""
    gate(provider, implicit_caching=False)


@pytest.mark.parametrize("provider", [provider for provider in PROVIDERS if provider != "gemini"])
async def test_only_gemini_keeps_a_cache(provider: ProviderName) -> None:
    """At `create_cache` already, as in the seeds, before any network."""
    config = Config(provider=provider, model="m", api_key="sk-1", base_url="http://127.0.0.1:9")
    with expect_error(ConfigurationError, f"Provider {provider!r} does not support", "persistent_cache", "gemini"):
        await create_cache([Source.from_text("hello")], config=config)
    handle = CacheHandle(name="c", model=MODELS[provider], provider=provider, expires_at=2e9)
    with expect_error(ConfigurationError, "persistent_cache"):
        gate(provider, cache=handle)


async def test_a_refusal_comes_before_any_network() -> None:
    """Nothing listens there, and nobody finds out."""
    config = Config(provider="openai", model="gpt-5-mini", api_key="sk-1", base_url="http://127.0.0.1:9")
    with expect_error(ConfigurationError, "reasoning_budget"):
        await run("Hi", config=config, options=Options(reasoning_budget_tokens=1024))


# --- Cache handles ------------------------------------------------------------------------------------------

HANDLE = CacheHandle(name="caches/1", model=MODELS["gemini"], provider="gemini", expires_at=2e9)


def test_a_handle_goes_with_all_that_it_does_not_hold() -> None:
    """The prompt and how to answer it."""
    gate("gemini", cache=HANDLE, temperature=0.5, max_tokens=10, response_schema=SCHEMA, reasoning_effort="low")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("system_instruction", {"system_instruction": "Be brief."}),
        ("system_instruction", {"system_instruction": ""}),
        ("tools", {"tools": [TOOL]}),
        ("tools", {"tools": []}),
        ("tools", {"tools": [TOOL], "tool_choice": "auto"}),
        ("sources", {"sources": [Source.from_text("")]}),
    ],
)
def test_what_a_handle_holds_is_not_said_twice(name: str, asked: dict[str, Any]) -> None:
    """Gemini would refuse it; the hint says where it belongs."""
    with expect_error(ConfigurationError, f"{name} cannot go along with a cache handle", f"create_cache({name}=…)"):
        gate("gemini", cache=HANDLE, **asked)


@pytest.mark.parametrize("change", [{"provider": "openai"}, {"model": "gemini-2.5-flash"}])
def test_a_handle_belongs_to_one_provider_and_model(change: dict[str, Any]) -> None:
    """The error says to which."""
    with expect_error(ConfigurationError, "The cache handle caches/1 belongs to", "make another with create_cache"):
        gate("gemini", cache=HANDLE.model_copy(update=change))


# --- Model rules --------------------------------------------------------------------------------------------

TEMPERATURE = {"temperature": 0.5}
EFFORT = {"reasoning_effort": "high"}
BUDGET = {"reasoning_budget_tokens": 2048}
FORCED = {"tools": [TOOL], "tool_choice": "required"}
NAMED = {"tools": [TOOL], "tool_choice": {"name": "get_weather"}}
STRUCTURED = {"response_schema": SCHEMA}

REFUSED: list[tuple[ProviderName, str, dict[str, Any], str]] = [
    ("openai", "gpt-5", TEMPERATURE, "takes neither temperature nor top_p"),
    ("openai", "gpt-5-nano-2025-08-07", {"top_p": 0.5}, "takes neither temperature nor top_p"),
    ("openai", "o3-mini", TEMPERATURE, "takes neither temperature nor top_p"),
    ("openai", "gpt-4.1-nano", EFFORT, "does not reason"),
    ("openai", "gpt-4o", EFFORT, "does not reason"),
    ("openai", "gpt-3.5-turbo", EFFORT, "does not reason"),
    ("openai", "chatgpt-4o-latest", EFFORT, "does not reason"),
    ("openai", "gpt-5", {"max_tokens": 15}, "refuses max_tokens below 16"),
    ("anthropic", "claude-3-5-sonnet-latest", EFFORT, "does not reason"),
    ("anthropic", "claude-3-opus-20240229", BUDGET, "does not reason"),
    ("anthropic", "claude-3-haiku-20240307", {"reasoning_budget_tokens": 0}, "does not reason"),
    ("anthropic", "claude-3-7-sonnet-latest", STRUCTURED, "has no structured output"),
    ("anthropic", "claude-3-5-haiku-latest", STRUCTURED, "has no structured output"),
    ("anthropic", "claude-opus-4-7", BUDGET, "takes no reasoning_budget_tokens"),
    ("anthropic", "claude-opus-5", BUDGET, "takes no reasoning_budget_tokens"),
    ("anthropic", "claude-sonnet-5", BUDGET, "takes no reasoning_budget_tokens"),
    ("anthropic", "claude-opus-4-5", {"reasoning_effort": "max"}, "takes no reasoning_effort 'max'"),
    ("anthropic", "claude-opus-4-6", {"reasoning_effort": "xhigh"}, "takes no reasoning_effort 'xhigh'"),
    ("anthropic", "claude-opus-4-6", EFFORT | FORCED, "cannot think and be forced"),
    ("anthropic", "claude-opus-4-6", BUDGET | NAMED, "cannot think and be forced"),
    ("anthropic", "claude-opus-4-5", {"reasoning_budget_tokens": 1023}, "refuses a reasoning budget of 1023"),
    ("anthropic", "claude-opus-4-5", BUDGET | {"max_tokens": 2048}, "leaves no room within max_tokens=2048"),
    ("gemini", "gemini-2.5-flash", STRUCTURED | {"tools": [TOOL]}, "cannot call tools and answer in a schema"),
    ("gemini", "models/gemini-2.5-flash", STRUCTURED | {"tools": [TOOL]}, "cannot call tools and answer in a schema"),
    ("gemini", "gemini-2.0-flash", EFFORT, "does not think"),
    ("gemini", "gemini-1.5-pro", BUDGET, "does not think"),
    ("gemini", "gemma-3", EFFORT, "does not think"),
    ("gemini", "gemini-3-pro", {"reasoning_effort": "max"}, "takes no reasoning_effort"),
    ("openai", "gpt-5", {"reasoning_effort": "hard"}, "takes no reasoning_effort"),
    ("anthropic", "claude-opus-4-5", {"reasoning_effort": "minimal"}, "takes no reasoning_effort"),
    ("openrouter", "a/b", {"reasoning_effort": "hard"}, "takes no reasoning_effort"),
]
ALLOWED: list[tuple[ProviderName, str, dict[str, Any]]] = [
    ("openai", "gpt-4.1-nano", TEMPERATURE),
    ("openai", "gpt-5-chat-latest", TEMPERATURE),
    ("openai", "gpt-5-mini", {"reasoning_effort": "minimal", "max_tokens": 16}),
    ("openai", "o3-mini", EFFORT),
    ("openai", "my-own-model", TEMPERATURE | EFFORT),
    ("anthropic", "claude-3-7-sonnet-latest", BUDGET),
    ("anthropic", "claude-3-7-sonnet-latest", EFFORT),
    ("anthropic", "claude-sonnet-4-20250514", {"reasoning_effort": "max"}),
    ("anthropic", "claude-opus-4-20250514", EFFORT),
    ("anthropic", "claude-sonnet-4-5", {"reasoning_effort": "xhigh"}),
    ("anthropic", "claude-haiku-4-5", EFFORT),
    ("anthropic", "my-alias-of-a-claude", {"reasoning_effort": "max"}),
    ("anthropic", "claude-haiku-4-5", {"reasoning_budget_tokens": 63_999}),
    ("anthropic", "claude-3-haiku-20240307", {"max_tokens": 10}),
    ("anthropic", "claude-sonnet-4-5", BUDGET | STRUCTURED),
    ("anthropic", "claude-opus-4-5", EFFORT),
    ("anthropic", "claude-sonnet-4-6", {"reasoning_effort": "max"}),
    ("anthropic", "claude-opus-4-7", {"reasoning_effort": "xhigh"}),
    ("anthropic", "claude-opus-4-7", {"reasoning_budget_tokens": 0}),
    ("anthropic", "claude-opus-4-6", {"reasoning_budget_tokens": 0} | FORCED),
    ("anthropic", "claude-opus-4-6", EFFORT | {"tools": [TOOL], "tool_choice": "none"}),
    ("anthropic", "claude-opus-4-5", BUDGET | {"max_tokens": 2049}),
    ("anthropic", "claude-opus-4-5", {"reasoning_budget_tokens": 1024}),
    ("gemini", "gemini-3-pro", STRUCTURED | {"tools": [TOOL]}),
    ("gemini", "models/gemini-3-pro", STRUCTURED | {"tools": [TOOL]}),
    ("gemini", "gemini-2.5-flash", BUDGET | TEMPERATURE | STRUCTURED),
    ("openrouter", "anthropic/claude-3-haiku", TEMPERATURE | EFFORT | STRUCTURED),
    ("local", "gpt-5", TEMPERATURE | STRUCTURED),
]


def in_words(given: Any) -> str | None:
    return re.sub(r"[^\w.=]+", " ", str(given)).strip()[:60] if isinstance(given, dict) else None


@pytest.mark.parametrize(("provider", "model", "asked", "words"), REFUSED, ids=in_words)
def test_what_a_model_answers_with_a_400_is_refused_here(
    provider: ProviderName, model: str, asked: dict[str, Any], words: str
) -> None:
    """For nothing, with the reason and a way out."""
    with expect_error(ConfigurationError, words) as caught:
        gate(provider, model=model, **asked)
    assert caught.value.hint


@pytest.mark.parametrize(("provider", "model", "asked"), ALLOWED, ids=in_words)
def test_what_a_model_can_do_is_let_through(provider: ProviderName, model: str, asked: dict[str, Any]) -> None:
    """Also where nothing is known about it: then the provider decides."""
    gate(provider, model=model, **asked)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_mock_can_do_what_its_provider_can(provider: ProviderName) -> None:
    """And no more: what passes in the mock passes for real."""
    mock = Target(provider=provider, model=MODELS[provider], use_mock=True)
    for capability, asked in ASKED.items():
        refusals: list[str] = []
        for who in (target(provider), mock):
            try:
                check(who, Options(**asked), [])
                refusals.append("")
            except PolluxError as error:
                refusals.append(str(error))
        assert refusals[0] == refusals[1], capability
