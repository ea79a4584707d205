"""Hostile answers: texts that are made to keep whoever checks them busy. They cost their own structure, and no time."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pollux_flows import ConfigurationError, Options, ResultEnvelope, run, run_many
from pollux_flows.pipeline import extract
from pollux_flows.pipeline.structured import read_answers
from pollux_flows.result import Answer
from pollux_flows.schemas.conformance import Conformance
from pollux_flows.schemas.validation import check
from tests.conforming import problems, without_invented_nulls
from tests.loopback import MODELS, good, http, scripted

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


def test_unique_items_are_compared_by_hash() -> None:
    """Each with each would be two hundred million comparisons here. 1 is 1.0, and not true."""
    schema = {"uniqueItems": True}
    with within(3):
        assert problems([{"n": number} for number in range(20_000)], schema) == []
    assert problems([[1, {"a": True}], [1.0, {"a": True}]], schema) != []
    assert problems([1, True, "1", None, [1], [True]], schema) == []


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a|a)*$"}, "a" * 60 + "!"),
        ({"patternProperties": {"^(a|a)*$": {}}}, {"a" * 60 + "!": 1}),
        ({"patternProperties": {"^(a|a)*$": {}}, "additionalProperties": False}, {"a" * 60 + "!": 1}),
        ({"propertyNames": {"pattern": "^(a|a)*$"}}, {"a" * 60 + "!": 1}),
    ],
)
def test_a_pattern_that_backtracks_for_ever_is_stopped(schema: dict[str, Any], value: Any) -> None:
    """At the deadline, with its name."""
    with within(5), pytest.raises(TimeoutError, match=r"pattern .*\(a\|a\)\*"):
        Conformance(schema, limit_s=0.1).problems(value)


def test_names_that_jsonschema_would_match_itself_are_refused() -> None:
    """Before the call: its own engine cannot be stopped."""
    assert "unevaluatedProperties" in str(check({"patternProperties": {"a": {}}, "unevaluatedProperties": False}))


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


class Looping(BaseModel):
    """A caller's validator that never returns for what a model may well write."""

    name: str

    @field_validator("name")
    @classmethod
    def _loops(cls, value: str) -> str:
        while value == "loop":
            pass
        while value == "sleep":
            time.sleep(60)
        return value


@pytest.mark.parametrize("text", ["loop", "sleep"])
async def test_a_validator_that_never_returns_is_given_up(text: str) -> None:
    """At timeout_s; the text stays."""
    with within(5):
        envelope = await answered(json.dumps({"name": text}), Looping, timeout_s=0.4)
    assert envelope.structured == [None]
    assert "longer than 0.4 seconds" in envelope.diagnostics["warnings"][0]


async def test_an_answer_that_is_given_up_costs_its_siblings_nothing() -> None:
    """Those before it and after it become what they are."""

    def choose(body: bytes) -> bytes:
        return http(good("local", json.dumps({"name": "loop" if b"second" in body else "fine"})))

    async with scripted(choose, by_body=True) as server:
        config = server.config("local", timeout_s=0.4)
        envelope = await run_many(["first", "second", "third"], config=config, options=Options(response_schema=Looping))
    assert envelope.structured == [Looping(name="fine"), None, Looping(name="fine")]


class Left(BaseModel):
    left: Branch | None = None
    a: int = 0


class Right(BaseModel):
    left: Branch | None = None
    b: int = 0


class Other(BaseModel):
    left: Branch | None = None
    c: int = 0


Branch = Annotated[Left | Right | Other, Field(union_mode="smart")]
for _model in (Left, Right, Other):
    _model.model_rebuild()


async def test_a_model_that_would_try_all_combinations_is_refused_in_words() -> None:
    """Pydantic would try three to the thirtieth, in one go that nothing interrupts. A few levels it takes in its
    stride."""
    text = '{"left": ' * 30 + "{}" + "}" * 30
    with within(5):
        envelope = await answered(text, Left)
    assert envelope.structured == [None]
    assert "discriminator" in envelope.diagnostics["warnings"][0]
    assert (await answered('{"left": {"left": {"b": 5}}}', Left)).diagnostics["warnings"] == []


FOREVER = "^(a|a)*$"


class Compiled(BaseModel):
    config: Annotated[str, Field(pattern=re.compile(FOREVER))]


