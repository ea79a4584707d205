"""Hostile answers: texts that are made to keep whoever checks them busy. They cost their own structure, and no time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pollux_flows import Options, ResultEnvelope, run
from pollux_flows.pipeline.structured import read_answers
from pollux_flows.result import Answer
from pollux_flows.schemas.conformance import Conformance
from tests.conforming import problems, without_invented_nulls
from tests.loopback import good, http, scripted

# Ten levels of it took 54 seconds: each level tries all three branches, and each of those all below.
TREE: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"$ref": "#/$defs/c"}]},
        **{
            name: {
                "type": "object",
                "properties": {"kind": {"const": name}, "child": {"$ref": "#/$defs/node"}, "note": {"type": "string"}},
                "required": ["kind"],
            }
            for name in "abc"
        },
    },
}


def nested(depth: int, leaf: dict[str, Any]) -> dict[str, Any]:
    value = leaf
    for _ in range(depth):
        value = {"kind": "c", "child": value, "note": None}
    return value


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@pytest.mark.parametrize("leaf", [{"kind": "a"}, {"kind": "b", "note": None}])
def test_a_recursive_union_is_read_in_linear_time(leaf: dict[str, Any]) -> None:
    """Each value is held against each branch once, however deep it lies."""
    with within(5):
        cleaned = without_invented_nulls(nested(30, leaf), TREE)
        assert problems(cleaned, TREE) == []
    assert "note" not in json.dumps(cleaned)


def test_the_fault_at_the_bottom_of_a_recursive_union_is_named() -> None:
    """And not "not valid under any of the given schemas" at its root."""
    with within(5):
        (problem,) = problems(nested(30, {"kind": "a", "note": 5}) | {"note": "x"}, TREE)[:1]
    assert problem.startswith("$.child")


def test_an_answer_with_many_faults_tells_the_first_ones() -> None:
    """A million lines help no reader."""
    assert len(problems(["x"] * 100_000, {"type": "array", "items": {"type": "integer"}})) == 20


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a|a)*$"}, "a" * 60 + "!"),
        ({"propertyNames": {"pattern": "^(a|a)*$"}}, {"a" * 60 + "!": 1}),
    ],
)
def test_a_pattern_that_backtracks_for_ever_is_stopped(schema: dict[str, Any], value: Any) -> None:
    """At the deadline, with its name."""
    with within(5), pytest.raises(TimeoutError, match=r"pattern .*\(a\|a\)\*"):
        Conformance(schema, limit_s=0.1).problems(value)


# --- Through a run ------------------------------------------------------------------------------------------


@asynccontextmanager
async def responsive(seconds: float) -> AsyncIterator[None]:
    """The event loop never stands still for so long, by the time that this process computes."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.process_time()
        while True:
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.process_time() - last), time.process_time()

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.02)
    try:
        yield
    finally:
        await asyncio.sleep(0.02)
        ticking.cancel()
    assert longest < seconds


async def answered(text: str, schema: Any, **settings: Any) -> ResultEnvelope:
    """The envelope of a run whose event loop stays alive while the answer is read."""
    async with scripted(http(good("local", text))) as server, responsive(1):
        envelope = await run("p", config=server.config("local", **settings), options=Options(response_schema=schema))
    assert envelope.answers == [text]
    return envelope


async def test_a_pattern_for_ever_costs_the_structure_and_not_the_envelope() -> None:
    """It obeys timeout_s, and other work goes on meanwhile."""
    with within(5):
        schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a|a)*$"}}}
        envelope = await answered(json.dumps({"a": "a" * 60 + "!"}), schema, timeout_s=0.4)
    assert envelope.structured == [None]
    assert "0.4 s" in envelope.diagnostics["warnings"][0]


FOREVER = "^(a|a)*$"


class Linear(BaseModel):
    """A model within has a config of its own: its pattern is one of Rust's engine."""

    model_config = ConfigDict(regex_engine="python-re")

    class Inner(BaseModel):
        a: str = Field(pattern=FOREVER)

    inner: Inner
    number: int = 0


async def test_a_pattern_of_rusts_engine_is_read_in_linear_time() -> None:
    """Pydantic searches for a pattern that is written as text with this engine."""
    with within(5):
        text = json.dumps({"inner": {"a": "a" * 60 + "!"}})
        envelope = await answered(text, Linear, timeout_s=0.4)
        assert "inner.a: String should match pattern" in envelope.diagnostics["warnings"][0]
    assert envelope.structured == [None]


class Once(BaseModel):
    """A validator with a memory, such as one that looks for doubled invoices."""

    seen: ClassVar[list[str]] = []
    number: str

    @field_validator("number")
    @classmethod
    def _is_new(cls, value: str) -> str:
        if value in cls.seen:
            raise RuntimeError(f"{value} came before")
        cls.seen.append(value)
        return value


async def test_a_callers_validators_run_once_an_answer() -> None:
    """One that fails on a second call lost the envelope."""
    Once.seen.clear()
    envelope = await answered('{"number": "7"}', Once)
    assert Once.seen == ["7"]
    assert [value.number for value in envelope.structured or []] == ["7"]


@pytest.mark.parametrize(("tail", "value"), [("x", None), ("{}\n```\n", {})])
def test_a_fence_before_many_blank_lines_is_found_in_linear_time(tail: str, value: Any) -> None:
    """A regular expression took the cube of their number, and the whole process with it."""
    answer = Answer(text="```json\n" + "\n" * 3_000 + tail, finish_reason="stop")
    with within(5):
        readings = read_answers(Options(response_schema={"type": "object"}), [answer])
    assert readings is not None
    assert readings[0].value == value
