"""Run logs: a line a phase, a line a failure, one for the outcome, and no text of prompts or answers."""

from __future__ import annotations

import logging

import pytest
from prefect import flow, task

from pollux_flows import APIError
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import fan_out
from pollux_flows.simulator import Fault, Simulator

LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        logging.getLogger(name).setLevel(logging.INFO)
    return caplog


def test_a_run_logs_its_phases_and_its_price(provider: PolluxProvider, lines: pytest.LogCaptureFixture) -> None:
    fan_out(["one secret", "two secret"], provider)
    messages = [record.getMessage() for record in lines.records if record.name in LOGGERS]
    assert any(line.startswith(f"Planned 2 calls of {provider.provider}") for line in messages)
    assert any(line.startswith("2 of 2 prompts answered for $") for line in messages)
    assert len(messages) <= 5
    # Prefect's first line quotes the name of the run, which begins with the first prompt.
    assert not any("secret" in line for line in messages if "flow run" not in line)


def test_a_failed_call_is_one_line_without_a_traceback(
    provider: PolluxProvider, simulator: Simulator, lines: pytest.LogCaptureFixture
) -> None:
    simulator.fail(Fault(status=400, message="not now"), contains="two")
    with pytest.raises(APIError):
        fan_out(["one", "two"], provider)
    errors = [record for record in lines.records if record.name in LOGGERS and record.levelno >= logging.ERROR]
    assert [record.name for record in errors] == ["prefect.task_runs", "prefect.flow_runs"]
    assert not any(record.exc_info for record in errors)


def test_the_log_of_other_runs_is_as_it_was(provider: PolluxProvider, lines: pytest.LogCaptureFixture) -> None:
    """Tasks of a caller's own flow are logged by Prefect as ever, also where they bear the name of one of ours."""

    @task(name="plan")
    def plan() -> None: ...

    @flow
    def mine() -> None:
        plan()
        fan_out(["one"], provider)

    mine()
    ends = [record for record in lines.records if record.getMessage() == "Finished in state Completed()"]
    assert [record.name for record in ends] == ["prefect.task_runs", "prefect.flow_runs", "prefect.flow_runs"]
