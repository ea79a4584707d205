"""Hostile answers: text that is expensive to parse or validate loses its structured value, and costs little time."""

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

# A naive validator needs 54 seconds for ten levels: each level tries three branches, each with all levels below.
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


def make_nested(depth: int, leaf: dict[str, Any]) -> dict[str, Any]:
    value = leaf
    for _ in range(depth):
        value = {"kind": "c", "child": value, "note": None}
    return value


@contextmanager
def assert_within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@pytest.mark.parametrize("leaf", [{"kind": "a"}, {"kind": "b", "note": None}])
def test_a_recursive_union_is_read_in_linear_time(leaf: dict[str, Any]) -> None:
    """Each value is checked against each branch once, at any depth."""
    with assert_within(5):
        cleaned = without_invented_nulls(make_nested(30, leaf), TREE)
        assert problems(cleaned, TREE) == []
    assert "note" not in json.dumps(cleaned)


def test_a_problem_deep_in_a_recursive_union_is_located() -> None:
    """The problem is not reported as "not valid under any of the given schemas" at the root."""
    with assert_within(5):
        (problem,) = problems(make_nested(30, {"kind": "a", "note": 5}) | {"note": "x"}, TREE)[:1]
    assert problem.startswith("$.child")


def test_at_most_twenty_problems_are_reported() -> None:
    assert len(problems(["x"] * 100_000, {"type": "array", "items": {"type": "integer"}})) == 20


def test_unique_items_are_compared_by_hash() -> None:
    """Pairwise comparison would take 200 million steps here. 1 equals 1.0, and not true."""
    schema = {"uniqueItems": True}
    with assert_within(3):
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
def test_a_backtracking_pattern_is_stopped_at_the_time_limit(schema: dict[str, Any], value: Any) -> None:
    """The error names the pattern."""
    with assert_within(5), pytest.raises(TimeoutError, match=r"pattern .*\(a\|a\)\*"):
        Conformance(schema, limit_s=0.1).problems(value)


def test_a_schema_whose_patterns_jsonschema_would_match_itself_is_refused() -> None:
    """Regular expressions that jsonschema matches cannot be interrupted."""
    assert "unevaluatedProperties" in str(check({"patternProperties": {"a": {}}, "unevaluatedProperties": False}))


# --- In a run -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def assert_responsive(seconds: float) -> AsyncIterator[None]:
    """Assert that the event loop is never blocked for so many seconds of this process's CPU time."""
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


async def run_with_answer(text: str, schema: Any, **settings: Any) -> ResultEnvelope:
    """Run a prompt that is answered with this text, and assert that the event loop is not blocked meanwhile."""
    async with scripted(http(good("local", text))) as server, assert_responsive(1):
        envelope = await run("p", config=server.config("local", **settings), options=Options(response_schema=schema))
    assert envelope.answers == [text]
    return envelope


async def test_a_backtracking_pattern_costs_only_the_structured_value() -> None:
    """timeout_s limits the validation, and other tasks run meanwhile."""
    with assert_within(5):
        schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a|a)*$"}}}
        envelope = await run_with_answer(json.dumps({"a": "a" * 60 + "!"}), schema, timeout_s=0.4)
    assert envelope.structured == [None]
    assert "0.4 s" in envelope.diagnostics["warnings"][0]


class LoopingModel(BaseModel):
    """A model whose validator never returns for some values."""

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
async def test_a_validator_that_never_returns_is_given_up_after_timeout_s(text: str) -> None:
    """The answer's text is returned."""
    with assert_within(5):
        envelope = await run_with_answer(json.dumps({"name": text}), LoopingModel, timeout_s=0.4)
    assert envelope.structured == [None]
    assert "longer than 0.4 seconds" in envelope.diagnostics["warnings"][0]


async def test_a_validation_given_up_does_not_affect_other_answers() -> None:
    def choose(body: bytes) -> bytes:
        return http(good("local", json.dumps({"name": "loop" if b"second" in body else "fine"})))

    async with scripted(choose, by_body=True) as server:
        config = server.config("local", timeout_s=0.4)
        envelope = await run_many(
            ["first", "second", "third"], config=config, options=Options(response_schema=LoopingModel)
        )
    assert envelope.structured == [LoopingModel(name="fine"), None, LoopingModel(name="fine")]


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


async def test_a_union_with_exponentially_many_combinations_is_not_validated() -> None:
    """Pydantic would try 3**30 combinations in a call that nothing can interrupt; a few levels are validated."""
    text = '{"left": ' * 30 + "{}" + "}" * 30
    with assert_within(5):
        envelope = await run_with_answer(text, Left)
    assert envelope.structured == [None]
    assert "discriminator" in envelope.diagnostics["warnings"][0]
    assert (await run_with_answer('{"left": {"left": {"b": 5}}}', Left)).diagnostics["warnings"] == []


BACKTRACKING = "^(a|a)*$"


class Compiled(BaseModel):
    config: Annotated[str, Field(pattern=re.compile(BACKTRACKING))]


