"""The capability matrix of the providers, and the check that every request passes before it is sent.

Beside the matrix are a few stable rules about model families that a provider enforces with a 400. Checking them here
fails before a run has sent anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pollux_flows import claude
from pollux_flows.config import PROVIDERS, ProviderName, Target
from pollux_flows.errors import ConfigurationError
from pollux_flows.options import Options
from pollux_flows.source import Source
from pollux_flows.turn import Turn

Support = Literal["yes", "no", "model"]  # "model": the model, the route or the server decides


@dataclass(frozen=True)
class Capability:
    """A row of the matrix: the support by each provider, and the alternative where there is none."""

    title: str
    support: tuple[Support, Support, Support, Support, Support]  # in PROVIDERS
    instead: str = ""

    def of(self, provider: ProviderName) -> Support:
        return self.support[PROVIDERS.index(provider)]


MATRIX: Final[dict[str, Capability]] = {
    "text": Capability("Text generation", ("yes", "yes", "yes", "yes", "yes")),
    "many_prompts": Capability("Many prompts over shared sources", ("yes", "yes", "yes", "yes", "yes")),
    "local_files": Capability(
        "Local files",
        ("yes", "yes", "yes", "yes", "no"),
        "Read the file and pass its text with Source.from_text.",
    ),
    "pdf_urls": Capability(
        "PDF URLs",
        ("yes", "yes", "yes", "model", "no"),
        "Extract the text and pass it with Source.from_text.",
    ),
    "image_urls": Capability(
        "Image URLs", ("yes", "yes", "yes", "model", "no"), "Use a provider that sees images, such as gemini."
    ),
    "youtube": Capability("YouTube URLs", ("yes", "no", "no", "no", "no"), "Use gemini, which watches YouTube itself."),
    "persistent_cache": Capability(
        "Cache handles (`create_cache`)",
        ("yes", "no", "no", "no", "no"),
        "Use a provider with persistent_cache (gemini); the others discount repeated prefixes on their own.",
    ),
    "implicit_caching": Capability(
        "Implicit caching (`implicit_caching`)",
        ("no", "no", "yes", "no", "no"),
        "Leave implicit_caching out; only anthropic has that switch (openai and openrouter take 'warm').",
    ),
    "automatic_caching": Capability("Automatic prompt caching by the provider", ("yes", "yes", "no", "model", "model")),
    "structured_output": Capability("Structured output", ("yes", "yes", "yes", "model", "yes")),
    "reasoning_output": Capability("Reasoning text", ("yes", "yes", "yes", "model", "model")),
    "reasoning_effort": Capability(
        "`reasoning_effort`",
        ("yes", "yes", "yes", "model", "no"),
        "Leave reasoning_effort out; the server decides.",
    ),
    "reasoning_budget": Capability(
        "`reasoning_budget_tokens`",
        ("yes", "no", "yes", "no", "no"),
        "Use reasoning_effort where the provider has it, or gemini or anthropic.",
    ),
    "sampling": Capability(
        "`temperature`, `top_p`",
        ("yes", "model", "no", "yes", "yes"),
        "Leave temperature and top_p out: anthropic's API takes neither since its version 2026-10-21.",
    ),
    "deferred": Capability(
        "Deferred delivery",
        ("yes", "yes", "yes", "no", "no"),
        "Use run_many, or gemini, openai or anthropic.",
    ),
    "tools": Capability(
        "Tool calling", ("yes", "yes", "yes", "model", "no"), "Leave tools out, or use another provider."
    ),
    "conversation": Capability("Conversations (`history`, `continue_from`)", ("yes", "yes", "yes", "yes", "yes")),
    "tool_results": Capability(
        "Tool results in a conversation (`continue_tool`)",
        ("yes", "yes", "yes", "model", "no"),
        "Leave the turns with tools out, or write their content as text.",
    ),
}


def support(provider: ProviderName, capability: str) -> Support:
    """Return whether the provider supports a capability, does not, or leaves it to the model."""
    return MATRIX[capability].of(provider)


def require(provider: ProviderName, capability: str) -> None:
    """Raise a ConfigurationError if the provider does not support a capability."""
    row = MATRIX[capability]
    if row.of(provider) == "no":
        raise ConfigurationError(
            f"Provider {provider!r} does not support {row.title} ({capability}).", hint=row.instead
        )


def require_cache(target: Target) -> None:
    """Raise if the provider or the model has no cache handles; unknown model names pass."""
    require(target.provider, "persistent_cache")
    if not has_caches(target):
        raise ConfigurationError(
            f"{target.model} has no cache handles: Gemini 4 and later cache repeated prefixes on their own.",
            hint="Pass the sources themselves, or use an earlier model, such as gemini-2.5-flash.",
        )


def has_caches(target: Target) -> bool:
    """Return whether this model has cache handles, as far as its name says."""
    return support(target.provider, "persistent_cache") == "yes" and not re.match(
        _WITHOUT_CACHES, _base_name(target.model)
    )


def fits_cache(target: Target, options: Options) -> bool:
    """Return whether calls with these options can use a cache of their system instruction and tools."""
    raw = (options.provider_options or {}).get(target.provider, {})
    fields = _CACHE_FIELDS.union(*_FIELDS_IN_CACHE.values())
    return options.tool_choice is None and not any(raw.get(name) is not None for name in fields)


WARMABLE: Final[tuple[ProviderName, ...]] = ("openai", "anthropic", "openrouter")
"""Providers that cache prompt prefixes, so that a first call can write what later ones read."""


def implicit_caching(provider: ProviderName, options: Options, calls: int, sharing: int = 1) -> bool:
    """Return whether the calls ask for prompt caching; `sharing` is the number of them that share a prefix.

    A cache write costs a quarter more than plain input. A single call writes once and later ones read cheaply;
    concurrent calls would each pay for the write before any can read. With "warm" the first call goes ahead.
    """
    asked = options.implicit_caching
    if asked == "warm" and sharing > 1:
        return True
    if asked in {True, False}:
        return bool(asked)
    return support(provider, "implicit_caching") == "yes" and calls == 1


def bills_cache_writes(model: str) -> bool:
    """Return whether OpenAI bills this model's cache writes, and lets the caller choose their lifetime."""
    return re.match(r"gpt-(5\.[6-9]|5\.\d\d|[6-9]|\d\d)", model) is not None


