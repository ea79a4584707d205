"""Another state: an attempt that cannot see the answers of the one before refuses, and does not pay for them again."""

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
from tests.pipeline.test_reuse import lose_before_the_look
from tests.prefect.test_flows import newest_run
from tests.prefect.test_paid_once import PROMPTS, asked


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "here"))


def retried(
    provider: PolluxProvider, between: Callable[[], object], before: Callable[[], object] = int
) -> ResultEnvelope:
    """A run whose second attempt finds what `between` has changed."""
    attempts: list[int] = []

    @flow(retries=1, retry_delay_seconds=0)
    def mine() -> ResultEnvelope:
        attempts.append(1)
        if len(attempts) == 2:
            between()
        else:
            before()
        return fan_out(PROMPTS, provider)

    return mine()


def test_a_worker_with_a_state_of_its_own_refuses_a_retry(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words that name what mends it, before anything is asked."""
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    with pytest.raises(ConfigurationError, match="not in the state of this worker") as refused:
        retried(provider, lambda: monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "there")))
    assert len(asked(simulator)) == 3
    assert all(name in str(refused.value.hint) for name in ("POLLUX_STATE_URL", "POLLUX_HOME", "POLLUX_ASK_ANEW"))


def test_it_asks_anew_where_that_is_wanted(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever sets up the worker."""

    def elsewhere() -> None:
        monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "there"))
        monkeypatch.setenv("POLLUX_ASK_ANEW", "1")

    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    assert retried(provider, elsewhere).status == "ok"
    assert len(asked(simulator)) == 6


def test_a_state_that_was_lost_in_between(provider: PolluxProvider, simulator: Simulator, tmp_path: Path) -> None:
    """The folder is there again, and what was in it is not."""
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    with pytest.raises(ConfigurationError, match="has lost its data"):
        retried(provider, lambda: shutil.rmtree(tmp_path / "here"))
    assert len(asked(simulator)) == 3


async def test_a_run_that_was_pruned_in_between(provider: PolluxProvider) -> None:
    """Its record is gone, though the state is the one that it was."""
    with pytest.raises(APIError):
        fan_out(["[[simulate: status=400]] no"], provider)
    async with get_client() as client:
        run = await client.read_flow_run((await newest_run("fan-out")).id)
        assert await client.read_flow_run_input(run.id, INPUT)
        await confirm_store(Lineage(run, ((str(run.id), "the next attempt"),), run, None, "", is_deep=False))
        store = open_store()
        await store.delete(*[key async for key, _ in store.scan("run/")])
        for attempt in ("and the next", "and one more"):
            with pytest.raises(ConfigurationError, match="was pruned"):
                await confirm_store(Lineage(run, ((str(run.id), attempt),), run, None, "", is_deep=False))


@pytest.mark.parametrize("is_lost", [True, False])
def test_answers_are_called_kept_after_a_look(
    provider: PolluxProvider,
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_lost: bool,
) -> None:
    """A state may have been lost while the run was at work."""
    if is_lost:
        lose_before_the_look(monkeypatch, lambda: shutil.rmtree(tmp_path / "here"))
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    with pytest.raises(APIError) as raised:
        fan_out(PROMPTS, provider)
    hint = raised.value.hint or ""
    assert ("is saved: a retry asks only the others" in hint) is not is_lost
    assert ("is no longer in the state" in hint and "a retry asks, and pays for, everything again" in hint) is is_lost


def test_an_attempt_that_asked_nothing_refuses_nothing(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never came as far as asking."""

    def fail() -> None:
        raise RuntimeError("before anything was asked")

    elsewhere = str(tmp_path / "there")
    assert retried(provider, lambda: monkeypatch.setenv("POLLUX_HOME", elsewhere), fail).status == "ok"
    assert len(asked(simulator)) == 3


# --- A state that takes nothing -----------------------------------------------------------------------------


async def _full(*_: object) -> None:
    raise ConfigurationError("The disk is full.")


def test_answers_that_cannot_be_saved_are_taken_up_by_the_retry(
    provider: PolluxProvider, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run fails, as it lacks answers; what was paid waits in a file."""
    one_at_a_time = provider.model_copy(update={"request_concurrency": 1})
    with monkeypatch.context() as patch:
        patch.setattr("pollux_flows.pipeline.answers._PAUSES", (0.0,))
        patch.setattr(Journal, "save_answer", _full)
        envelope = retried(one_at_a_time, patch.undo)
    assert envelope.status == "ok"
    assert envelope.metrics["n_reused"] == 1
    assert len(asked(simulator)) == 3
