"""Tests of files in flows: a file is uploaded once for all runs, and `sweep` deletes idle files."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from pollux_flows import ConfigurationError, Source
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import afan_out, asweep, broadcast, fan_out, sweep
from pollux_flows.jobs.connection import read_server_time
from pollux_flows.simulator import Simulator, in_process
from pollux_flows.state.store import open_store

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_sweep_deletes_idle_files_and_lists_them(
    provider: PolluxProvider, simulator: Simulator, papers: list[Source]
) -> None:
    """Sweeping uses the keys of saved providers. The list is also published as an artifact."""
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
    assert any(removed[0] in table for table in await read_sweep_tables())


@pytest.mark.parametrize(("days", "message"), [(100, "100 days ahead of"), (-100, "100 days behind")])
async def test_a_worker_whose_clock_is_wrong_deletes_nothing(
    provider: PolluxProvider, simulator: Simulator, papers: list[Source], days: int, message: str
) -> None:
    """By such a clock, the files of other runs would be idle."""
    await provider.model_copy(update={"keep_files_s": 3600.0}).asave("brief", overwrite=True)
    fan_out(["What is it?"], await PolluxProvider.named("brief"), sources=papers)
    now = await read_server_time()
    assert now == pytest.approx(time.time(), abs=30)
    with pytest.MonkeyPatch.context() as patch:
        real = time.time
        patch.setattr(time, "time", lambda: real() + days * 86_400)
        with pytest.raises(ConfigurationError, match=message):
            await asweep.fn()
    assert {file.state for file in simulator.files} == {"active"}


async def read_sweep_tables() -> list[str]:
    """Return the tables that sweeps have published."""
    async with get_client() as client:
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["pollux-sweep"]))
        )
    return [str(table.data) for table in found]


async def test_sweep_continues_after_an_unreadable_record(
    provider: PolluxProvider, simulator: Simulator, papers: list[Source]
) -> None:
    """The record is reported in the result and in the table."""
    brief = provider.model_copy(update={"keep_files_s": 1.0})
    await brief.asave("brief", overwrite=True)
    fan_out(["What is it?"], brief, sources=papers)
    names = [name async for name in open_store().list_keys("upload/")]
    await open_store().put(names[0], {"key": "is no key"})
    removed = 0
    deadline = time.monotonic() + 20
    while removed < 2:
        assert time.monotonic() < deadline
        report = await asweep()
        removed += len(report.removed)
        (problem,) = report.unreadable
        assert "cannot be read" in problem
    assert len([file for file in simulator.files if file.state == "active"]) == 1
    assert any("cannot be read" in table for table in await read_sweep_tables())


async def test_sweep_ignores_simulated_files(papers: list[Source]) -> None:
    """The ledger of simulated files is in the process, and not in the state."""
    mock = PolluxProvider(provider="openai", model="gpt-4.1-mini", use_mock=True, keep_files_s=0.01)
    await mock.asave("simulated", overwrite=True)
    before = len(in_process().files)
    lasting = mock.model_copy(update={"keep_files_s": 60.0})
    for simulated in (lasting, lasting, mock):
        assert (await afan_out(["What is it?"], simulated, sources=papers)).status == "ok"
    assert len(in_process().files) == before + 3
    assert [name async for name in open_store().list_keys("upload/")] == []
    report = await asweep()
    assert (report.removed, report.left) == ([], [])


def test_sweep_reports_files_that_it_has_no_key_for(
    provider: PolluxProvider, simulator: Simulator, papers: list[Source]
) -> None:
    """A file of an account without a saved provider is not deleted."""
    unsaved = provider.model_copy(update={"keep_files_s": 1.0, "api_key": None})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_API_KEY", "sk-only-for-this-run")
        environment.setenv("OPENAI_BASE_URL", str(provider.base_url))
        fan_out(["What is it?"], unsaved, sources=papers[:1])
    deadline = time.monotonic() + 20
    while not (report := sweep()).left:
        assert time.monotonic() < deadline
    assert [file.file_id for file in report.left] == [file.id for file in simulator.files]
    assert "no key" in str(report.left[0].why)
