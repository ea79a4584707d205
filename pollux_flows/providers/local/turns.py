"""A conversation as messages of a local server: text."""

from __future__ import annotations

from typing import Any

from pollux_flows.providers.base import Call, Said


def messages(call: Call) -> list[dict[str, Any]]:
    """All turns, this one last."""
    return [{"role": said.turn.role, "content": _text(said)} for said in call.turns]


def _text(said: Said) -> str:
    """Many local servers take only a plain string, so sources and prompt become one."""
    if said.turn.role != "user":
        return said.turn.content
    texts = [material.text or "" for material in said.materials]
    return "\n\n".join([*texts, *([said.prompt] if said.prompt is not None else [])])
