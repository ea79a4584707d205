"""Pages of OpenAI's lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from pollux_flows.simulator.openai.rules import refusal_for
from pollux_flows.simulator.shape import Mismatch, integer
from pollux_flows.simulator.wire import Call, Refusal, Reply


class _HasId(Protocol):
    id: str


Item = TypeVar("Item", bound=_HasId)


def page(call: Call, items: Sequence[Item], *, most: int, default: int, unknown: str) -> tuple[list[Item], bool]:
    """Return a page of the items, and whether there are more; `after` is the previous page's last id."""
    if after := call.query.get("after"):
        ids = [item.id for item in items]
        if after not in ids:
            raise Refusal(404, unknown.format(after), param="after")
        items = items[ids.index(after) + 1 :]
    text = call.query.get("limit", str(default))
    limit: Any = int(text) if text.isascii() and text.isdigit() else text
    try:
        integer(1, most)(limit, ("limit",))
    except Mismatch as mismatch:
        raise refusal_for(mismatch) from None
    return list(items[:limit]), len(items) > limit


def list_reply(data: Sequence[dict[str, Any]], *, more: bool) -> Reply:
    first_id, last_id = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return Reply({"object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": more})
