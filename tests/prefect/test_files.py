"""Files in flows: uploaded once for all runs, and swept away when nobody needs them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from pollux_flows import Source
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import asweep, broadcast, fan_out, sweep
from pollux_flows.simulator import Simulator

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


@pytest.fixture
def papers(tmp_path: Path) -> list[Source]:
    for index in range(3):
        (tmp_path / f"{index}.pdf").write_bytes(PDF + bytes([index]))
    return [Source.from_file(tmp_path / f"{index}.pdf") for index in range(3)]


def test_a_fan_out_and_a_broadcast_share_their_files(
    provider: PolluxProvider, simulator: Simulator, papers: list[Source]
) -> None:
    """Three files, two flows, three uploads."""
    assert fan_out([f"Question {index}?" for index in range(20)], provider, sources=papers).status == "ok"
    assert [envelope.status for envelope in broadcast(["What is it?"], papers, provider)] == ["ok"] * 3
    assert len(simulator.files) == 3


async def test_sweep_removes_idle_files_and_says_which(
    provider: PolluxProvider, simulator: Simulator, papers: list[Source]
) -> None:
    """With the keys of saved providers; what it did is a table in the UI."""
    brief = provider.model_copy(update={"keep_files_s": 0.2})
    await brief.asave("brief", overwrite=True)
    fan_out(["What is it?"], brief, sources=papers)
    removed: list[str] = []
    deadline = time.monotonic() + 20
    while len(removed) < 3:
        assert time.monotonic() < deadline
        removed += [file.file_id for file in (await asweep()).removed]
    assert sorted(removed) == sorted(file.id for file in simulator.files)
    assert [file.state for file in simulator.files] == ["deleted"] * 3
    async with get_client() as client:
        tables = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["pollux-sweep"]))
        )
    assert any(removed[0] in str(table.data) for table in tables)


def test_sweep_names_what_it_has_no_key_for(
    provider: PolluxProvider, simulator: Simulator, papers: list[Source]
) -> None:
    """A file of an account that nobody saved is left alone, and reported."""
    stranger = provider.model_copy(update={"keep_files_s": 0.01, "api_key": None})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_API_KEY", "sk-only-for-this-run")
        fan_out(["What is it?"], stranger, sources=papers[:1])
    report = sweep()
    assert [file.file_id for file in report.left] == [file.id for file in simulator.files]
    assert "no key" in str(report.left[0].why)
