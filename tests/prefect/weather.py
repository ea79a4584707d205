"""Tools that a model calls in tests, and a record of their calls."""

from __future__ import annotations

import time
from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, Field

calls: list[tuple[str, Any]] = []
failing = 0


class Place(BaseModel):
    city: str
    country: str | None = None


def get_weather(place: Place, days: Annotated[int, Field(ge=2, description="From today on.")] = 2) -> dict[str, Any]:
    """Return the weather of the next days."""
    calls.append((place.city, days))
    return {"sky": "clear", "asked": len(calls)}


async def get_date(day: date) -> str:
    """Return a day in words."""
    calls.append(("date", day))
    return f"{day:%A}"


def get_news(topic: str) -> str:
    """Return the news, or raise an error while `failing` is above 0."""
    global failing  # noqa: PLW0603 (a test sets it)
    calls.append(("news", topic))
    if failing:
        failing -= 1
        raise RuntimeError("the newsroom is closed")
    return "All is well."


def sleep(seconds: int) -> str:  # noqa: ARG001 (the model chooses it)
    """Sleep for longer than a run waits for a tool."""
    time.sleep(30)
    return "awake"


def untyped(city) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001 (a tool without types is refused)
    return str(city)


def by_position(city: str, /) -> str:
    return city
