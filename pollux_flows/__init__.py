"""Prompts and sources to LLM providers, as Prefect flows.

Each name is imported when it is first used, so importing this package takes very little time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pollux_flows.caching.create import create_cache
    from pollux_flows.config import Config, RetryPolicy
    from pollux_flows.deferred.api import cancel_deferred, collect_deferred, defer, defer_many, inspect_deferred
    from pollux_flows.errors import (
        APIError,
        BudgetError,
        CacheError,
        ConfigurationError,
        DeferredNotReadyError,
        InternalError,
        PlanningError,
        PolluxError,
        RateLimitError,
        SourceError,
    )
    from pollux_flows.estimation.api import estimate_many
    from pollux_flows.estimation.estimate import Estimate
    from pollux_flows.handles import CacheHandle, DeferredHandle, DeferredSnapshot
    from pollux_flows.options import Options
    from pollux_flows.realtime import continue_tool, run, run_many
    from pollux_flows.result import ResultEnvelope
    from pollux_flows.source import Source

__all__ = [
    "APIError",
    "BudgetError",
    "CacheError",
    "CacheHandle",
    "Config",
    "ConfigurationError",
    "DeferredHandle",
    "DeferredNotReadyError",
    "DeferredSnapshot",
    "Estimate",
    "InternalError",
    "Options",
    "PlanningError",
    "PolluxError",
    "RateLimitError",
    "ResultEnvelope",
    "RetryPolicy",
    "Source",
    "SourceError",
    "cancel_deferred",
    "collect_deferred",
    "continue_tool",
    "create_cache",
    "defer",
    "defer_many",
    "estimate_many",
    "inspect_deferred",
    "run",
    "run_many",
]

_HOMES = {
    "config": ("Config", "RetryPolicy"),
    "source": ("Source",),
    "options": ("Options",),
    "result": ("ResultEnvelope",),
    "estimation.api": ("estimate_many",),
    "estimation.estimate": ("Estimate",),
    "handles": ("CacheHandle", "DeferredHandle", "DeferredSnapshot"),
    "realtime": ("continue_tool", "run", "run_many"),
    "caching.create": ("create_cache",),
    "deferred.api": ("cancel_deferred", "collect_deferred", "defer", "defer_many", "inspect_deferred"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "errors")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
