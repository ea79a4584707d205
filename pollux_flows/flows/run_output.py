"""Run output: the answers of a run, all of them, in a file that its caller names."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from prefect import get_run_logger
from prefect.context import FlowRunContext

from pollux_flows.access import guards_output
from pollux_flows.address import shown
from pollux_flows.answer_rows import AnswerRow
from pollux_flows.output import BUCKETS, Bucket, Manifest, check_writable, output_path, resolve_output, write_output
from pollux_flows.pages import count_of
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.structured import shape_warning
from pollux_flows.pricing import Cost, total
from pollux_flows.result import Outcome, ResultEnvelope

_HINT: Final = (
    "Make room, or give the worker the right to write there, and retry the run: answers that are saved are not asked "
    "for again. `pollux-flows answers` prints them."
)


@dataclass(frozen=True)
class RunOutput:
    """The file for the answers of a run."""

    path: str
    is_guarded: bool

    async def write(self, plan: Plan, outcomes: Sequence[Outcome], envelopes: Sequence[ResultEnvelope]) -> None:
        """Write a row per prompt, those without an answer included."""
        rows = await asyncio.to_thread(lambda: list(make_rows(plan, outcomes, envelopes)))

        async def pieces() -> AsyncIterator[Sequence[AnswerRow]]:
            yield rows

        manifest = _make_manifest(self.path, rows, envelopes)
        await write_output(
            self.path, pieces(), manifest, what="The answers of this run", hint=_HINT, is_guarded=self.is_guarded
        )
        get_run_logger().info("Wrote %s to %s.", count_of(len(rows), "row"), shown(self.path))


async def prepare_output(kind: str, output: str | None) -> RunOutput | None:
    """Return the file for the answers of this run, or raise why they cannot be written, before anything is asked."""
    if output is None:
        return None
    run = FlowRunContext.get()
    # In a folder, the attempts of a run share a file, and no other run has it.
    name = kind if run is None or run.flow_run is None else f"{kind}-{run.flow_run.id}"

    def prepare() -> str:
        path = output_path(resolve_output(output), name)
        check_writable(path)
        return path

    return RunOutput(await asyncio.to_thread(prepare), guards_output(output))


def make_rows(plan: Plan, outcomes: Sequence[Outcome], envelopes: Sequence[ResultEnvelope]) -> Iterator[AnswerRow]:
    """Iterate over the rows of a run, in the order of its calls."""
    places = defaultdict[int | None, Iterator[int]](count)  # of the prompts, a source
    for call, outcome in zip(plan.calls, outcomes, strict=True):
        index, envelope = next(places[call.source]), envelopes[call.source or 0]
        misfit = envelope.diagnostics["calls"][index].get("misfit")
        yield AnswerRow.of(
            index + 1,
            call.prompt,
            outcome,
            source=None if call.source is None else call.source + 1,
            source_name=None if call.source is None else plan.sources[call.source].identifier,
            structured=envelope.structured[index] if envelope.structured else None,
            misfit=misfit and shape_warning(index, misfit),
        )


def _make_manifest(path: str, rows: Sequence[AnswerRow], envelopes: Sequence[ResultEnvelope]) -> Manifest:
    counts = Counter(_bucket_of(row.status) for row in rows)
    usage = Counter[str]()
    for envelope in envelopes:
        usage.update(envelope.usage)
    cost = total(Cost(each.metrics["cost_usd"], each.metrics.get("cost_unknown")) for each in envelopes)
    return Manifest(
        submitted=len(rows),
        **{bucket: counts[bucket] for bucket in BUCKETS},
        cost_usd=cost.usd,
        cost_unknown=cost.unknown,
        usage=dict(usage),
        output=path,
        collected_at=time.time(),
    )


def _bucket_of(status: str) -> Bucket:
    if status == "answered":
        return "succeeded"
    return next((bucket for bucket in BUCKETS if bucket == status), "failed")
