"""Redaction: what a provider echoes of the key is gone before anything of ours can store it."""

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
from tests.providers.batching import Batching, batching

SHORT = "not-needed"


@pytest.fixture(params=SDKS)
async def b(
    request: pytest.FixtureRequest, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> AsyncIterator[Batching]:
    async with batching(config(request.param), sim, tmp_path) as opened:
        yield opened


async def test_a_row_that_echoes_the_key_is_stored_without_it(b: Batching) -> None:
    """The file with the provider's own words holds no key; what else it says stays."""
    b.sim.fail(Fault(status=400, message=f"bad key {KEY}"), operation="batch.row", contains="Echo it.")
    batch = await b.ended("Echo it.", "Hello?")
    taken = io.BytesIO()
    await b.session.download_batch(batch, taken)
    assert KEY.encode() not in taken.getvalue()
    results = {result.key: result for result in map(b.session.batches.result, taken.getvalue().splitlines())}
    assert "bad key [REDACTED]" in str(results["r0"].error)
    assert b.answer(results["r1"]).text == "Simulated answer to: Hello?"


async def test_a_batch_whose_own_error_echoes_the_key_is_told_without_it(b: Batching) -> None:
    """Asked for by its id, and in a list. Anthropic's batches have no error of their own."""
    b.sim.batch(end="failed", message=f"bad key {KEY}")
    batch = await b.ended("Hello?")
    (listed,) = [each async for page in b.session.batch_pages() for each in page]
    for each in (batch, listed):
        assert KEY not in repr(each)
        if b.provider != "anthropic":
            assert "bad key [REDACTED]" in str(each.problem)


@every_provider
async def test_an_answer_that_echoes_the_key_is_given_without_it(provider: ProviderName) -> None:
    """A gateway that is being debugged answers with the headers that it was sent."""
    async with scripted(http(good(provider, f"authorization: Bearer {KEY}"))) as server:
        envelope = await run("p", config=server.config(provider))
    assert envelope.text == "authorization: Bearer [REDACTED]"
    assert KEY not in envelope.model_dump_json()


async def test_a_word_in_the_place_of_a_key_stays_in_answers() -> None:
    """Local servers want no key, and are given some word; of an error it goes all the same."""
    async with scripted(http(good("local", f"A key is {SHORT}."))) as server:
        config = server.config("local", api_key=SHORT)
        assert (await run("p", config=config)).text == f"A key is {SHORT}."
    redactor = Redactor(config)
    failed = redactor.answer(Batch(id=f"b-{SHORT}", state="failed", native="failed", problem=f"bad key {SHORT}"))
    assert (failed.id, failed.problem) == (f"b-{SHORT}", "bad key [REDACTED]")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f'{{"error":"bad key {KEY}"}}', {"error": "bad key [REDACTED]"}),
        (f'{{"{KEY}":[{{"a":"{KEY}"}},1,null]}}', {"[REDACTED]": [{"a": "[REDACTED]"}, 1, None]}),
        ('{"error":"' + "".join(f"\\u{ord(letter):04x}" for letter in KEY) + '"}', {"error": "[REDACTED]"}),
        ('{"error":"caf\\u00e9 \\/ \\u0041"}', {"error": "café / A"}),
    ],
)
def test_a_key_is_found_however_json_spells_it(line: str, expected: object) -> None:
    """Each letter may be escaped; a line without the key stays as it came."""
    redacted = Redactor(make_config_at("http://h")("openai")).line(line.encode(), _failed)
    assert json.loads(redacted) == expected
    assert (redacted == line.encode()) == (KEY not in str(json.loads(line)))


def test_a_line_that_is_no_json_holds_no_key_either() -> None:
    """It is kept for people to look at."""
    line = Redactor(make_config_at("http://h")("openai")).line(f'{{"cut: {KEY}'.encode(), _failed)
    assert line == b'{"cut: [REDACTED]'


def test_a_key_that_arrives_in_two_pieces_is_found() -> None:
    """The network cuts where it likes."""
    into = io.BytesIO()
    results = Redactor(make_config_at("http://h")("openai")).results(into, _failed)
    text = f'{{"error":"{KEY}"}}\n{{"error":"no key"}}\n'.encode()
    for at in range(0, len(text), 7):
        results.write(text[at : at + 7])
    assert into.getvalue() == b'{"error":"[REDACTED]"}\n{"error":"no key"}\n'


@every_provider
async def test_an_error_that_echoes_the_key_is_told_without_it(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Nor in the traceback, whose errors a log would show."""
    sim.fail(Fault(status=400, message=f"bad key {KEY}"))
    with pytest.raises(APIError, match=r"bad key \[REDACTED\]") as raised:
        await run("p", config=config(provider, retry=ONCE))
    assert KEY not in f"{raised.value!r}{vars(raised.value)}{raised.value.__cause__!r}{raised.value.__context__!r}"


def _failed(_line: bytes) -> Result:
    return Result(None, "failed")
