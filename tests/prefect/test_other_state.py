"""Tests of a retry in another state: it refuses to pay again for answers that it cannot find."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from pollux_flows import APIError, ConfigurationError, ResultEnvelope
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import fan_out
from pollux_flows.run_store import INPUT, confirm_store
from pollux_flows.scope import Lineage
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import open_store
from tests.pipeline.test_reuse import lose_before_lookup
from tests.prefect.runs import find_newest_run
from tests.prefect.test_paid_once import PROMPTS, read_prompts


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "here"))


def run_with_retry(
    provider: PolluxProvider, between: Callable[[], object], before: Callable[[], object] = int
) -> ResultEnvelope:
    """Run a flow that is retried. It calls `before` in its first attempt, and `between` in its second."""
    attempts: list[int] = []

    @flow(retries=1, retry_delay_seconds=0)
    def parent() -> ResultEnvelope:
        attempts.append(1)
        if len(attempts) == 2:
            between()
        else:
            before()
        return fan_out(PROMPTS, provider)

    return parent()


def test_a_worker_with_a_state_of_its_own_refuses_a_retry(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the settings that help, and nothing is asked."""
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    with pytest.raises(ConfigurationError, match="not in the state of this worker") as caught:
        run_with_retry(provider, lambda: monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "there")))
    assert len(read_prompts(simulator)) == 3
    assert all(name in str(caught.value.hint) for name in ("POLLUX_STATE_URL", "POLLUX_HOME", "POLLUX_ASK_ANEW"))


def test_a_retry_in_another_state_asks_again_if_a_setting_allows_it(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_state() -> None:
        monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "there"))
        monkeypatch.setenv("POLLUX_ASK_ANEW", "1")

    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    assert run_with_retry(provider, change_state).status == "ok"
    assert len(read_prompts(simulator)) == 6


def test_a_retry_refuses_a_state_that_has_lost_its_data(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path
) -> None:
    """The folder exists again, without its content."""
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    with pytest.raises(ConfigurationError, match="has lost its data"):
        run_with_retry(provider, lambda: shutil.rmtree(tmp_path / "here"))
    assert len(read_prompts(simulator)) == 3


async def test_a_retry_refuses_a_state_in_which_the_run_was_pruned(provider: PolluxProvider) -> None:
    """The state has the same identity, but no record of the run."""
    with pytest.raises(APIError):
        fan_out(["[[simulate: status=400]] no"], provider)
    async with get_client() as client:
        run = await client.read_flow_run((await find_newest_run("fan-out")).id)
        assert await client.read_flow_run_input(run.id, INPUT)
        await confirm_store(Lineage(run, ((str(run.id), "the next attempt"),), run, None, "", is_deep=False))
        store = open_store()
        await store.delete(*[key async for key, _ in store.scan("run/")])
        for attempt in ("and the next", "and one more"):
            with pytest.raises(ConfigurationError, match="was pruned"):
                await confirm_store(Lineage(run, ((str(run.id), attempt),), run, None, "", is_deep=False))


@pytest.mark.parametrize("is_lost", [True, False])
def test_an_error_calls_answers_saved_only_if_they_are(
    provider: PolluxProvider,
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_lost: bool,
) -> None:
    """The state may be lost while a run is at work."""
    if is_lost:
        lose_before_lookup(monkeypatch, lambda: shutil.rmtree(tmp_path / "here"))
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    with pytest.raises(APIError) as caught:
        fan_out(PROMPTS, provider)
    hint = caught.value.hint or ""
    assert ("is saved: a retry asks only the others" in hint) is not is_lost
    assert ("is no longer in the state" in hint and "a retry asks, and pays for, everything again" in hint) is is_lost


def test_a_retry_in_another_state_runs_if_nothing_was_asked_before(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("before anything was asked")

    elsewhere = str(tmp_path / "there")
    assert run_with_retry(provider, lambda: monkeypatch.setenv("POLLUX_HOME", elsewhere), fail).status == "ok"
    assert len(read_prompts(simulator)) == 3


# --- A state that cannot be written to ----------------------------------------------------------------------


async def _raise_disk_full(*_: object) -> None:
    raise ConfigurationError("The disk is full.")


def test_a_retry_reuses_answers_that_could_not_be_saved(
    provider: PolluxProvider, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt fails. Its answer is in a fallback file."""
    sequential = provider.model_copy(update={"request_concurrency": 1})
    with monkeypatch.context() as patch:
        patch.setattr("pollux_flows.pipeline.answers._PAUSES", (0.0,))
        patch.setattr(Journal, "save_answer", _raise_disk_full)
        envelope = run_with_retry(sequential, patch.undo)
    assert envelope.status == "ok"
    assert envelope.metrics["n_reused"] == 1
    assert len(read_prompts(simulator)) == 3