class PythonRe(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")

    a: str = Field(pattern=FOREVER)


class Within(BaseModel):
    default: dict[str, list[PythonRe | int]]


@dataclass
class PythonReDataclass:
    __pydantic_config__ = ConfigDict(regex_engine="python-re")

    a: Annotated[str, Field(pattern=FOREVER)]


class AroundDataclass(BaseModel):
    config: int = 0
    within: PythonReDataclass | None = None


class Linear(BaseModel):
    """A model within has a config of its own: its pattern is one of Rust's engine."""

    model_config = ConfigDict(regex_engine="python-re")

    class Inner(BaseModel):
        a: str = Field(pattern=FOREVER)

    inner: Inner
    number: int = 0


@pytest.mark.parametrize("model", [Compiled, PythonRe, Within, AroundDataclass])
async def test_a_pattern_that_nothing_can_stop_is_refused(model: type[BaseModel]) -> None:
    """Before any request: Python's re holds the GIL, so a deadline on another thread never comes."""
    with pytest.raises(
        ConfigurationError, match=re.escape(f"{model.__name__} checks the pattern '{FOREVER}'")
    ) as refused:
        Options(response_schema=model)
    assert "model_json_schema()" in str(refused.value.hint)
    with pytest.raises(ConfigurationError, match="checks the pattern"):
        Options(response_schema=f"{__name__}:{model.__name__}")


def test_such_a_pattern_freezes_the_process() -> None:
    """Why it is refused: a reader with a deadline of 0.1 seconds is not back after two."""
    code = f"""
from pydantic import BaseModel, ConfigDict, Field
from pollux_flows.pipeline.time_limit import each_in_time

class PythonRe(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")
    a: str = Field(pattern={FOREVER!r})

answer = '{{"a": "' + "a" * 60 + '!"}}'
print("begins", flush=True)
each_in_time(PythonRe.model_validate_json, [answer], limit_s=0.1, late=None)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begins\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=2)
        finally:
            process.kill()


async def test_a_pattern_of_rusts_engine_is_read_in_linear_time() -> None:
    """And the patterns of a class that is passed as its JSON Schema are checked under the deadline."""
    with within(5):
        text = json.dumps({"inner": {"a": "a" * 60 + "!"}})
        envelope = await answered(text, Linear, timeout_s=0.4)
        assert "inner.a: String should match pattern" in envelope.diagnostics["warnings"][0]
        envelope = await answered('{"a": "aa"}', PythonRe.model_json_schema(), timeout_s=0.4)
    assert envelope.structured == [{"a": "aa"}]


class Numbers(BaseModel):
    ids: set[UUID] | None = None
    names: dict[int, str] | None = None


class Words(BaseModel):
    ids: set[str]


@pytest.mark.parametrize(
    "answer",
    [
        {"ids": [str(UUID(int=number * (2**61 - 1))) for number in range(6_000)]},
        {"names": {str(number * (2**61 - 1)): "" for number in range(12_000)}},
    ],
    ids=["set", "dict"],
)
async def test_numbers_of_equal_hashes_are_refused_in_words(answer: dict[str, Any]) -> None:
    """Python would compare each with all others, in one go that nothing interrupts; a megabyte took a minute."""
    envelope = await answered(json.dumps(answer), Numbers)
    assert envelope.structured == [None]
    assert "too many items for the sets" in envelope.diagnostics["warnings"][0]


async def test_a_large_set_of_texts_is_read() -> None:
    """Their hashes are secret, so they cannot be made equal."""
    words = [f"{number}" for number in range(6_000)]
    assert (await answered(json.dumps({"ids": words}), Words)).structured == [Words(ids=set(words))]


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


async def test_the_arguments_of_many_tool_calls_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a pattern that never ends; past the limit, they are as the model wrote them."""
    monkeypatch.setattr(extract, "TOOLS_S", 0.05, raising=False)
    slow = {"type": "object", "properties": {"q": {"type": "string", "pattern": "^(a|a)*$"}}}
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"anyOf": [slow, {"type": "object"}]}}}}
    arguments = json.dumps({"x": {"q": "a" * 60 + "!"}})
    calls = [{"id": f"{number}", "function": {"name": "f", "arguments": arguments}} for number in range(10)]
    reply = {"choices": [{"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}]}
    async with scripted(http(reply)) as server:
        server.listing = http({"data": [{"id": MODELS["openrouter"], "supported_parameters": ["tools"]}]})
        with within(5):
            envelope = await run("p", config=server.config("openrouter"), options=Options(tools=[tool]))
    assert envelope.tool_calls is not None
    assert [call["arguments"] for call in envelope.tool_calls[0]] == [arguments] * 10
