"""The content of a generate request, independent of the provider's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(slots=True)
class Ask:
    """A generate request in the terms of the simulator, equal for equal requests to different providers."""

    #: The last text of the last user turn, unchanged; empty when tool results end the request.
    prompt: str
    input_tokens: int
    #: A longer prompt is refused.
    context_window: int
    max_tokens: int | None = None
    #: A JSON schema for the answer; True for any JSON.
    schema: Mapping[str, Any] | Literal[True] | None = None
    #: Declared tools: name to parameter schema.
    tools: Mapping[str, Any] = field(default_factory=dict)
    #: Whether it must call a tool; with a tuple of names, one of these.
    tool_choice: Literal["auto", "none", "required"] | tuple[str, ...] = "auto"
    #: Names of the tools whose results end the request.
    tool_results: tuple[str, ...] = ()
    reasoning: bool = False
    #: Whether the model writes text before it calls a tool.
    speaks_before_calls: bool = False
    stop: tuple[str, ...] = ()
    #: Addresses in the prompt that the provider's own tool looks up.
    urls: tuple[str, ...] = ()