def check(target: Target, options: Options, sources: Sequence[Source], turns: Sequence[Turn] = ()) -> None:
    """Raise a ConfigurationError for a request that the target cannot answer. Makes no network call."""
    for capability in _required_capabilities(options):
        require(target.provider, capability)
    _check_prefix_caching(target.provider, options)
    if any(turn.tool_calls for turn in turns):
        require(target.provider, "tool_results")
    for source in (*sources, *(each.source for turn in turns for each in turn.attached)):
        _check_source(target.provider, source)
    for rule in _MODEL_RULES:
        if rule.provider == target.provider and re.match(rule.models, _base_name(target.model)) and rule.asked(options):
            raise ConfigurationError(f"{target.model} {rule.refuses}", hint=rule.instead)
    _check_efforts(target, options)
    _check_budget(target, options)
    _check_cache(target, options, sources)


def check_deferred(target: Target, options: Options) -> None:
    """Raise a ConfigurationError for options that a provider's batch system does not support."""
    require(target.provider, "deferred")
    for name, is_set, instead in (
        ("A cache handle", options.cache is not None, "Pass the sources themselves: batches have a discount already."),
        ("A conversation", options.history is not None or options.continue_from is not None, "Use run."),
        ("Tool calling", bool(options.tools or options.tool_choice), "Use run, which brings tool calls back at once."),
        ("implicit_caching", options.implicit_caching in {True, False}, "Leave it out, or write 'warm' for anthropic."),
        (
            "implicit_caching='warm'",
            options.implicit_caching == "warm" and target.provider != "anthropic",
            f"Leave it out: {target.provider} caches by itself, and only anthropic's batches wait for a first one.",
        ),
        (
            "cache_ttl",
            options.cache_ttl is not None and (options.implicit_caching, options.cache_ttl) != ("warm", "1h"),
            "Leave it out: a warm batch keeps its cache for an hour, and others cache nothing.",
        ),
    ):
        if is_set:
            raise ConfigurationError(f"{name} cannot be deferred.", hint=instead)


def _required_capabilities(options: Options) -> Iterator[str]:
    """Return the capabilities that these options need and that some provider lacks."""
    if _sampling(options):
        yield "sampling"
    if options.reasoning_effort is not None:
        yield "reasoning_effort"
    if options.reasoning_budget_tokens is not None:
        yield "reasoning_budget"
    if options.implicit_caching is True:
        yield "implicit_caching"
    if options.cache is not None:
        yield "persistent_cache"
    if options.tools:
        yield "tools"


_SOURCE_CAPABILITIES: Final = {"file": "local_files", "arxiv": "pdf_urls", "youtube": "youtube"}


