"""Text in, text out: what every provider is sent, and what comes back."""

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

LONG = "Tell me all about the sea, its waves, its depths, its storms and the ships on it. " * 3


def user_texts(provider: ProviderName, body: dict[str, Any]) -> list[str]:
    """What the user turn says, text by text."""
    if provider == "gemini":
        return [part["text"] for part in body["contents"][0]["parts"]]
    if provider == "openai":
        return [part["text"] for part in body["input"][0]["content"]]
    content = body["messages"][-1]["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content]


def system_text(provider: ProviderName, body: dict[str, Any]) -> str | None:
    if provider == "gemini":
        return "".join(part["text"] for part in body.get("systemInstruction", {}).get("parts", [])) or None
    if provider in {"openai", "anthropic"}:
        return body.get("instructions" if provider == "openai" else "system")
    return next((message["content"] for message in body["messages"] if message["role"] == "system"), None)


@every_provider
async def test_a_prompt_is_answered(provider: ProviderName, config: MakeConfig) -> None:
    """One prompt, one answer, and all is well."""
    envelope = await run("What is the sea?", config=config(provider))
    assert envelope.answers == ["Simulated answer to: What is the sea?"]
    assert envelope.status == "ok"


@every_provider
async def test_sources_come_before_the_prompt(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """The model reads first and is asked afterwards, which is also what prompt caches live on."""
    sources = [Source.from_text("first source"), Source.from_json({"n": 1})]
    await run_many("the prompt", sources=sources, config=config(provider))
    texts = user_texts(provider, sent(sim))
    wanted = ["first source", '{"n": 1}', "the prompt"]
    assert texts == (["\n\n".join(wanted)] if provider == "local" else wanted)


@every_provider
async def test_identifiers_stay_home(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """A source's identifier is a name for people: no provider sees it."""
    await run("p", source=Source.from_text("content", identifier="secret-name"), config=config(provider))
    assert "secret-name" not in str(sent(sim))


@every_provider
async def test_a_source_alone_is_enough(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Without a prompt, the sources are all that is said."""
    await run(source=Source.from_text("Only this."), config=config(provider))
    assert user_texts(provider, sent(sim)) == ["Only this."]


@every_provider
async def test_the_system_instruction_goes_where_it_belongs(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Each protocol has its own place for it."""
    await run("p", config=config(provider), options=Options(system_instruction="Be brief."))
    assert system_text(provider, sent(sim)) == "Be brief."


@every_provider
async def test_an_empty_system_instruction_is_none(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """An empty text in the system's place would be refused by some; it says nothing, so nothing is sent."""
    await run("p", config=config(provider), options=Options(system_instruction=""))
    assert system_text(provider, sent(sim)) is None


@pytest.mark.parametrize("provider", ["gemini", "openai", "openrouter", "local"])
async def test_sampling_reaches_those_who_take_it(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """temperature and top_p, also at their edges: 0 is a value, not an absence."""
    await run("p", config=config(provider), options=Options(temperature=0.0, top_p=0.5))
    body = sent(sim)
    given = body["generationConfig"] if provider == "gemini" else body
    assert given["temperature"] == 0
    assert given["topP" if provider == "gemini" else "top_p"] == 0.5


@pytest.mark.parametrize("name", ["temperature", "top_p"])
async def test_anthropic_takes_no_sampling(name: str, config: MakeConfig, sim: Simulator) -> None:
    """Its API dropped both: refused before any request, with a hint."""
    with pytest.raises(ConfigurationError) as caught:
        await run("p", config=config("anthropic"), options=Options(**{name: 0.5}))
    assert "Leave temperature and top_p out" in str(caught.value.hint)
    assert sim.requests == []


@every_provider
async def test_max_tokens_cuts_the_answer(provider: ProviderName, config: MakeConfig) -> None:
    """The limit holds everywhere, and a cut answer is kept and told."""
    envelope = await run(LONG, config=config(provider), options=Options(max_tokens=16))
    assert 0 < len(envelope.text) <= 16 * 4
    assert envelope.metrics["finish_reasons"] == ["max_tokens"]
    assert envelope.status == "partial"
    (warning,) = envelope.diagnostics["warnings"]
    assert "max_tokens" in warning


@every_provider
async def test_nothing_is_sent_that_nobody_asked_for(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """A bare prompt makes a bare request: what is left empty is left to the provider."""
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
async def test_the_key_opens_the_door_and_goes_nowhere_else(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """It travels in its header; no body, no path and no answer holds it."""
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
async def test_provider_options_join_the_request(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """The active provider's own fields are sent as they are, and nobody else's."""
    others = {name: {"never": "sent"} for name in MODELS if name != provider}
    options = Options(provider_options={**others, provider: RAW[provider]})
    await run("p", config=config(provider), options=options)
    body = sent(sim)
    if provider == "gemini":
        assert body["generationConfig"]["topK"] == 7
    else:
        assert RAW[provider].items() <= body.items()
    assert "never" not in str(body)


DOUBLED: dict[ProviderName, str] = {
    "gemini": "max_output_tokens",
    "openai": "max_output_tokens",
    "anthropic": "max_tokens",
    "openrouter": "max_tokens",
    "local": "max_tokens",
}


@every_provider
async def test_saying_a_thing_twice_is_refused(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """An option and a raw option for the same field: neither wins, and nothing is asked."""
    options = Options(max_tokens=100, provider_options={provider: {DOUBLED[provider]: 50}})
    with pytest.raises(ConfigurationError, match="set already"):
        await run("p", config=config(provider), options=options)
    assert asked(sim) == []


async def test_gemini_knows_both_spellings(config: MakeConfig, sim: Simulator) -> None:
    """maxOutputTokens is max_output_tokens: said alone it is sent, said twice it is refused."""
    raw = {"gemini": {"maxOutputTokens": 50}}
    await run("p", config=config("gemini"), options=Options(provider_options=raw))
    assert sent(sim)["generationConfig"]["maxOutputTokens"] == 50
    with pytest.raises(ConfigurationError, match="set already"):
        await run("p", config=config("gemini"), options=Options(max_tokens=100, provider_options=raw))
    assert len(asked(sim)) == 1


async def test_gemini_names_a_raw_field_it_does_not_have(config: MakeConfig, sim: Simulator) -> None:
    """A misspelt field is told before the request."""
    options = Options(provider_options={"gemini": {"top_kk": 7}})
    with pytest.raises(ConfigurationError, match="top_kk"):
        await run("p", config=config("gemini"), options=options)
    assert sim.requests == []


@pytest.mark.parametrize(
    ("provider", "name"),
    [("openai", "stream"), ("openai", "background"), ("anthropic", "stream"), ("local", "stream")],
)
async def test_no_raw_option_makes_an_answer_unreadable(
    provider: ProviderName, name: str, config: MakeConfig, sim: Simulator
) -> None:
    """A streamed answer would be paid for and read by nobody."""
    options = Options(provider_options={provider: {name: True}})
    with pytest.raises(ConfigurationError, match=name):
        await run("p", config=config(provider), options=options)
    assert sim.requests == []


async def test_anthropic_caches_a_lone_call_and_no_fan_out(config: MakeConfig, sim: Simulator) -> None:
    """A cache write costs extra: one call may pay it for those to come, many side by side may not."""
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
    """One prompt over three sources is three calls with nothing in common: three cache writes, and no read."""
    settings, options = config("anthropic"), Options(implicit_caching=implicit)
    sources = [Source.from_text(text) for text in "abc"]
    plan = make_plan(make_request("p", target=settings.target, sources=sources, options=options, each_source=True))
    found = await execute_plan(plan, settings)
    assert ["cache_control" in entry.body for entry in asked(sim)] == [marked] * 3
    envelope = extract_envelope(plan.about(0), found[:1], duration_s=0.0)
    assert envelope.metrics["cache_mode"] == ("implicit" if marked else "none")


@pytest.mark.parametrize("provider", ["gemini", "openai", "openrouter", "local"])
async def test_implicit_caching_is_a_switch_of_anthropic_only(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Turned on elsewhere it is refused; turned off it asks for nothing, and is fine."""
    with pytest.raises(ConfigurationError, match="implicit_caching"):
        await run("p", config=config(provider), options=Options(implicit_caching=True))
    assert sim.requests == []
    await run("p", config=config(provider), options=Options(implicit_caching=False))


@pytest.mark.parametrize(
    ("provider", "raw"),
    [("local", {"n": 2}), ("gemini", {"candidate_count": 2}), ("gemini", {"http_options": {"base_url": "http://x"}})],
)
async def test_no_raw_option_asks_for_what_would_be_lost(
    provider: ProviderName, raw: dict[str, Any], config: MakeConfig, sim: Simulator
) -> None:
    """A second answer would be paid for and dropped; another address would be told the key."""
    with pytest.raises(ConfigurationError, match=next(iter(raw))):
        await run("Hi.", config=config(provider), options=Options(provider_options={provider: raw}))
    assert sim.requests == []


async def test_a_callers_own_cache_control_wins(config: MakeConfig, sim: Simulator) -> None:
    """Over the one that we would have set by ourselves."""
    raw = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    await run("Hi.", config=config("anthropic"), options=Options(provider_options={"anthropic": raw}))
    assert sim.requests[0].body["cache_control"] == raw["cache_control"]


async def test_an_empty_source_is_refused_where_it_cannot_be_sent(config: MakeConfig, sim: Simulator) -> None:
    """Anthropic answers it with a 400."""
    with pytest.raises(ConfigurationError, match="empty text"):
        await run("Hi.", source=Source.from_text("", identifier="nothing"), config=config("anthropic"))
    assert sim.requests == []


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_more_text_than_any_model_takes_is_refused(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """As it is when it stands in a file."""
    with pytest.raises(ConfigurationError, match="fits no model"):
        await run("Why?", source=Source.from_text("x" * (11 * 2**20)), config=config(provider))
    assert sim.requests == []
