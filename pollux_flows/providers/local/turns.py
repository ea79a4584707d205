"""Conversations as a local server's messages, which are plain text."""

from __future__ import annotations

from typing import Any

from pollux_flows.providers.base import Call, PriorTurn


def messages(call: Call) -> list[dict[str, Any]]:
    """Write all turns, this one last."""
    return [{"role": entry.turn.role, "content": _text(entry)} for entry in call.turns]


def _text(entry: PriorTurn) -> str:
    """Return a turn as one text: many local servers take only a plain string for sources and prompt."""
    if entry.turn.role != "user":
        return entry.turn.content
    texts = [material.text or "" for material in entry.materials]
    return "\n\n".join([*texts, *([entry.prompt] if entry.prompt is not None else [])])