def _check_source(provider: ProviderName, source: Source) -> None:
    if source.source_type in {"text", "json"}:
        return
    if source.source_type == "uri":
        capability = "image_urls" if source.mime_type.startswith("image/") else "pdf_urls"
    else:
        capability = _SOURCE_CAPABILITIES[source.source_type]
    require(provider, capability)


@dataclass(frozen=True)
class _ModelRule:
    provider: ProviderName
    models: str  # a regular expression, matched at the start of the model's name
    asked: Callable[[Options], object]
    refuses: str
    instead: str


def _sampling(options: Options) -> bool:
    return options.temperature is not None or options.top_p is not None


def _reasoning(options: Options) -> bool:
    return options.reasoning_effort is not None or options.reasoning_budget_tokens is not None


_WITHOUT_CACHES: Final = r"gemini-([4-9]|\d{2,})(?![^.-])"
_OPENAI_LEAST_TOKENS: Final = 16
_ANTHROPIC_LEAST_BUDGET: Final = 1024
# By model family: the minimum and maximum thinking budget, and the meaning of 0.
_GEMINI_BUDGETS: Final = (
    (r"gemini-2\.5-pro", 128, 32_768, "it cannot be turned off"),
    (r"gemini-2\.5-flash-lite", 512, 24_576, "or 0 for none"),
    (r"gemini-2\.5-flash", 1, 24_576, "or 0 for none"),
)

_MODEL_RULES: Final = (
    _ModelRule(
        "openai",
        r"(gpt-5(?!.*chat)|o\d)",
        _sampling,
        "takes neither temperature nor top_p.",
        "Leave them out, or use a model such as gpt-4.1-mini.",
    ),
    _ModelRule(
        "openai",
        r"(gpt-4|gpt-3|chatgpt-4)",
        lambda options: options.reasoning_effort is not None,
        "does not reason, so it takes no reasoning_effort.",
        "Leave reasoning_effort out, or use a model such as gpt-5-mini.",
    ),
    _ModelRule(
        "openai",
        r"",
        lambda options: options.max_tokens is not None and options.max_tokens < _OPENAI_LEAST_TOKENS,
        "refuses max_tokens below 16.",
        "Write max_tokens=16 or more.",
    ),
    _ModelRule(
        "anthropic",
        claude.WITHOUT_THINKING,
        _reasoning,
        "does not reason.",
        "Leave reasoning_effort and reasoning_budget_tokens out, or use a newer Claude.",
    ),
    _ModelRule(
        "anthropic",
        r"claude-3",
        lambda options: options.response_schema is not None,
        "has no structured output.",
        "Use a newer Claude, or ask for JSON in the prompt.",
    ),
    _ModelRule(
        "anthropic",
        claude.ADAPTIVE_ONLY,
        lambda options: options.reasoning_budget_tokens,
        "decides by itself how long to think and takes no reasoning_budget_tokens.",
        "Use reasoning_effort with this model.",
    ),
    _ModelRule(
        "anthropic",
        r"",
        lambda options: (
            (options.reasoning_effort or options.reasoning_budget_tokens)
            and options.tool_choice not in (None, "auto", "none")
        ),
        "cannot think and be forced to call a tool at once.",
        "Leave tool_choice at auto, or leave reasoning out.",
    ),
    _ModelRule(
        "gemini",
        r"(gemini-1|gemini-2\.0|gemma-)",
        lambda options: options.reasoning_effort or options.reasoning_budget_tokens,
        "does not think.",
        "Leave reasoning_effort and reasoning_budget_tokens out, or use gemini-2.5-flash or newer.",
    ),
    _ModelRule(
        "gemini",
        r"gemini-2",
        lambda options: options.tools and options.response_schema is not None,
        "cannot call tools and answer in a schema at once.",
        "Leave one of them out, or use a Gemini 3 model.",
    ),
)

