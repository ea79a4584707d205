"""Text prompts: the requests that each provider receives, and the answers returned."""

from __future__ import annotations

from typing import Any

import pytest

from pollux_flows import ConfigurationError, Options, Source, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.pipeline.extract import extract_envelope
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.simulator import Simulator
from tests.executing import execute_plan
from tests.loopback import KEY, MODELS, MakeConfig, asked, every_provider, sent

LONG_PROMPT = "Tell me all about the sea, its waves, its depths, its storms and the ships on it. " * 3


def read_user_texts(provider: ProviderName, body: dict[str, Any]) -> list[str]:
    """Return the texts of the user turn."""
    if provider == "gemini":
        return [part["text"] for part in body["contents"][0]["parts"]]
    if provider == "openai":
        return [part["text"] for part in body["input"][0]["content"]]
    content = body["messages"][-1]["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content]


def read_system_text(provider: ProviderName, body: dict[str, Any]) -> str | None:
    if provider == "gemini":
        return "".join(part["text"] for part in body.get("systemInstruction", {}).get("parts", [])) or None
    if provider in {"openai", "anthropic"}:
        return body.get("instructions" if provider == "openai" else "system")
    return next((message["content"] for message in body["messages"] if message["role"] == "system"), None)


@every_provider
async def test_a_prompt_is_answered(provider: ProviderName, config: MakeConfig) -> None:
    envelope = await run("What is the sea?", config=config(provider))
    assert envelope.answers == ["Simulated answer to: What is the sea?"]
    assert envelope.status == "ok"


@every_provider
async def test_sources_come_before_the_prompt(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Prompt caches match a common prefix."""
    sources = [Source.from_text("first source"), Source.from_json({"n": 1})]
    await run_many("the prompt", sources=sources, config=config(provider))
    texts = read_user_texts(provider, sent(sim))
    expected = ["first source", '{"n": 1}', "the prompt"]
    assert texts == (["\n\n".join(expected)] if provider == "local" else expected)


@every_provider
async def test_source_identifiers_are_not_sent(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """An identifier is a name for the caller's use."""
    await run("p", source=Source.from_text("content", identifier="secret-name"), config=config(provider))
    assert "secret-name" not in str(sent(sim))


@every_provider
async def test_a_source_without_a_prompt_is_sent(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    await run(source=Source.from_text("Only this."), config=config(provider))
    assert read_user_texts(provider, sent(sim)) == ["Only this."]


@every_provider
async def test_the_system_instruction_is_sent_in_its_own_field(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    await run("p", config=config(provider), options=Options(system_instruction="Be brief."))
    assert read_system_text(provider, sent(sim)) == "Be brief."


@every_provider
async def test_an_empty_system_instruction_is_not_sent(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Some providers would refuse it."""
    await run("p", config=config(provider), options=Options(system_instruction=""))
    assert read_system_text(provider, sent(sim)) is None


@pytest.mark.parametrize("provider", ["gemini", "openai", "openrouter", "local"])
async def test_sampling_options_are_sent_including_zero(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    await run("p", config=config(provider), options=Options(temperature=0.0, top_p=0.5))
    body = sent(sim)
    body_fields = body["generationConfig"] if provider == "gemini" else body
    assert body_fields["temperature"] == 0
    assert body_fields["topP" if provider == "gemini" else "top_p"] == 0.5


@pytest.mark.parametrize("name", ["temperature", "top_p"])
async def test_sampling_options_are_refused_for_anthropic(name: str, config: MakeConfig, sim: Simulator) -> None:
    """Anthropic's API has dropped both options."""
    with pytest.raises(ConfigurationError) as caught:
        await run("p", config=config("anthropic"), options=Options(**{name: 0.5}))
    assert "Leave temperature and top_p out" in str(caught.value.hint)
    assert sim.requests == []


@every_provider
async def test_max_tokens_truncates_the_answer_with_a_warning(provider: ProviderName, config: MakeConfig) -> None:
    envelope = await run(LONG_PROMPT, config=config(provider), options=Options(max_tokens=16))
    assert 0 < len(envelope.text) <= 16 * 4
    assert envelope.metrics["finish_reasons"] == ["max_tokens"]
    assert envelope.status == "partial"
    (warning,) = envelope.diagnostics["warnings"]
    assert "max_tokens" in warning


@every_provider
async def test_unset_options_are_not_sent(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Unset options use the provider's default."""
    await run_many(["p", "q"], config=config(provider))
    expected = {
        "gemini": {"contents"},
        "openai": {"model", "input"},
        "anthropic": {"model", "messages", "max_tokens"},
        "openrouter": {"model", "messages"},
        "local": {"model", "messages"},
    }[provider]
    for entry in asked(sim):
        assert {name for name, value in entry.body.items() if value != {}} == expected


@every_provider
async def test_the_key_is_sent_only_in_its_header(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """No body, path or answer contains it."""
    envelope = await run("p", config=config(provider))
    assert KEY not in str(sim.requests)
    assert KEY not in envelope.model_dump_json()


RAW: dict[ProviderName, dict[str, Any]] = {
    "gemini": {"top_k": 7},
    "openai": {"metadata": {"run": "a"}},
    "anthropic": {"metadata": {"user_id": "u"}},
    "openrouter": {"seed": 7},
    "local": {"seed": 7},
}


@every_provider
async def test_only_the_provider_options_of_the_active_provider_are_sent(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    others = {name: {"never": "sent"} for name in MODELS if name != provider}
    options = Options(provider_options={**others, provider: RAW[provider]})
    await run("p", config=config(provider), options=options)
    body = sent(sim)
    if provider == "gemini":
        assert body["generationConfig"]["topK"] == 7
    else:
        assert RAW[provider].items() <= body.items()
    assert "never" not in str(body)


DUPLICATE_FIELDS: dict[ProviderName, str] = {
    "gemini": "max_output_tokens",
    "openai": "max_output_tokens",
    "anthropic": "max_tokens",
    "openrouter": "max_tokens",
    "local": "max_tokens",
}


@every_provider
async def test_an_option_set_again_in_provider_options_is_refused(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    options = Options(max_tokens=100, provider_options={provider: {DUPLICATE_FIELDS[provider]: 50}})
    with pytest.raises(ConfigurationError, match="set already"):
        await run("p", config=config(provider), options=options)
    assert asked(sim) == []


async def test_gemini_provider_options_take_both_spellings(config: MakeConfig, sim: Simulator) -> None:
    """maxOutputTokens and max_output_tokens are one field: setting it twice is refused."""
    raw = {"gemini": {"maxOutputTokens": 50}}
    await run("p", config=config("gemini"), options=Options(provider_options=raw))
    assert sent(sim)["generationConfig"]["maxOutputTokens"] == 50
    with pytest.raises(ConfigurationError, match="set already"):
        await run("p", config=config("gemini"), options=Options(max_tokens=100, provider_options=raw))
    assert len(asked(sim)) == 1


async def test_an_unknown_field_in_gemini_provider_options_is_refused(config: MakeConfig, sim: Simulator) -> None:
    options = Options(provider_options={"gemini": {"top_kk": 7}})
    with pytest.raises(ConfigurationError, match="top_kk"):
        await run("p", config=config("gemini"), options=options)
    assert sim.requests == []


@pytest.mark.parametrize(
    ("provider", "name"),
    [("openai", "stream"), ("openai", "background"), ("anthropic", "stream"), ("local", "stream")],
)
async def test_provider_options_for_streaming_are_refused(
    provider: ProviderName, name: str, config: MakeConfig, sim: Simulator
) -> None:
    """A streamed answer would be billed and could not be read."""
    options = Options(provider_options={provider: {name: True}})
    with pytest.raises(ConfigurationError, match=name):
        await run("p", config=config(provider), options=options)
    assert sim.requests == []


async def test_anthropic_caches_a_single_call_but_no_fan_out_by_default(config: MakeConfig, sim: Simulator) -> None:
    """A cache write costs extra, and concurrent calls would each pay for one."""
    await run("p", config=config("anthropic"))
    await run_many(["a", "b"], config=config("anthropic"))
    await run("p", config=config("anthropic"), options=Options(implicit_caching=False))
    await run_many(["a", "b"], config=config("anthropic"), options=Options(implicit_caching=True))
    marked = ["cache_control" in entry.body for entry in asked(sim)]
    assert marked == [True, False, False, False, True, True]


@pytest.mark.parametrize(("implicit", "marked"), [(None, False), (True, True), (False, False)])
async def test_anthropic_caches_a_broadcast_only_on_request(
    implicit: bool | None, marked: bool, config: MakeConfig, sim: Simulator
) -> None:
    """One prompt over three sources shares no prefix: three cache writes, and no read."""
    settings, options = config("anthropic"), Options(implicit_caching=implicit)
    sources = [Source.from_text(text) for text in "abc"]
    plan = make_plan(make_request("p", target=settings.target, sources=sources, options=options, each_source=True))
    results = await execute_plan(plan, settings)
    assert ["cache_control" in entry.body for entry in asked(sim)] == [marked] * 3
    envelope = extract_envelope(plan.about(0), results[:1], duration_s=0.0)
    assert envelope.metrics["cache_mode"] == ("implicit" if marked else "none")


@pytest.mark.parametrize("provider", ["gemini", "openai", "openrouter", "local"])
async def test_implicit_caching_true_is_refused_for_other_providers_than_anthropic(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """`implicit_caching=False` is accepted."""
    with pytest.raises(ConfigurationError, match="implicit_caching"):
        await run("p", config=config(provider), options=Options(implicit_caching=True))
    assert sim.requests == []
    await run("p", config=config(provider), options=Options(implicit_caching=False))


@pytest.mark.parametrize(
    ("provider", "raw"),
    [("local", {"n": 2}), ("gemini", {"candidate_count": 2}), ("gemini", {"http_options": {"base_url": "http://x"}})],
)
async def test_provider_options_for_several_answers_or_another_address_are_refused(
    provider: ProviderName, raw: dict[str, Any], config: MakeConfig, sim: Simulator
) -> None:
    """A second answer would be billed and dropped; another address would receive the key."""
    with pytest.raises(ConfigurationError, match=next(iter(raw))):
        await run("Hi.", config=config(provider), options=Options(provider_options={provider: raw}))
    assert sim.requests == []


async def test_a_cache_control_of_the_caller_is_used(config: MakeConfig, sim: Simulator) -> None:
    raw = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    await run("Hi.", config=config("anthropic"), options=Options(provider_options={"anthropic": raw}))
    assert sim.requests[0].body["cache_control"] == raw["cache_control"]


async def test_an_empty_source_is_refused_for_anthropic(config: MakeConfig, sim: Simulator) -> None:
    """Anthropic answers it with a 400."""
    with pytest.raises(ConfigurationError, match="empty text"):
        await run("Hi.", source=Source.from_text("", identifier="nothing"), config=config("anthropic"))
    assert sim.requests == []


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_text_beyond_the_context_of_any_model_is_refused(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The text of a file has this limit, too."""
    with pytest.raises(ConfigurationError, match="fits no model"):
        await run("Why?", source=Source.from_text("x" * (11 * 2**20)), config=config(provider))
    assert sim.requests == []
