"""The provider matrix, and the gate that refuses unsupported requests before anything is sent.

The tables here are copied from the seeds' page *Provider Capabilities*, not from the code, except for YouTube, which
OpenAI and Anthropic cannot open.
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

# For each provider a model with all of its capabilities.
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
    (row.split()[0], provider, cell)
    for row in PAGE.strip().splitlines()
    for provider, cell in zip(PROVIDERS, row.split()[1:], strict=True)
]
# The options that ask for a capability.
OPTIONS: dict[str, dict[str, Any]] = {
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


def make_target(provider: ProviderName, model: str | None = None) -> Target:
    return Target(provider=provider, model=model or MODELS[provider])


def check_options(
    provider: ProviderName, *, model: str | None = None, sources: list[Source] | None = None, **options: Any
) -> None:
    check(make_target(provider, model), Options(**options), sources or [])


# --- The matrix ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("capability", "provider", "expected"), CELLS)
def test_the_matrix_equals_the_page_of_the_seeds(capability: str, provider: ProviderName, expected: str) -> None:
    """Each cell is compared; a ⚠️ on the page is `model`, as the model, the route or the server decides."""
    assert support(provider, capability) == expected


def test_sampling_is_the_only_capability_that_is_not_on_the_page() -> None:
    """Newer models of Anthropic, which refuse a temperature, appeared after the page."""
    assert set(MATRIX) - {capability for capability, _, _ in CELLS} == {"sampling"}
    assert [support(provider, "sampling") for provider in PROVIDERS] == ["yes", "model", "no", "yes", "yes"]


@pytest.mark.parametrize(("capability", "provider", "expected"), CELLS)
def test_an_unsupported_capability_is_an_error_with_a_hint(
    capability: str, provider: ProviderName, expected: str
) -> None:
    """The error names the provider and the capability, and its hint an alternative."""
    if expected != "no":
        require(provider, capability)
        return
    if capability == "automatic_caching":  # this is never asked for
        return
    with expect_error(ConfigurationError, f"Provider {provider!r} does not support", capability) as caught:
        require(provider, capability)
    assert caught.value.hint


@pytest.mark.parametrize(("capability", "provider", "expected"), [cell for cell in CELLS if cell[0] in OPTIONS])
def test_options_are_refused_exactly_if_the_provider_does_not_support_them(
    capability: str, provider: ProviderName, expected: str
) -> None:
    if expected == "no":
        with expect_error(ConfigurationError, capability) as caught:
            check_options(provider, **OPTIONS[capability])
        assert caught.value.hint
    else:
        check_options(provider, **OPTIONS[capability])


@pytest.mark.parametrize(("capability", "provider", "expected"), [cell for cell in CELLS if cell[0] in SOURCES])
def test_sources_are_refused_exactly_if_the_provider_cannot_read_them(
    capability: str, provider: ProviderName, expected: str
) -> None:
    """The form in which a provider takes a source is checked later, when the source has been read."""
    for source in SOURCES[capability]:
        if expected != "no":
            check_options(provider, sources=[Source.from_text("fine"), source])
            continue
        with expect_error(ConfigurationError, f"does not support {MATRIX[capability].title}") as caught:
            check_options(provider, sources=[Source.from_text("fine"), source])
        assert caught.value.hint


@pytest.mark.parametrize("provider", PROVIDERS)
def test_text_and_json_sources_are_supported_everywhere(provider: ProviderName) -> None:
    """A system instruction and max_tokens are supported as well."""
    sources = [Source.from_text("hi"), Source.from_json({"n": 1})]
    check_options(provider, sources=sources, system_instruction="Be brief.", max_tokens=100)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.5}])
def test_sampling_options_are_refused_only_for_anthropic(provider: ProviderName, options: dict[str, Any]) -> None:
    """A temperature of 0 counts as set."""
    if provider == "anthropic":
        with expect_error(ConfigurationError, "sampling", "Leave temperature and top_p out"):
            check_options(provider, **options)
    else:
        check_options(provider, model="gpt-4.1-mini" if provider == "openai" else None, **options)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_implicit_caching_may_be_disabled_everywhere(provider: ProviderName) -> None:
    """The value False needs no support."""
    check_options(provider, implicit_caching=False)


@pytest.mark.parametrize("provider", [provider for provider in PROVIDERS if provider != "gemini"])
async def test_cache_handles_are_refused_for_other_providers_than_gemini(provider: ProviderName) -> None:
    """Both `create_cache` and a handle in the options are refused before any request."""
    config = Config(provider=provider, model="m", api_key="sk-1", base_url="http://127.0.0.1:9")
    with expect_error(ConfigurationError, f"Provider {provider!r} does not support", "persistent_cache", "gemini"):
        await create_cache([Source.from_text("hello")], config=config)
    handle = CacheHandle(name="c", model=MODELS[provider], provider=provider, expires_at=2e9)
    with expect_error(ConfigurationError, "persistent_cache"):
        check_options(provider, cache=handle)


async def test_a_refusal_comes_before_any_request() -> None:
    """Nothing listens at the address, so a request would raise another error."""
    config = Config(provider="openai", model="gpt-5-mini", api_key="sk-1", base_url="http://127.0.0.1:9")
    with expect_error(ConfigurationError, "reasoning_budget"):
        await run("Hi", config=config, options=Options(reasoning_budget_tokens=1024))


# --- Cache handles ------------------------------------------------------------------------------------------

HANDLE = CacheHandle(name="caches/1", model=MODELS["gemini"], provider="gemini", expires_at=2e9)


def test_options_that_are_not_part_of_a_cache_are_allowed_beside_a_handle() -> None:
    check_options(
        "gemini", cache=HANDLE, temperature=0.5, max_tokens=10, response_schema=SCHEMA, reasoning_effort="low"
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("system_instruction", {"system_instruction": "Be brief."}),
        ("system_instruction", {"system_instruction": ""}),
        ("tools", {"tools": [TOOL]}),
        ("tools", {"tools": []}),
        ("tools", {"tools": [TOOL], "tool_choice": "auto"}),
        ("sources", {"sources": [Source.from_text("")]}),
    ],
)
def test_options_that_belong_into_the_cache_are_refused_beside_a_handle(name: str, options: dict[str, Any]) -> None:
    """Gemini would refuse such a request; the hint says to pass them to create_cache."""
    with expect_error(ConfigurationError, f"{name} cannot go along with a cache handle", f"create_cache({name}=…)"):
        check_options("gemini", cache=HANDLE, **options)


@pytest.mark.parametrize("change", [{"provider": "openai"}, {"model": "gemini-2.5-flash"}])
def test_a_handle_of_another_provider_or_model_is_refused(change: dict[str, Any]) -> None:
    """The error names the provider and model of the handle."""
    with expect_error(ConfigurationError, "The cache handle caches/1 belongs to", "make another with create_cache"):
        check_options("gemini", cache=HANDLE.model_copy(update=change))


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


def make_id(value: Any) -> str | None:
    return re.sub(r"[^\w.=]+", " ", str(value)).strip()[:60] if isinstance(value, dict) else None


@pytest.mark.parametrize(("provider", "model", "options", "words"), REFUSED, ids=make_id)
def test_options_that_a_model_would_refuse_are_refused_before_the_call(
    provider: ProviderName, model: str, options: dict[str, Any], words: str
) -> None:
    """The error names the reason, and its hint an alternative."""
    with expect_error(ConfigurationError, words) as caught:
        check_options(provider, model=model, **options)
    assert caught.value.hint


@pytest.mark.parametrize(("provider", "model", "options"), ALLOWED, ids=make_id)
def test_options_that_a_model_may_support_are_not_refused(
    provider: ProviderName, model: str, options: dict[str, Any]
) -> None:
    """For an unknown model, the provider decides."""
    check_options(provider, model=model, **options)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_mock_refuses_the_same_options_as_its_provider(provider: ProviderName) -> None:
    """A request that works with the mock is not refused with the real provider."""
    mock = Target(provider=provider, model=MODELS[provider], use_mock=True)
    for capability, options in OPTIONS.items():
        refusals: list[str] = []
        for target in (make_target(provider), mock):
            try:
                check(target, Options(**options), [])
                refusals.append("")
            except PolluxError as error:
                refusals.append(str(error))
        assert refusals[0] == refusals[1], capability
