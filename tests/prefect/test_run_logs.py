"""Tests of run logs: a line per phase and per failure, one for the outcome, and no text of prompts or answers."""

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
def run_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        logging.getLogger(name).setLevel(logging.INFO)
    return caplog


def test_a_run_logs_its_phases_and_its_price(provider: PolluxProvider, run_log: pytest.LogCaptureFixture) -> None:
    fan_out(["one secret", "two secret"], provider)
    messages = [record.getMessage() for record in run_log.records if record.name in LOGGERS]
    assert any(line.startswith(f"Planned 2 calls of {provider.provider}") for line in messages)
    assert any(line.startswith("2 of 2 prompts answered for $") for line in messages)
    assert len(messages) <= 5
    # Prefect's first line quotes the name of the run, which begins with the first prompt.
    assert not any("secret" in line for line in messages if "flow run" not in line)


def test_a_failed_call_is_one_line_without_a_traceback(
    provider: PolluxProvider, simulator: Simulator, run_log: pytest.LogCaptureFixture
) -> None:
    simulator.fail(Fault(status=400, message="not now"), contains="two")
    with pytest.raises(APIError):
        fan_out(["one", "two"], provider)
    errors = [record for record in run_log.records if record.name in LOGGERS and record.levelno >= logging.ERROR]
    assert [record.name for record in errors] == ["prefect.task_runs", "prefect.flow_runs"]
    assert not any(record.exc_info for record in errors)


def test_the_log_of_other_tasks_is_unchanged(provider: PolluxProvider, run_log: pytest.LogCaptureFixture) -> None:
    """Prefect logs the tasks of a parent flow as usual, even a task with the name of one of ours."""

    @task(name="plan")
    def plan() -> None: ...

    @flow
    def parent() -> None:
        plan()
        fan_out(["one"], provider)

    parent()
    ends = [record for record in run_log.records if record.getMessage() == "Finished in state Completed()"]
    assert [record.name for record in ends] == ["prefect.task_runs", "prefect.flow_runs", "prefect.flow_runs"]
