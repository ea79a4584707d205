"""File sources under disruption: several accounts and addresses, expiry, a provider that loses files, a full disk."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import Config, Source, run
from pollux_flows.config import ProviderName
from pollux_flows.pipeline import answers, cleanup
from pollux_flows.pipeline.cleanup import delete_due
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.providers.session import open_session
from pollux_flows.result import Outcome
from pollux_flows.simulator import Simulator, serve
from pollux_flows.state.disk import DiskStore
from pollux_flows.state.home import disk_full_error
from pollux_flows.state.ledger import OWNER_S, Ledger
from pollux_flows.state.store import open_store
from pollux_flows.state.upload import Entry
from tests.executing import execute_plan
from tests.loopback import SDKS, MakeConfig, asked

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40

on_sdks = pytest.mark.parametrize("provider", SDKS)


@pytest.fixture(autouse=True)
def pollux_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "pollux"
    monkeypatch.setenv("POLLUX_HOME", str(home))
    return home


def write_pdfs(folder: Path, count: int) -> list[Source]:
    for index in range(count):
        (folder / f"{index}.pdf").write_bytes(PDF + bytes([index]))
    return [Source.from_file(folder / f"{index}.pdf") for index in range(count)]


@on_sdks
async def test_concurrent_runs_of_two_accounts_share_no_upload(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """Both use the same file at the same time."""
    (pdf,) = write_pdfs(tmp_path, 1)
    keys = ("sk-one-account-000000", "sk-another-account-00")
    envelopes = await asyncio.gather(
        *(run("What is it?", source=pdf, config=config(provider, api_key=key)) for key in keys for _ in range(2))
    )
    assert [envelope.status for envelope in envelopes] == ["ok"] * 4
    assert len({file.account for file in sim.files}) == len(sim.files) == 2
    ids = {file.id for file in sim.files}
    assert {file_id for request in asked(sim) for file_id in ids if file_id in str(request.body)} == ids


@on_sdks
async def test_another_base_url_does_not_share_uploads(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    (pdf,) = write_pdfs(tmp_path, 1)
    elsewhere = Simulator()
    with serve(elsewhere) as origin:
        moved = config(provider, base_url=Simulator.base_url(provider, origin))
        for settings in (config(provider), moved, config(provider), moved):
            assert (await run("What is it?", source=pdf, config=settings)).status == "ok"
    assert (len(sim.files), len(elsewhere.files)) == (1, 1)


@on_sdks
async def test_a_file_that_expires_within_five_minutes_is_uploaded_again(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """A run may take ten minutes, so a file that expires in eleven is reused."""
    (pdf,) = write_pdfs(tmp_path, 1)
    assert (await run("What is it?", source=pdf, config=config(provider))).status == "ok"
    (entry,) = [loaded async for loaded in load_entries()]
    assert entry.uploaded is not None
    for left_s, uploads in ((660.0, 1), (300.0, 2)):
        uploaded = entry.uploaded.model_copy(update={"expires_at": time.time() + left_s})
        await open_store().put(entry.key.name, entry._replace(uploaded=uploaded).to_record() or {})
        assert (await run("What is it?", source=pdf, config=config(provider))).status == "ok"
        assert len(sim.files) == uploads


async def load_entries() -> AsyncIterator[Entry]:
    async for _, record in open_store().scan("upload/"):
        yield Entry.from_record(record)


@on_sdks
@pytest.mark.parametrize("seed", range(3))
async def test_files_lost_in_the_middle_of_a_run_are_uploaded_once_more(
    provider: ProviderName, seed: int, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """Every one of twenty prompts about three files is answered."""
    lost_after = random.Random(seed).randrange(2, 17)  # noqa: S311 (no secret)
    settings = config(provider, request_concurrency=3)
    request = make_request(
        [f"Question {n}?" for n in range(20)], target=settings.target, sources=write_pdfs(tmp_path, 3)
    )
    plan = make_plan(request, await read_sources(request))
    done = 0

    def lose_files(_: Outcome) -> None:
        nonlocal done
        done += 1
        if done == lost_after:
            for file in sim.files:
                file.deleted_at = sim.clock()

    outcomes = await execute_plan(plan, settings, on_outcome=lose_files)
    assert [outcome.failure for outcome in outcomes] == [None] * 20
    assert sorted(Counter(file.sha256 for file in sim.files).values()) == [2, 2, 2]


@on_sdks
async def test_a_disk_that_fills_in_the_middle_of_a_run_costs_no_answer(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later calls fail and name the cause; once there is room, no file is left over."""
    monkeypatch.setattr(cleanup, "Ledger", partial(Ledger, lease_s=1.0))
    monkeypatch.setattr(answers, "_PAUSES", ())
    settings = config(provider, keep_files_s=0.0)
    sources = write_pdfs(tmp_path, 24)
    run_on_disk, answer_count = DiskStore._run, 0

    async def run_on_full_disk(store: DiskStore, do: Any, *, writes: bool = False) -> Any:
        if writes and answer_count >= 3:
            raise disk_full_error(store.folder)
        return await run_on_disk(store, do, writes=writes)

    def count_answers(_: Outcome) -> None:
        nonlocal answer_count
        answer_count += 1

    with monkeypatch.context() as disk:
        disk.setattr(DiskStore, "_run", run_on_full_disk)
        outcomes = await run_broadcast(sources, settings, count_answers)
    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    assert 0 < len(failures) <= 21
    assert all("disk is full" in failure.message and "Free some space" in str(failure.hint) for failure in failures)
    assert all(outcome.answer is not None for outcome in outcomes if outcome.failure is None)

    assert [outcome.failure for outcome in await run_broadcast(sources, settings)] == [None] * 24
    async with open_session(settings) as session:
        await delete_due(session, Ledger(open_store(), clock=lambda: time.time() + 2 * OWNER_S))
    assert [file for file in sim.files if file.is_there] == []


async def run_broadcast(
    sources: list[Source], settings: Config, on_outcome: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Run one prompt about each source."""
    request = make_request(["What is it?"], target=settings.target, sources=sources, each_source=True)
    plan = make_plan(request, await read_sources(request))
    return await execute_plan(plan, settings, on_outcome=on_outcome)
