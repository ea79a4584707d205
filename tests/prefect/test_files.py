"""Files in flows: uploaded once for all runs, and swept away when nobody needs them."""

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
    assert any(removed[0] in table for table in await tables())


@pytest.mark.parametrize(("days", "said"), [(100, "100 days ahead of"), (-100, "100 days behind")])
async def test_a_worker_whose_clock_is_wrong_deletes_nothing(
    provider: PolluxProvider, simulator: Simulator, papers: list[Source], days: int, said: str
) -> None:
    """By such a clock, nobody needs the files of other runs any more."""
    await provider.model_copy(update={"keep_files_s": 3600.0}).asave("brief", overwrite=True)
    fan_out(["What is it?"], await PolluxProvider.named("brief"), sources=papers)
    now = await read_server_time()
    assert now == pytest.approx(time.time(), abs=30)
    with pytest.MonkeyPatch.context() as patch:
        real = time.time
        patch.setattr(time, "time", lambda: real() + days * 86_400)
        with pytest.raises(ConfigurationError, match=said):
            await asweep.fn()
    assert {file.state for file in simulator.files} == {"active"}


async def tables() -> list[str]:
    """What sweeps have left in the UI."""
    async with get_client() as client:
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["pollux-sweep"]))
        )
    return [str(table.data) for table in found]


async def test_sweep_goes_on_after_a_record_that_nobody_can_read(
    provider: PolluxProvider, simulator: Simulator, papers: list[Source]
) -> None:
    """It is told, in the result and in the table, and hides no other file."""
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
    assert any("cannot be read" in table for table in await tables())


async def test_what_is_simulated_concerns_no_sweep(papers: list[Source]) -> None:
    """What is known of it is beside the simulated world, and not in the state."""
    mock = PolluxProvider(provider="openai", model="gpt-4.1-mini", use_mock=True, keep_files_s=0.01)
    await mock.asave("simulated", overwrite=True)
    before = len(in_process().files)
    kept = mock.model_copy(update={"keep_files_s": 60.0})
    for simulated in (kept, kept, mock):
        assert (await afan_out(["What is it?"], simulated, sources=papers)).status == "ok"
    assert len(in_process().files) == before + 3
    assert [name async for name in open_store().list_keys("upload/")] == []
    report = await asweep()
    assert (report.removed, report.left) == ([], [])


def test_sweep_names_what_it_has_no_key_for(
    provider: PolluxProvider, simulator: Simulator, papers: list[Source]
) -> None:
    """A file of an account that nobody saved is left alone, and reported."""
    stranger = provider.model_copy(update={"keep_files_s": 1.0, "api_key": None})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_API_KEY", "sk-only-for-this-run")
        environment.setenv("OPENAI_BASE_URL", str(provider.base_url))
        fan_out(["What is it?"], stranger, sources=papers[:1])
    deadline = time.monotonic() + 20
    while not (report := sweep()).left:
        assert time.monotonic() < deadline
    assert [file.file_id for file in report.left] == [file.id for file in simulator.files]
    assert "no key" in str(report.left[0].why)