# The efforts of each provider and model family; the first that matches counts.
_EFFORTS: Final[tuple[tuple[ProviderName, str, tuple[str, ...]], ...]] = (
    ("gemini", "", ("minimal", "low", "medium", "high", "xhigh")),
    ("openai", "", ("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    ("anthropic", claude.NO_MAX_EFFORT, ("low", "medium", "high")),
    ("anthropic", claude.NO_XHIGH_EFFORT, ("low", "medium", "high", "max")),
    ("anthropic", "", ("low", "medium", "high", "xhigh", "max")),
    ("openrouter", "", ("none", "minimal", "low", "medium", "high", "xhigh", "max")),
)


def _check_efforts(target: Target, options: Options) -> None:
    effort = options.reasoning_effort
    efforts = next(
        (known for name, models, known in _EFFORTS if name == target.provider and re.match(models, target.model)), ()
    )
    if effort is not None and effort not in efforts:
        raise ConfigurationError(
            f"{target.model} takes no reasoning_effort {effort!r}.", hint=f"Write one of {', '.join(efforts)}."
        )


def _check_budget(target: Target, options: Options) -> None:
    if target.provider == "anthropic":
        _check_claude_budget(target.model, options)
    if target.provider == "gemini" and options.reasoning_budget_tokens is not None:
        _check_gemini_budget(target.model, options.reasoning_budget_tokens)


def _check_gemini_budget(model: str, budget: int) -> None:
    for family, least, most, zero in _GEMINI_BUDGETS:
        if re.match(family, _base_name(model)):
            if not least <= budget <= most and (budget or zero != "or 0 for none"):
                raise ConfigurationError(
                    f"{model} takes no reasoning budget of {budget} tokens.", hint=f"Write {least} to {most}; {zero}."
                )
            return


def _check_claude_budget(model: str, options: Options) -> None:
    budget = claude.thinking_budget(model, options)
    if not budget:
        return
    if budget < _ANTHROPIC_LEAST_BUDGET:
        raise ConfigurationError(
            f"Anthropic refuses a reasoning budget of {budget} tokens.", hint="Write 1024 or more, or 0 for none."
        )
    most = claude.max_output(model)
    if most is not None and budget >= most:
        raise ConfigurationError(
            f"A reasoning budget of {budget} tokens is beyond {model}, which writes {most} tokens at most, "
            "thinking included.",
            hint=f"Write a budget below {most} that leaves room for the answer.",
        )
    if options.max_tokens is not None and budget >= options.max_tokens:
        raise ConfigurationError(
            f"A reasoning budget of {budget} tokens leaves no room within max_tokens={options.max_tokens}.",
            hint=f"Raise max_tokens above {budget}: the answer counts against it too; or ask for less reasoning.",
        )


# The fields of a request to Gemini, in either spelling.
_CACHE_FIELDS: Final = {"cached_content", "cachedContent"}
_FIELDS_IN_CACHE: Final = {
    "system_instruction": {"system_instruction", "systemInstruction"},
    "tools": {"tools"},
    "tool_choice": {"tool_config", "toolConfig"},
}


def _check_cache(target: Target, options: Options, sources: Sequence[Source]) -> None:
    """Raise if the request repeats or contradicts the cache handle's model, sources or instructions."""
    handle = options.cache_handle
    raw = (options.provider_options or {}).get(target.provider, {}) if target.provider == "gemini" else {}
    named = sorted(name for name in _CACHE_FIELDS & raw.keys() if raw[name])
    if handle is None and not named:
        return
    if handle is not None:
        if handle.provider != target.provider or handle.model != target.model:
            raise ConfigurationError(
                f"The cache handle {handle.name} belongs to {handle.provider} {handle.model}, "
                f"not to {target.provider} {target.model}.",
                hint="Use the provider and model it was made with, or make another with create_cache.",
            )
        if named:
            raise ConfigurationError(
                f"provider_options names a cache ({named[0]}) beside the cache handle {handle.name}.",
                hint=f"Leave {named[0]} out of provider_options.",
            )
    require_cache(target)
    for name, asked in (
        ("system_instruction", options.system_instruction is not None),
        ("tools", options.tools is not None),
        ("tool_choice", options.tool_choice is not None),
        ("sources", bool(sources)),
    ):
        if asked or any(raw.get(field) is not None for field in _FIELDS_IN_CACHE.get(name, ())):
            raise ConfigurationError(
                f"{name} cannot go along with a cache handle.",
                hint="Leave tool_choice out: the cached tools decide."
                if name == "tool_choice"
                else f"Pass them to create_cache({name}=…) instead.",
            )


def _check_prefix_caching(provider: ProviderName, options: Options) -> None:
    if provider in WARMABLE:
        return
    for name, is_asked in (
        ("implicit_caching='warm'", options.implicit_caching == "warm"),
        ("cache_ttl", options.cache_ttl == "1h"),
    ):
        if is_asked:
            instead = "; create_cache takes ttl_seconds here" if provider == "gemini" else ""
            raise ConfigurationError(
                f"Provider {provider!r} does not support {name}.",
                hint=f"Leave it out, or use {', '.join(WARMABLE)}{instead}.",
            )


def _base_name(model: str) -> str:
    """Return the model's name without Gemini's optional `models/` prefix."""
    return model.removeprefix("models/")
