"""Test of a warm batch on a Prefect server."""

from __future__ import annotations

import time

from pollux_flows import Options, Source
from pollux_flows.flows import acollect, asubmit, await_for
from pollux_flows.simulator import Simulator
from tests.prefect.jobs import (
    ANSWERS,
    PROMPTS,
    SaveProvider,
    jobs_home,
    no_jobs_are_left,
    read_job_events,
    save_provider,
)

__all__ = ["jobs_home", "no_jobs_are_left", "save_provider"]

DOCUMENT_TOKENS = 10_000


async def test_the_collector_submits_the_other_prompts_once_the_first_is_answered(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    """The first prompt is pending in pass one. Pass two submits the others, and pass three collects all."""
    simulator.batch_s = 3600
    document = Source.from_text("x" * 4 * DOCUMENT_TOKENS)
    name = await asubmit(PROMPTS, await save_provider("anthropic"), [document], Options(implicit_caching="warm"))
    seen = []
    try:
        for passed in (0, 3601, 7202, 7202):
            simulator.clock = lambda passed=passed: time.time() + passed  # type: ignore[misc]
            report = await acollect()
            seen.append([(row.pending, row.collected) for row in report.rows])
            if passed == 0:
                (row,) = report.rows
                assert row.next == "the rest is submitted once the first prompt, whose cache it reads, is answered"
    finally:
        simulator.clock = time.time
    assert seen == [[(4, False)], [(3, False)], [(0, True)], []]
    assert [batch.rows for batch in simulator.batches] == [1, 3]
    envelope = await await_for(name)
    assert envelope.answers == ANSWERS
    metrics = envelope.metrics
    written_and_read = (metrics["cache_write_tokens"], metrics["cached_tokens"])
    assert written_and_read == (DOCUMENT_TOKENS, 3 * DOCUMENT_TOKENS)
    assert await read_job_events(name) == ["submitted", "collected"]
