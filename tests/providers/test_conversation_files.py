"""Conversations about files and addresses: what a turn was about is there in the turns after it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import ConfigurationError, Options, Source, SourceError, continue_tool, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import SDKS, MakeConfig, asked

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
SEES: tuple[ProviderName, ...] = (*SDKS, "openrouter")
LINK = Source.from_uri("https://example.com/april.pdf", mime_type="application/pdf")

with_files = pytest.mark.parametrize("provider", SEES)
on_sdks = pytest.mark.parametrize("provider", SDKS)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


@pytest.fixture
def pdf(tmp_path: Path) -> Source:
    (tmp_path / "report.pdf").write_bytes(PDF)
    return Source.from_file(tmp_path / "report.pdf")


def first_turn(provider: ProviderName, body: dict[str, Any]) -> list[Any]:
    """What is in the first turn of a request."""
    if provider == "gemini":
        parts: list[Any] = body["contents"][0]["parts"]
        return parts
    content: list[Any] = (body["input"] if provider == "openai" else body["messages"])[0]["content"]
    return content


@with_files
async def test_a_file_is_there_in_the_next_turns(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """Attached again, in its place among the texts of its turn; uploaded once."""
    sources = [Source.from_text("Of March:"), pdf, LINK, Source.from_text("Of May: nothing.")]
    first = await run_many("What fell short?", sources=sources, config=config(provider), options=Options(history=[]))
    second = await run("Why?", config=config(provider), options=Options(continue_from=first))
    await run("Sure?", config=config(provider), options=Options(continue_from=second))
    assert [entry.status for entry in asked(sim)] == [200] * 3
    turns = [first_turn(provider, entry.body) for entry in asked(sim)]
    assert turns[0] == turns[1] == turns[2]
    assert len(turns[0]) == 5
    assert len(sim.files) == (0 if provider == "openrouter" else 1)


@with_files
async def test_a_tool_loop_about_a_file(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """The file stays with its question, the results with their calls."""
    sim.fail(Fault(kind="tool_call", count=2))
    options = Options(tools=[{"name": "look"}])
    first = await run("Look.", source=pdf, config=config(provider), options=options)
    results = [{"tool_call_id": call["id"], "content": "sea"} for call in (first.tool_calls or [[]])[0]]
    last = await continue_tool(first, results, config=config(provider), options=options)
    assert last.text == "Simulated answer from the results of: look, look"
    turns = [first_turn(provider, entry.body) for entry in asked(sim)]
    assert turns[0] == turns[1]


@on_sdks
async def test_a_file_that_is_gone_from_the_provider_is_uploaded_again(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """From where it lies. On OpenAI, too: an id would lead to a file that is no more."""
    none_kept = config(provider, keep_files_s=0.0)
    first = await run("What?", source=pdf, config=none_kept, options=Options(history=[]))
    assert not any(file.is_there for file in sim.files)
    last = await run("Why?", config=none_kept, options=Options(continue_from=first))
    assert last.status == "ok"
    assert len(sim.files) == 2
    assert "previous_response_id" not in asked(sim)[1].body


async def test_openai_keeps_what_nothing_was_attached_to(config: MakeConfig, sim: Simulator) -> None:
    """Text is kept under the id of its answer, and not sent again."""
    source = Source.from_text("A long report.")
    first = await run("What?", source=source, config=config("openai"), options=Options(history=[]))
    await run("Why?", config=config("openai"), options=Options(continue_from=first))
    assert "previous_response_id" in asked(sim)[1].body


async def test_a_file_that_changed_is_refused_unsent(
    config: MakeConfig, sim: Simulator, pdf: Source, tmp_path: Path
) -> None:
    """The answers so far are about what it was."""
    first = await run("What?", source=pdf, config=config("gemini"), options=Options(history=[]))
    (tmp_path / "report.pdf").write_bytes(PDF + b"more")
    with pytest.raises(SourceError, match="has changed since") as caught:
        await run("Why?", config=config("gemini"), options=Options(continue_from=first))
    assert caught.value.hint
    assert len(asked(sim)) == 1


async def test_a_file_that_is_not_here_is_refused_unsent(
    config: MakeConfig, sim: Simulator, pdf: Source, tmp_path: Path
) -> None:
    """As on another machine."""
    first = await run("What?", source=pdf, config=config("gemini"), options=Options(history=[]))
    (tmp_path / "report.pdf").unlink()
    with pytest.raises(SourceError, match=r"report\.pdf") as caught:
        await run("Why?", config=config("gemini"), options=Options(continue_from=first))
    assert caught.value.hint
    assert len(asked(sim)) == 1


async def test_another_name_for_the_file_is_no_other_question(
    config: MakeConfig, sim: Simulator, pdf: Source, tmp_path: Path
) -> None:
    """What is in it counts, in the turns before as in this one."""
    (tmp_path / "copy.pdf").write_bytes(PDF)
    for source in (pdf, Source.from_file(tmp_path / "copy.pdf")):
        first = await run("What?", source=source, config=config("gemini"), options=Options(history=[]), reuse="always")
        await run("Why?", config=config("gemini"), options=Options(continue_from=first), reuse="always")
    assert len(asked(sim)) == 2


async def test_what_a_turn_shows_must_suit_the_provider(config: MakeConfig, sim: Simulator) -> None:
    """A history that was told elsewhere may hold what this one does not take."""
    first = await run("What?", source=LINK, config=config("gemini"), options=Options(history=[]))
    history = first["_conversation_state"]["history"]
    with pytest.raises(ConfigurationError, match="pdf_urls"):
        await run("Why?", config=config("local"), options=Options(history=history))
    assert len(asked(sim)) == 1


async def test_gemini_may_open_an_address_again(config: MakeConfig, sim: Simulator) -> None:
    """What it read there is not in the history."""
    page = Source.from_uri("https://example.com/a", mime_type="text/html").with_gemini_url_context()
    first = await run("What?", source=page, config=config("gemini"), options=Options(history=[]))
    await run("Why?", config=config("gemini"), options=Options(continue_from=first))
    assert [entry.body["tools"] for entry in asked(sim)] == [[{"urlContext": {}}]] * 2


async def test_a_file_goes_to_openrouter_each_time(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    """It keeps none: the bytes are inside each request, and the engine that reads them is the free one."""
    first = await run("What?", source=pdf, config=config("openrouter"), options=Options(history=[]))
    await run("Why?", config=config("openrouter"), options=Options(continue_from=first))
    for entry in asked(sim):
        assert base64.b64encode(PDF).decode() in entry.body["messages"][0]["content"][0]["file"]["file_data"]
        assert entry.body["plugins"][0]["pdf"] == {"engine": "cloudflare-ai"}


async def test_openais_thoughts_about_a_file_go_back_sealed(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    """Where all is sent again, so are they, before the calls that they led to."""
    options = Options(tools=[{"name": "look"}], reasoning_effort="low")
    gpt = config("openai", model="gpt-5-mini")
    sim.fail(Fault(kind="tool_call"))
    first = await run("Look.", source=pdf, config=gpt, options=options)
    results = [{"tool_call_id": call["id"], "content": "sea"} for call in (first.tool_calls or [[]])[0]]
    assert (await continue_tool(first, results, config=gpt, options=options)).status == "ok"
    user, thought, call, result = asked(sim)[1].body["input"]
    assert [part["type"] for part in user["content"]] == ["input_file", "input_text"]
    assert [thought["type"], call["type"], result["type"]] == ["reasoning", "function_call", "function_call_output"]
    assert thought["encrypted_content"]
