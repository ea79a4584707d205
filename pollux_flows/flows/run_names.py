"""Run names: `What is it? · fan-out · gemini-2.5-flash-lite · 12 prompts`, unless a person has typed another."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from coolname.data import config as word_lists
from prefect import runtime

from pollux_flows.pages import count_of

_LONGEST_START: Final = 40
_GREEK: Final = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|"
    "psi|omega"
)
# The names that the forms of both UIs fill in: theta81-cygni-warp, and Handmade-Tiger.
_IN_FORMS: Final = re.compile(rf"({_GREEK})\d*-[a-z-]+|[A-Z][a-z]+-[A-Z][A-Za-z ]+")


def run_name(kind: str) -> Callable[[], str]:
    """Return the function that names a run of the flow `kind` in the UI."""

    def name() -> str:
        typed = str(runtime.flow_run.name or "")
        if typed and not is_generated(typed):
            return typed
        parameters = runtime.flow_run.parameters
        about = [_count(parameters, "sources", least=2), _count(parameters, "prompts", least=2)]
        return " · ".join(filter(None, [_start(parameters), kind, _model(parameters.get("provider")), *about]))

    return name


def is_generated(name: str) -> bool:
    """Return whether the Prefect server or a form of its UI generated this name."""
    return _IN_FORMS.fullmatch(name) is not None or all(part in _server_words() for part in name.split("-"))


@cache
def _server_words() -> frozenset[str]:
    lists: dict[str, Any] = word_lists
    return frozenset(word for part in lists.values() for word in part.get("words", ()))


def _start(parameters: dict[str, Any]) -> str:
    """Return the start of the first prompt, or of `prompts_from`."""
    prompts = parameters.get("prompts") or [parameters.get("prompt") or parameters.get("prompts_from")]
    line = next((" ".join(line.split()) for line in str(prompts[0] or "").splitlines() if line.strip()), "")
    return line if len(line) <= _LONGEST_START else line[: _LONGEST_START - 1].rstrip() + "…"


def _model(provider: Any) -> str:
    model = provider.get("model") if isinstance(provider, dict) else getattr(provider, "model", None)
    return str(model or "")


def _count(parameters: dict[str, Any], name: str, *, least: int) -> str:
    count = len(parameters.get(name) or ())
    return "" if count < least else count_of(count, name.removesuffix("s"))
