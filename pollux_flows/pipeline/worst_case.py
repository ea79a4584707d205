"""Worst case: the most that a call may cost, computed before it is made.

A token of text has at least one byte, so a request has at most as many tokens as its JSON has bytes, plus the tokens
that a provider adds. Other sources, and content stored at the provider, are only limited by the model's context window.
The answer has at most `max_tokens` or, without it, the output limit of the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import to_json

from pollux_flows.config import ProviderName, Target
from pollux_flows.errors import BudgetError, ConfigurationError
from pollux_flows.pricing import context_window, cost_at_most, cost_of, dollars, dollars_up
from pollux_flows.providers.base import Call
from pollux_flows.result import Answer, Billing

# A provider adds roles and separators to each part, and its own instructions to tools and schemas.
_AROUND: Final = 256
_AROUND_TOOLS: Final = 1_024
# Price lists round 1,048,576 down to a million.
_ROUNDED_DOWN: Final = 1.05
# Service tiers in requests that are billed at the usual price.
_USUAL_TIERS: Final = {"auto", "standard_only", "unspecified"}
# The published output limits by model family, in tokens, thinking included.
_OUTPUTS: Final[tuple[tuple[ProviderName, str, int], ...]] = (
    ("gemini", r"gemini-2\.0", 8_192),
    ("gemini", r"gemini-(2\.5|3)(?!.*image)", 65_536),
    ("openai", r"gpt-4o", 16_384),
    ("openai", r"gpt-4\.1", 32_768),
    ("openai", r"gpt-5(\.[12])?(-mini|-nano|-codex)?(-\d{4}.*)?$", 128_000),
    ("openai", r"o[134](-mini)?(-\d{4}.*)?$", 100_000),
)
# Context windows that the price list lacks.
_WINDOWS: Final[tuple[tuple[ProviderName, str, int], ...]] = (("gemini", r"gemini-(2\.5|3)", 1_048_576),)
_SOUND: Final = ("audio/", "video/")
# The fields of a request that limit the length of the answer. If a request has two of them, the larger counts.
_LIMITS: Final[dict[ProviderName, tuple[str, ...]]] = {
    "gemini": ("max_output_tokens",),
    "openai": ("max_output_tokens",),
    "anthropic": ("max_tokens",),
    "openrouter": ("max_tokens", "max_completion_tokens"),
    "local": ("max_tokens", "max_completion_tokens"),
}
# Raw options with which a provider adds input that is not in the request.
_ADDING: Final = {"tools", "conversation", "previous_response_id", "prompt", "cached_content", "cachedContent"}
# Raw options with which a different model or region may answer, or a tool of the provider may be billed.
_UNPRICED: Final = {
    "models",
    "fallbacks",
    "inference_geo",
    "plugins",
    "web_search_options",
    "mcp_servers",
    "container",
}
# Tools in raw options that cost only tokens: functions, and opening addresses.
_PRICED_TOOLS: Final = {"function_declarations", "functionDeclarations", "url_context", "urlContext"}


@dataclass(frozen=True)
class WorstCase:
    """The most that calls of one request may cost, depending on their prompts."""

    target: Target
    input_tokens: int
    """The input tokens without the prompt; with `is_window`, the context window."""
    output_tokens: int
    is_window: bool
    kinds: tuple[str, ...]
    every_tier: bool
    batch: bool = False
    _known: dict[int, float] = field(default_factory=dict, compare=False)

    def usd(self, prompt: str | None) -> float:
        """Return the most that a call with this prompt may cost."""
        tokens = self._count(prompt)
        if tokens not in self._known:  # prompts of a run often have the same length
            self._known[tokens] = self._price(tokens, self.output_tokens)
        return self._known[tokens]

    def budget_error(self, prompt: str | None, limit_usd: float, limit_name: str = "max_cost_usd") -> BudgetError:
        """Return the error for a limit that is below the worst case of a call with this prompt."""
        most, tokens = self.usd(prompt), self._count(prompt)
        asking, one = self._price(tokens, 0), self._price(tokens, 1_000_000) - self._price(tokens, 0)
        room = math.floor((limit_usd - asking) / one * 1_000_000) if one else 0
        shorter = f"Set Options(max_tokens={room}) or less, or raise" if room > 0 else "Raise"
        return BudgetError(
            f"Not asked: one call may cost up to {dollars(most)} ({tokens:,} tokens of input, {self.output_tokens:,} of"
            f" output), and {limit_name} is {dollars(limit_usd)}.",
            hint=f"{shorter} {limit_name} to {dollars_up(most)} or more.",
        )

    def _count(self, prompt: str | None) -> int:
        return self.input_tokens if self.is_window else self.input_tokens + len((prompt or "").encode())

    def _price(self, input_tokens: int, output_tokens: int) -> float:
        cost = cost_at_most(
            self.target, input_tokens, output_tokens, kinds=self.kinds, every_tier=self.every_tier, batch=self.batch
        )
        if cost.usd is None:
            raise _cannot_be_enforced(cost.unknown or "", "Leave the budget out, or use a model with a price.")
        return cost.usd


def find_worst_case(
    target: Target, call: Call, body: Mapping[str, Any], text_bytes: Iterable[int], *, batch: bool = False
) -> WorstCase:
    """Return the worst case of calls like this one, which has an empty prompt. Raises if it is unknown.

    `body` is its request, and `text_bytes` are the sizes of sources whose text is not in the request yet.
    """
    raw = (call.options.provider_options or {}).get(target.provider, {})
    _check_prices(target, raw)
    window = _find_window(target)
    is_stored = call.response_id is not None or call.options.cache_handle is not None or bool(_ADDING & raw.keys())
    others = [material for material in call.all_materials if material.text is None]
    if is_stored or others:
        if window is None:
            raise _cannot_be_enforced(
                f"The context window of {target.model} is unknown, which limits the tokens of sources other than text.",
                "Leave the budget out, or send the sources as text.",
            )
        input_tokens = window
    else:
        around = _AROUND + (_AROUND_TOOLS if call.options.tools or call.options.response_schema else 0)
        json = to_json(dict(body), exclude_none=True, serialize_unknown=True, inf_nan_mode="null")
        input_tokens = len(json) + sum(text_bytes) + around
    output_tokens = find_output_limit(target, body)
    if output_tokens is None:
        raise _cannot_be_enforced(
            f"The longest possible answer of {target.model} is unknown.", "Set Options(max_tokens=…)."
        )
    kinds = ["input_mtok"]
    if target.provider != "anthropic" or call.implicit_caching or raw:
        kinds.append("cache_write_mtok")
    if call.options.cache_ttl == "1h" or raw:
        kinds.append("cache_write_1h_mtok")
    if is_stored or any(material.mime_type.startswith(_SOUND) for material in others):
        kinds.append("input_audio_mtok")
    return WorstCase(target, input_tokens, output_tokens, is_stored or bool(others), tuple(kinds), bool(raw), batch)


def find_output_limit(target: Target, body: Mapping[str, Any]) -> int | None:
    """Return the most tokens of the answer to this request, by its own limit or the model's; None if unknown."""
    return _read_limit(target.provider, body) or _find(_OUTPUTS, target) or _find_window(target)


