"""Conversations about files and addresses: a source of one turn is sent again in later turns."""

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
FILE_PROVIDERS: tuple[ProviderName, ...] = (*SDKS, "openrouter")
LINK = Source.from_uri("https://example.com/april.pdf", mime_type="application/pdf")

with_files = pytest.mark.parametrize("provider", FILE_PROVIDERS)
on_sdks = pytest.mark.parametrize("provider", SDKS)


@pytest.fixture(autouse=True)
def pollux_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


@pytest.fixture
def pdf(tmp_path: Path) -> Source:
    (tmp_path / "report.pdf").write_bytes(PDF)
    return Source.from_file(tmp_path / "report.pdf")


def read_first_turn(provider: ProviderName, body: dict[str, Any]) -> list[Any]:
    """Return the parts of the first turn of a request."""
    if provider == "gemini":
        parts: list[Any] = body["contents"][0]["parts"]
        return parts
    content: list[Any] = (body["input"] if provider == "openai" else body["messages"])[0]["content"]
    return content


@with_files
async def test_sources_of_a_turn_are_attached_in_later_turns(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """Sources stay in their places among the texts of their turn; a file is uploaded once."""
    sources = [Source.from_text("Of March:"), pdf, LINK, Source.from_text("Of May: nothing.")]
    first = await run_many("What fell short?", sources=sources, config=config(provider), options=Options(history=[]))
    second = await run("Why?", config=config(provider), options=Options(continue_from=first))
    await run("Sure?", config=config(provider), options=Options(continue_from=second))
    assert [entry.status for entry in asked(sim)] == [200] * 3
    turns = [read_first_turn(provider, entry.body) for entry in asked(sim)]
    assert turns[0] == turns[1] == turns[2]
    assert len(turns[0]) == 5
    assert len(sim.files) == (0 if provider == "openrouter" else 1)


@with_files
async def test_a_tool_loop_keeps_the_file_with_its_question(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    sim.fail(Fault(kind="tool_call", count=2))
    options = Options(tools=[{"name": "look"}])
    first = await run("Look.", source=pdf, config=config(provider), options=options)
    results = [{"tool_call_id": call["id"], "content": "sea"} for call in (first.tool_calls or [[]])[0]]
    last = await continue_tool(first, results, config=config(provider), options=options)
    assert last.text == "Simulated answer from the results of: look, look"
    turns = [read_first_turn(provider, entry.body) for entry in asked(sim)]
    assert turns[0] == turns[1]


@on_sdks
async def test_a_file_deleted_at_the_provider_is_uploaded_again_in_the_next_turn(
    provider: ProviderName, config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """On OpenAI a previous_response_id would refer to the deleted file, so none is sent."""
    deleting_config = config(provider, keep_files_s=0.0)
    first = await run("What?", source=pdf, config=deleting_config, options=Options(history=[]))
    assert not any(file.is_there for file in sim.files)
    last = await run("Why?", config=deleting_config, options=Options(continue_from=first))
    assert last.status == "ok"
    assert len(sim.files) == 2
    assert "previous_response_id" not in asked(sim)[1].body


async def test_openai_continues_a_text_only_turn_by_its_response_id(config: MakeConfig, sim: Simulator) -> None:
    """OpenAI stores the text under the response id, so it is not sent again."""
    source = Source.from_text("A long report.")
    first = await run("What?", source=source, config=config("openai"), options=Options(history=[]))
    await run("Why?", config=config("openai"), options=Options(continue_from=first))
    assert "previous_response_id" in asked(sim)[1].body


async def test_a_file_changed_since_its_turn_is_refused_unsent(
    config: MakeConfig, sim: Simulator, pdf: Source, tmp_path: Path
) -> None:
    """Earlier answers are about its former content."""
    first = await run("What?", source=pdf, config=config("gemini"), options=Options(history=[]))
    (tmp_path / "report.pdf").write_bytes(PDF + b"more")
    with pytest.raises(SourceError, match="has changed since") as caught:
        await run("Why?", config=config("gemini"), options=Options(continue_from=first))
    assert caught.value.hint
    assert len(asked(sim)) == 1


async def test_a_file_of_an_earlier_turn_that_is_missing_is_refused_unsent(
    config: MakeConfig, sim: Simulator, pdf: Source, tmp_path: Path
) -> None:
    """The file may be on another machine."""
    first = await run("What?", source=pdf, config=config("gemini"), options=Options(history=[]))
    (tmp_path / "report.pdf").unlink()
    with pytest.raises(SourceError, match=r"report\.pdf") as caught:
        await run("Why?", config=config("gemini"), options=Options(continue_from=first))
    assert caught.value.hint
    assert len(asked(sim)) == 1


async def test_answers_are_reused_for_a_copy_of_the_file(
    config: MakeConfig, sim: Simulator, pdf: Source, tmp_path: Path
) -> None:
    """Answers are found by the content of files, not by their names, in prior turns too."""
    (tmp_path / "copy.pdf").write_bytes(PDF)
    for source in (pdf, Source.from_file(tmp_path / "copy.pdf")):
        first = await run("What?", source=source, config=config("gemini"), options=Options(history=[]), reuse="always")
        await run("Why?", config=config("gemini"), options=Options(continue_from=first), reuse="always")
    assert len(asked(sim)) == 2


async def test_a_history_with_a_source_that_the_provider_does_not_take_is_refused(
    config: MakeConfig, sim: Simulator
) -> None:
    """The history may come from another provider."""
    first = await run("What?", source=LINK, config=config("gemini"), options=Options(history=[]))
    history = first["_conversation_state"]["history"]
    with pytest.raises(ConfigurationError, match="pdf_urls"):
        await run("Why?", config=config("local"), options=Options(history=history))
    assert len(asked(sim)) == 1


async def test_gemini_can_open_the_address_of_an_earlier_turn(config: MakeConfig, sim: Simulator) -> None:
    """The page's content is not part of the history, so the tool is sent in each turn."""
    page = Source.from_uri("https://example.com/a", mime_type="text/html").with_gemini_url_context()
    first = await run("What?", source=page, config=config("gemini"), options=Options(history=[]))
    await run("Why?", config=config("gemini"), options=Options(continue_from=first))
    assert [entry.body["tools"] for entry in asked(sim)] == [[{"urlContext": {}}]] * 2


async def test_openrouter_receives_the_bytes_of_a_file_in_each_turn(
    config: MakeConfig, sim: Simulator, pdf: Source
) -> None:
    """OpenRouter stores no files; the free PDF engine is chosen."""
    first = await run("What?", source=pdf, config=config("openrouter"), options=Options(history=[]))
    await run("Why?", config=config("openrouter"), options=Options(continue_from=first))
    for entry in asked(sim):
        assert base64.b64encode(PDF).decode() in entry.body["messages"][0]["content"][0]["file"]["file_data"]
        assert entry.body["plugins"][0]["pdf"] == {"engine": "cloudflare-ai"}


async def test_openai_receives_its_encrypted_reasoning_again(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    """Without a response id all items are sent again; reasoning precedes the calls that it led to."""
    options = Options(tools=[{"name": "look"}], reasoning_effort="low")
    reasoning_config = config("openai", model="gpt-5-mini")
    sim.fail(Fault(kind="tool_call"))
    first = await run("Look.", source=pdf, config=reasoning_config, options=options)
    results = [{"tool_call_id": call["id"], "content": "sea"} for call in (first.tool_calls or [[]])[0]]
    assert (await continue_tool(first, results, config=reasoning_config, options=options)).status == "ok"
    user, thought, call, result = asked(sim)[1].body["input"]
    assert [part["type"] for part in user["content"]] == ["input_file", "input_text"]
    assert [thought["type"], call["type"], result["type"]] == ["reasoning", "function_call", "function_call_output"]
    assert thought["encrypted_content"]