class PythonRe(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")

    a: str = Field(pattern=BACKTRACKING)


class ModelInContainer(BaseModel):
    default: dict[str, list[PythonRe | int]]


@dataclass
class PythonReDataclass:
    __pydantic_config__ = ConfigDict(regex_engine="python-re")

    a: Annotated[str, Field(pattern=BACKTRACKING)]


class AroundDataclass(BaseModel):
    config: int = 0
    within: PythonReDataclass | None = None


class RustInsidePython(BaseModel):
    """The inner model has a config of its own, so its pattern runs on Rust's linear-time engine."""

    model_config = ConfigDict(regex_engine="python-re")

    class Inner(BaseModel):
        a: str = Field(pattern=BACKTRACKING)

    inner: Inner
    number: int = 0


@pytest.mark.parametrize("model", [Compiled, PythonRe, ModelInContainer, AroundDataclass])
async def test_a_model_with_an_uninterruptible_pattern_is_refused(model: type[BaseModel]) -> None:
    """Python's re holds the GIL, so no deadline on another thread can end it."""
    with pytest.raises(
        ConfigurationError, match=re.escape(f"{model.__name__} checks the pattern '{BACKTRACKING}'")
    ) as caught:
        Options(response_schema=model)
    assert "model_json_schema()" in str(caught.value.hint)
    with pytest.raises(ConfigurationError, match="checks the pattern"):
        Options(response_schema=f"{__name__}:{model.__name__}")


def test_a_backtracking_pattern_of_python_re_blocks_the_process() -> None:
    """A reader with a deadline of 0.1 seconds has not returned after two, so such models are refused."""
    code = f"""
from pydantic import BaseModel, ConfigDict, Field
from pollux_flows.pipeline.time_limit import each_in_time

class PythonRe(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")
    a: str = Field(pattern={BACKTRACKING!r})

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


async def test_a_pattern_on_rusts_engine_is_validated_in_linear_time() -> None:
    """A model passed as JSON Schema has its patterns checked under the time limit."""
    with assert_within(5):
        text = json.dumps({"inner": {"a": "a" * 60 + "!"}})
        envelope = await run_with_answer(text, RustInsidePython, timeout_s=0.4)
        assert "inner.a: String should match pattern" in envelope.diagnostics["warnings"][0]
        envelope = await run_with_answer('{"a": "aa"}', PythonRe.model_json_schema(), timeout_s=0.4)
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
async def test_a_set_of_numbers_with_colliding_hashes_is_not_built(answer: dict[str, Any]) -> None:
    """Python would compare each with all others without interruption; a megabyte took a minute."""
    envelope = await run_with_answer(json.dumps(answer), Numbers)
    assert envelope.structured == [None]
    assert "too many items for the sets" in envelope.diagnostics["warnings"][0]


async def test_a_large_set_of_strings_is_built() -> None:
    """Hashes of strings are randomised, so an answer cannot make them collide."""
    words = [f"{number}" for number in range(6_000)]
    assert (await run_with_answer(json.dumps({"ids": words}), Words)).structured == [Words(ids=set(words))]


class UniqueInvoice(BaseModel):
    """A validator with a state, such as one that looks for doubled invoices."""

    seen: ClassVar[list[str]] = []
    number: str

    @field_validator("number")
    @classmethod
    def _is_new(cls, value: str) -> str:
        if value in cls.seen:
            raise RuntimeError(f"{value} came before")
        cls.seen.append(value)
        return value


async def test_a_callers_validators_run_once_for_each_answer() -> None:
    """A validator that fails on its second call would otherwise lose the envelope."""
    UniqueInvoice.seen.clear()
    envelope = await run_with_answer('{"number": "7"}', UniqueInvoice)
    assert UniqueInvoice.seen == ["7"]
    assert [value.number for value in envelope.structured or []] == ["7"]


@pytest.mark.parametrize(("tail", "value"), [("x", None), ("{}\n```\n", {})])
def test_a_fence_before_many_blank_lines_is_found_in_linear_time(tail: str, value: Any) -> None:
    """A regular expression would take time cubic in their number, and block the process."""
    answer = Answer(text="```json\n" + "\n" * 3_000 + tail, finish_reason="stop")
    with assert_within(5):
        readings = read_answers(Options(response_schema={"type": "object"}), [answer])
    assert readings is not None
    assert readings[0].value == value


async def test_the_arguments_of_all_tool_calls_share_one_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit, arguments are returned as the model wrote them."""
    monkeypatch.setattr(extract, "TOOLS_S", 0.05, raising=False)
    slow = {"type": "object", "properties": {"q": {"type": "string", "pattern": "^(a|a)*$"}}}
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"anyOf": [slow, {"type": "object"}]}}}}
    arguments = json.dumps({"x": {"q": "a" * 60 + "!"}})
    calls = [{"id": f"{number}", "function": {"name": "f", "arguments": arguments}} for number in range(10)]
    reply = {"choices": [{"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}]}
    async with scripted(http(reply)) as server:
        server.listing = http({"data": [{"id": MODELS["openrouter"], "supported_parameters": ["tools"]}]})
        with assert_within(5):
            envelope = await run("p", config=server.config("openrouter"), options=Options(tools=[tool]))
    assert envelope.tool_calls is not None
    assert [call["arguments"] for call in envelope.tool_calls[0]] == [arguments] * 10
