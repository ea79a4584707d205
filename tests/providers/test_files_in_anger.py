"""Files when everything around them moves: accounts, addresses, expiry, forgetful providers, a full disk."""

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
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "pollux"
    monkeypatch.setenv("POLLUX_HOME", str(home))
    return home


def papers(folder: Path, count: int) -> list[Source]:
    for index in range(count):
        (folder / f"{index}.pdf").write_bytes(PDF + bytes([index]))
    return [Source.from_file(folder / f"{index}.pdf") for index in range(count)]


@on_sdks
async def test_two_accounts_at_once_share_nothing(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """The same file, at the same moment, each with a key of its own: neither could see the other's upload."""
    (paper,) = papers(tmp_path, 1)
    keys = ("sk-one-account-000000", "sk-another-account-00")
    envelopes = await asyncio.gather(
        *(run("What is it?", source=paper, config=config(provider, api_key=key)) for key in keys for _ in range(2))
    )
    assert [envelope.status for envelope in envelopes] == ["ok"] * 4
    assert len({file.account for file in sim.files}) == len(sim.files) == 2
    ids = {file.id for file in sim.files}
    assert {file_id for request in asked(sim) for file_id in ids if file_id in str(request.body)} == ids


@on_sdks
async def test_another_address_is_another_provider(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """What was uploaded at one is not there at the other."""
    (paper,) = papers(tmp_path, 1)
    elsewhere = Simulator()
    with serve(elsewhere) as origin:
        moved = config(provider, base_url=Simulator.base_url(provider, origin))
        for settings in (config(provider), moved, config(provider), moved):
            assert (await run("What is it?", source=paper, config=settings)).status == "ok"
    assert (len(sim.files), len(elsewhere.files)) == (1, 1)


@on_sdks
async def test_a_file_that_will_soon_expire_is_uploaded_anew(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """Five minutes are too few for a run that may take ten; eleven are enough."""
    (paper,) = papers(tmp_path, 1)
    assert (await run("What is it?", source=paper, config=config(provider))).status == "ok"
    (kept,) = [entry async for entry in entries()]
    assert kept.uploaded is not None
    for left_s, uploads in ((660.0, 1), (300.0, 2)):
        uploaded = kept.uploaded.model_copy(update={"expires_at": time.time() + left_s})
        await open_store().put(kept.key.name, kept._replace(uploaded=uploaded).to_record() or {})
        assert (await run("What is it?", source=paper, config=config(provider))).status == "ok"
        assert len(sim.files) == uploads


async def entries() -> AsyncIterator[Entry]:
    async for _, record in open_store().scan("upload/"):
        yield Entry.from_record(record)


@on_sdks
@pytest.mark.parametrize("seed", range(3))
async def test_a_provider_that_forgets_everything_in_the_middle(
    provider: ProviderName, seed: int, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """Of a run of twenty prompts about three files: every prompt is answered, and each file is sent twice."""
    moment = random.Random(seed).randrange(2, 17)  # noqa: S311 (no secret)
    settings = config(provider, request_concurrency=3)
    request = make_request([f"Question {n}?" for n in range(20)], target=settings.target, sources=papers(tmp_path, 3))
    plan = make_plan(request, await read_sources(request))
    done = 0

    def forget(_: Outcome) -> None:
        nonlocal done
        done += 1
        if done == moment:
            for file in sim.files:
                file.deleted_at = sim.clock()

    outcomes = await execute_plan(plan, settings, on_outcome=forget)
    assert [outcome.failure for outcome in outcomes] == [None] * 20
    assert sorted(Counter(file.sha256 for file in sim.files).values()) == [2, 2, 2]


@on_sdks
async def test_a_disk_that_is_full_in_the_middle_costs_no_answer(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked is answered, the rest says that there is no room; once there is, nothing is left over."""
    monkeypatch.setattr(cleanup, "Ledger", partial(Ledger, lease_s=1.0))
    monkeypatch.setattr(answers, "_PAUSES", ())
    settings = config(provider, keep_files_s=0.0)
    sources = papers(tmp_path, 24)
    ask, answered = DiskStore._run, 0

    async def filled(store: DiskStore, do: Any, *, writes: bool = False) -> Any:
        if writes and answered >= 3:
            raise disk_full_error(store.folder)
        return await ask(store, do, writes=writes)

    def count(_: Outcome) -> None:
        nonlocal answered
        answered += 1

    with monkeypatch.context() as disk:
        disk.setattr(DiskStore, "_run", filled)
        outcomes = await broadcast(sources, settings, count)
    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    assert 0 < len(failures) <= 21
    assert all("disk is full" in failure.message and "Free some space" in str(failure.hint) for failure in failures)
    assert all(outcome.answer is not None for outcome in outcomes if outcome.failure is None)

    assert [outcome.failure for outcome in await broadcast(sources, settings)] == [None] * 24
    async with open_session(settings) as session:
        await delete_due(session, Ledger(open_store(), clock=lambda: time.time() + 2 * OWNER_S))
    assert [file for file in sim.files if file.is_there] == []


async def broadcast(
    sources: list[Source], settings: Config, on_outcome: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """One prompt about each source by itself."""
    request = make_request(["What is it?"], target=settings.target, sources=sources, each_source=True)
    plan = make_plan(request, await read_sources(request))
    return await execute_plan(plan, settings, on_outcome=on_outcome)
