"""The thinking and caching parameters of Claude model families, derived from model names.

Newer models take an effort, older ones a number of tokens. An unknown name is sent the parameters of the newest
models; Anthropic accepts or refuses it.
"""

from __future__ import annotations

import re
from typing import Final

from pollux_flows.options import Options

WITHOUT_THINKING: Final = r"claude-3-(?!7)"
BY_BUDGET_ONLY: Final = r"claude-(3-7|opus-4(?!-[5-9])|sonnet-4(?!-[6-9])|haiku-4)"
# Opus 4.5 takes an effort beside a budget; later models choose their own budget.
NO_MAX_EFFORT: Final = r"claude-opus-4-5"
NO_XHIGH_EFFORT: Final = r"claude-(opus-4-[56]|sonnet-4-6)"
# From Opus 4.7 on, an explicit budget is refused with a 400.
ADAPTIVE_ONLY: Final = r"claude-(opus-(4-[7-9]|[5-9])|sonnet-[5-9]|haiku-[5-9]|fable|mythos)"

BUDGETS: Final = {"low": 2048, "medium": 5120, "high": 10240, "xhigh": 16384, "max": 24576}
"""The thinking budget of each effort, for models that take a budget. Each leaves room in 32,000 tokens of output."""

_BY_BUDGET: Final = re.compile(rf"{BY_BUDGET_ONLY}|claude-opus-4-5")
_OUTPUTS: Final = (
    (r"claude-opus-4(?!-[5-9])", 32_000),
    (r"claude-(3-7|opus-4-5|sonnet-4(?!-[6-9])|haiku-4)", 64_000),
    (r"claude-(opus|sonnet)-4-6", 128_000),
)

# Shorter prefixes are not cached, and the API does not report it. Unknown for other models.
_CACHE_MINIMUMS: Final = (
    (r"claude-(opus-5|fable-5)(?!\d)", 512),
    (r"claude-(sonnet-5|opus-4-8)(?!\d)", 1024),
    (r"claude-opus-4-7(?!\d)", 2048),
    (r"claude-(opus-4-[56]|haiku-4-5)(?!\d)", 4096),
)


def cache_minimum(model: str) -> int | None:
    """Return the fewest tokens of a prompt prefix that this model caches, or None if unknown."""
    return next((least for family, least in _CACHE_MINIMUMS if re.match(family, model)), None)


def takes_effort(model: str) -> bool:
    """Return whether this model takes `output_config.effort`."""
    return re.match(BY_BUDGET_ONLY, model) is None


def thinking_budget(model: str, options: Options) -> int | None:
    """Return the thinking budget in tokens, or None if the model decides or does not think."""
    if options.reasoning_effort is None:
        return options.reasoning_budget_tokens
    return BUDGETS.get(options.reasoning_effort) if _BY_BUDGET.match(model) else None


def max_output(model: str) -> int | None:
    """Return the output limit in tokens, thinking included, of a model that takes a budget; None if unknown."""
    return next((limit for family, limit in _OUTPUTS if re.match(family, model)), None)
