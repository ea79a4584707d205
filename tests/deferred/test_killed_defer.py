"""Tests of defer_many in a process that is killed: called again, it submits one batch, and collects it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import APIError, Config, DeferredHandle, Source, collect_deferred, defer_many, inspect_deferred
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Simulator
from pollux_flows.simulator.storage import Storage
from tests.loopback import KEY, MODELS, SDKS
from tests.mortal import Death, start_process

PROMPTS = ["one", "two", "three"]
# The suite tests a third of the steps, and `make batch-kills` all of them.
SKIPPED = 1 if "TEST_BATCH_KILLS" in os.environ else 3
_STORE, _SESSION = "pollux_flows.deferred.store", "pollux_flows.providers.session:Session"
STEPS = (
    f"{_STORE}:StateJobStore.save_request",
    f"{_STORE}:StateJobStore.create",
    "pollux_flows.state.leases:acquire_lease",
    f"{_SESSION}.upload",
    f"{_SESSION}.submit_batch",
    f"{_STORE}:_StateJobLock.save",
    "pollux_flows.state.leases:Lease.release",
)
# A job is saved with its parts, its intent and the reply.
_SAVES = 3
DEATHS = [
    Death(step, when, nth)
    for step in STEPS
    for when in ("before", "after")
    for nth in (range(1, _SAVES + 1) if step.endswith("save") else (1,))
]


async def defer_until_known(settings: dict[str, Any], run_key: str | None, file: Path, handle_file: Path) -> None:
    """Call defer_many again until it knows the outcome, as its error advises."""
    config = Config(**settings, keep_files_s=0.0)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            handle = await defer_many(PROMPTS, sources=[Source.from_file(file)], config=config, run_key=run_key)
        except APIError as error:
            if not error.outcome_unknown:
                raise
            await asyncio.sleep(0.2)
        else:
            _save_handle(handle_file, handle)
            return
    raise TimeoutError


def _save_handle(handle_file: Path, handle: DeferredHandle) -> None:
    handle_file.write_text(json.dumps(handle.to_dict()))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("provider", "run_key"), [*((each, "nightly") for each in SDKS), ("openai", None)])
async def test_a_call_after_a_kill_at_any_step_submits_one_batch(
    provider: ProviderName, run_key: str | None, world: tuple[Simulator, str], sim: Simulator, tmp_path: Path
) -> None:
    """Without a `run_key`, this holds until the provider's reply is saved."""
    sim.batch_s = 0
    base_url = sim.base_url(provider, world[1])
    # The JSON of a Config, which another process gets, has no key.
    settings: dict[str, Any] = {"provider": provider, "model": MODELS[provider], "api_key": KEY, "base_url": base_url}
    config = Config(**settings, keep_files_s=0.0)
    deaths = [death for death in DEATHS if run_key or not _is_after_reply(death)]
    for number, death in enumerate(deaths[SDKS.index(provider) :: len(SDKS) * SKIPPED]):
        if death.function.endswith("upload") and provider == "anthropic":
            continue  # nothing is uploaded
        sim.batch_store.clear()
        sim.file_store.clear()
        folder = tmp_path / str(number)
        folder.mkdir()
        home, handle = await _run_killed(death, settings, run_key, folder)
        assert len(sim.batches) == 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("POLLUX_HOME", str(home))
            assert (await inspect_deferred(handle, config=config)).status == "completed"
            envelope = await collect_deferred(handle, config=config)
        assert envelope.answers == [f"Simulated answer to: {prompt}" for prompt in PROMPTS]
        assert [file.filename for file in sim.files if file.is_there and "pollux-" in file.filename] == []


def _write(file: Path, text: str) -> None:
    file.write_bytes(b"%PDF-1.7\n" + text.encode() + bytes(200))


def _is_after_reply(death: Death) -> bool:
    return death.function.endswith("release") or (death.nth, death.when) == (_SAVES, "after")


async def _run_killed(
    death: Death, settings: dict[str, Any], run_key: str | None, folder: Path
) -> tuple[Path, DeferredHandle]:
    file, handle_file, home = folder / "report.pdf", folder / "handle.json", folder / "home"
    _write(file, str(death))
    work: tuple[Any, ...] = (defer_until_known, settings, run_key, file, handle_file)
    assert not await start_process(*work, death=death, home=home, log=folder / "log").runs_to_completion(30), (
        f"the process was not killed: {death}"
    )
    assert not handle_file.exists()
    assert await start_process(*work, death=None, home=home, log=folder / "log").runs_to_completion(60)
    return home, DeferredHandle.from_dict(json.loads(handle_file.read_text()))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("step", [f"{_SESSION}.submit_batch", "pollux_flows.state.leases:Lease.release"])
@pytest.mark.parametrize("provider", SDKS)
async def test_a_simulated_batch_outlives_its_process(
    provider: ProviderName, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call with the same `run_key` finds the batch, as with a real provider, and collects it."""
    home, file, handle_file = tmp_path / "home", tmp_path / "report.txt", tmp_path / "handle_file"
    file.write_text("A report.")
    settings: dict[str, Any] = {"provider": provider, "model": MODELS[provider], "use_mock": True}
    death = Death(step, "after")
    mortal = start_process(
        defer_until_known, settings, "nightly", file, handle_file, death=death, home=home, log=tmp_path / "log"
    )
    assert await mortal.runs_to_completion(within_s=60) is False
    monkeypatch.setenv("POLLUX_HOME", str(home))
    await defer_until_known(settings, "nightly", file, handle_file)
    handle, config = DeferredHandle.from_dict(json.loads(handle_file.read_text())), Config(**settings)
    for _ in range(100):
        if (await inspect_deferred(handle, config=config)).is_terminal:
            break
        await asyncio.sleep(0.05)
    envelope = await collect_deferred(handle, config=config)
    assert [bool(text) for text in envelope.answers] == [True] * 3
    assert len(list(Storage(home / "simulator", "batch", time.time).changed())) == 1