def _find_window(target: Target) -> int | None:
    """Return the context window of the model in tokens, input and answer together; None if unknown."""
    window = _find(_WINDOWS, target) or context_window(target)
    return None if window is None else math.ceil(window * _ROUNDED_DOWN)


def _check_prices(target: Target, raw: Mapping[str, Any]) -> None:
    """Refuse raw options with which the cost of an answer would be unknown or unlimited."""
    tools = [tool for tool in raw.get("tools") or () if isinstance(tool, Mapping)]
    dearer = {name for name in _UNPRICED if raw.get(name) not in (None, "global")}
    if not all(_costs_only_tokens(target.provider, tool) for tool in tools):
        dearer.add("tools")
    if dearer:
        raise _cannot_be_enforced(
            f"With {min(dearer)!r} in provider_options, an answer may cost more than its tokens.",
            f"Leave the budget or {min(dearer)!r} out.",
        )
    tier = str(raw.get("service_tier") or raw.get("serviceTier") or "auto").lower()
    billing = Billing(cost_usd=0.0, service_tier=None if tier in _USUAL_TIERS else tier, speed=raw.get("speed"))
    usage = {"input_tokens": 1, "output_tokens": 1}
    if unknown := cost_of(target, Answer(text="", finish_reason="stop", usage=usage, billing=billing)).unknown:
        raise _cannot_be_enforced(unknown, "Leave out the budget, or these fields of provider_options.")


def _costs_only_tokens(provider: ProviderName, tool: Mapping[str, Any]) -> bool:
    if provider == "gemini":
        return tool.keys() <= _PRICED_TOOLS
    return tool.get("type", "custom") in {"function", "custom"}


def _read_limit(provider: ProviderName, body: Mapping[str, Any]) -> int | None:
    """Return the limit that the request sets on its answer; None if it sets none. Gemini's is in its `config`."""
    config = body.get("config")
    fields: Mapping[str, Any] = dict(config) if isinstance(config, BaseModel) else body
    return max((limit for name in _LIMITS[provider] if isinstance(limit := fields.get(name), int)), default=None)


def _find(families: Iterable[tuple[ProviderName, str, int]], target: Target) -> int | None:
    model = target.model.removeprefix("models/")
    return next((size for name, models, size in families if name == target.provider and re.match(models, model)), None)


def _cannot_be_enforced(why: str, hint: str) -> ConfigurationError:
    return ConfigurationError(f"No budget can be enforced: {why}", hint=hint)
