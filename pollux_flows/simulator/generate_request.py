"""Generate requests, independent of the provider's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(slots=True)
class GenerateRequest:
    """The content of a generate request, in the terms that all providers share."""

    #: The last text of the last user turn, unchanged; empty if the request ends with tool results.
    prompt: str
    input_tokens: int
    #: A longer prompt is refused.
    context_window: int
    max_tokens: int | None = None
    #: A JSON schema for the answer; True for any JSON.
    schema: Mapping[str, Any] | Literal[True] | None = None
    #: Declared tools: name to parameter schema.
    tools: Mapping[str, Any] = field(default_factory=dict)
    #: Whether the model must call a tool; a tuple of names allows only these tools.
    tool_choice: Literal["auto", "none", "required"] | tuple[str, ...] = "auto"
    #: The names of the tools with whose results the request ends.
    tool_results: tuple[str, ...] = ()
    reasoning: bool = False
    #: Whether the model writes text before it calls a tool.
    announces_calls: bool = False
    stop: tuple[str, ...] = ()
    #: The URLs in the prompt, which the provider's own tool fetches.
    urls: tuple[str, ...] = ()
