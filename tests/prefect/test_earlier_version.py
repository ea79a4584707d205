"""Test of a retry, by this version, of a parent flow that an earlier version left unfinished."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect import flow
from prefect.context import FlowRunContext

from pollux_flows import ResultEnvelope
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import afan_out
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.result import Answer, Outcome
from pollux_flows.simulator import Simulator
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import open_store
from tests.prefect.test_paid_once import PROMPTS, read_prompts


async def test_answers_that_an_earlier_version_saved_are_reused(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier version saved them under the number that Prefect gave the sub-flow."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))
    attempts: list[int] = []
    plan = make_plan(make_request(PROMPTS, target=(await provider.config()).target, sources=[], options=None))

    @flow(retries=1, retry_delay_seconds=0)
    async def parent() -> ResultEnvelope:
        attempts.append(1)
        if len(attempts) == 1:
            context = FlowRunContext.get()
            assert context is not None
            assert context.flow_run is not None
            journal = Journal(open_store(), f"{context.flow_run.id}/afan_out-0")
            await journal.begin()
            for call in plan.calls[1:]:
                answer = Answer(text=f"earlier {call.index}", finish_reason="stop")
                await journal.save_answer(
                    call.identity, Outcome(index=0, identity=call.identity, answer=answer, attempts=1)
                )
            raise RuntimeError("the process ended here")
        return await afan_out(PROMPTS, provider)

    envelope = await parent()
    assert envelope.answers[1:] == [f"earlier {call.index}" for call in plan.calls[1:]]
    assert len(read_prompts(simulator)) == 1
