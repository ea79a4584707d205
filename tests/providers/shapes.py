"""Answer schemas as Pydantic models, at module level so that each can be imported by its name."""

from __future__ import annotations

from datetime import date
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Invoice(BaseModel):
    number: str
    total: float


class Optionals(BaseModel):
    name: str
    note: str | None = None
    count: int = 3


class Painted(BaseModel):
    """A field that refers to an enum and has a description of its own."""

    colour: Colour = Field(description="The colour it has.")


class Map(BaseModel):
    counts: dict[str, int]


class Address(BaseModel):
    street: str


class Person(BaseModel):
    home: Address = Field(description="Where they live.")
    work: Address | None = None


class Company(BaseModel):
    staff: list[Person]


class Awkward(BaseModel):
    """Fields whose names are keywords of JSON Schema."""

    properties: str
    required: list[str]


class Node(BaseModel):
    value: str
    children: list[Node] = []


class Bounded(BaseModel):
    model_config = ConfigDict(extra="forbid")

    age: int = Field(ge=18, le=20)
    code: str = Field(min_length=3, max_length=5)
    tags: list[str] = Field(min_length=2, max_length=3)
    born: date
