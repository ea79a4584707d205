"""Redaction: a key that a provider echoes is removed before anything is stored or shown."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pollux_flows import APIError, run
from pollux_flows.config import ProviderName
from pollux_flows.providers.batches import Batch, Result
from pollux_flows.providers.redaction import Redactor
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import KEY, ONCE, SDKS, MakeConfig, every_provider, good, http, make_config_at, scripted
from tests.providers.batching import BatchSession, open_batch_session

PLACEHOLDER_KEY = "not-needed"


@pytest.fixture(params=SDKS)
async def b(
    request: pytest.FixtureRequest, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> AsyncIterator[BatchSession]:
    async with open_batch_session(config(request.param), sim, tmp_path) as opened:
        yield opened


async def test_a_batch_row_that_echoes_the_key_is_redacted(b: BatchSession) -> None:
    """The rest of the results is unchanged."""
    b.sim.fail(Fault(status=400, message=f"bad key {KEY}"), operation="batch.row", contains="Echo it.")
    batch = await b.run_batch("Echo it.", "Hello?")
    downloaded = io.BytesIO()
    await b.session.download_batch(batch, downloaded)
    assert KEY.encode() not in downloaded.getvalue()
    results = {result.key: result for result in map(b.session.batches.result, downloaded.getvalue().splitlines())}
    assert "bad key [REDACTED]" in str(results["r0"].error)
    assert b.read_answer(results["r1"]).text == "Simulated answer to: Hello?"


async def test_a_batch_error_that_echoes_the_key_is_redacted(b: BatchSession) -> None:
    """An inspected batch and a listed one are both redacted. Anthropic's batches have no error of their own."""
    b.sim.batch(end="failed", message=f"bad key {KEY}")
    batch = await b.run_batch("Hello?")
    (listed,) = [each async for page in b.session.batch_pages() for each in page]
    for each in (batch, listed):
        assert KEY not in repr(each)
        if b.provider != "anthropic":
            assert "bad key [REDACTED]" in str(each.problem)


@every_provider
async def test_an_answer_that_echoes_the_key_is_redacted(provider: ProviderName) -> None:
    """A gateway in debug mode may answer with the headers it received."""
    async with scripted(http(good(provider, f"authorization: Bearer {KEY}"))) as server:
        envelope = await run("p", config=server.config(provider))
    assert envelope.text == "authorization: Bearer [REDACTED]"
    assert KEY not in envelope.model_dump_json()


async def test_a_short_placeholder_key_is_redacted_only_in_errors() -> None:
    """Local servers need no key, and callers pass an ordinary word."""
    async with scripted(http(good("local", f"A key is {PLACEHOLDER_KEY}."))) as server:
        config = server.config("local", api_key=PLACEHOLDER_KEY)
        assert (await run("p", config=config)).text == f"A key is {PLACEHOLDER_KEY}."
    redactor = Redactor(config)
    failed = redactor.answer(
        Batch(id=f"b-{PLACEHOLDER_KEY}", state="failed", native="failed", problem=f"bad key {PLACEHOLDER_KEY}")
    )
    assert (failed.id, failed.problem) == (f"b-{PLACEHOLDER_KEY}", "bad key [REDACTED]")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f'{{"error":"bad key {KEY}"}}', {"error": "bad key [REDACTED]"}),
        (f'{{"{KEY}":[{{"a":"{KEY}"}},1,null]}}', {"[REDACTED]": [{"a": "[REDACTED]"}, 1, None]}),
        ('{"error":"' + "".join(f"\\u{ord(letter):04x}" for letter in KEY) + '"}', {"error": "[REDACTED]"}),
        ('{"error":"caf\\u00e9 \\/ \\u0041"}', {"error": "café / A"}),
    ],
)
def test_an_escaped_key_in_json_is_redacted(line: str, expected: object) -> None:
    """A line without the key is unchanged."""
    redacted = Redactor(make_config_at("http://h")("openai")).line(line.encode(), _make_failed_result)
    assert json.loads(redacted) == expected
    assert (redacted == line.encode()) == (KEY not in str(json.loads(line)))


def test_a_key_in_a_line_that_is_not_json_is_redacted() -> None:
    """Such lines are stored for people to read."""
    line = Redactor(make_config_at("http://h")("openai")).line(f'{{"cut: {KEY}'.encode(), _make_failed_result)
    assert line == b'{"cut: [REDACTED]'


def test_a_key_split_between_two_writes_is_redacted() -> None:
    into = io.BytesIO()
    results = Redactor(make_config_at("http://h")("openai")).results(into, _make_failed_result)
    text = f'{{"error":"{KEY}"}}\n{{"error":"no key"}}\n'.encode()
    for at in range(0, len(text), 7):
        results.write(text[at : at + 7])
    assert into.getvalue() == b'{"error":"[REDACTED]"}\n{"error":"no key"}\n'


@every_provider
async def test_an_error_that_echoes_the_key_is_redacted(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The key is removed from chained errors, too, which a traceback would show."""
    sim.fail(Fault(status=400, message=f"bad key {KEY}"))
    with pytest.raises(APIError, match=r"bad key \[REDACTED\]") as caught:
        await run("p", config=config(provider, retry=ONCE))
    assert KEY not in f"{caught.value!r}{vars(caught.value)}{caught.value.__cause__!r}{caught.value.__context__!r}"


def _make_failed_result(_line: bytes) -> Result:
    return Result(None, "failed")
