"""Run output: all answers of a run, in a file that the caller names."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prefect import get_run_logger
from prefect.context import FlowRunContext

from pollux_flows.access import guards_output
from pollux_flows.address import redact_address
from pollux_flows.answer_rows import AnswerRow, envelope_rows
from pollux_flows.output import BUCKETS, Bucket, Manifest, check_writable, output_path, resolve_output, write_output
from pollux_flows.pages import RunInput, count_of
from pollux_flows.pricing import Cost, total
from pollux_flows.result import ResultEnvelope

_HINT: Final = (
    "Free space, or give the worker write access, and retry the run: saved answers are reused. `pollux-flows answers` "
    "prints them."
)


@dataclass(frozen=True)
class RunOutput:
    """The file for the answers of a run."""

    path: str
    is_guarded: bool

    async def write(self, run_input: RunInput, envelopes: Sequence[ResultEnvelope]) -> None:
        """Write one row per prompt, including prompts without an answer."""
        rows = await asyncio.to_thread(lambda: list(_make_rows(run_input, envelopes)))

        async def pieces() -> AsyncIterator[Sequence[AnswerRow]]:
            yield rows

        manifest = _make_manifest(self.path, rows, envelopes)
        await write_output(
            self.path, pieces(), manifest, what="The answers of this run", hint=_HINT, is_guarded=self.is_guarded
        )
        get_run_logger().info("Wrote %s to %s.", count_of(len(rows), "row"), redact_address(self.path))


async def prepare_output(kind: str, output: str | None) -> RunOutput | None:
    """Return the output file of this run. Raises before the first call if it cannot be written."""
    if output is None:
        return None
    run = FlowRunContext.get()
    # In a folder, the attempts of a run share a file that no other run uses.
    name = kind if run is None or run.flow_run is None else f"{kind}-{run.flow_run.id}"

    def prepare() -> str:
        path = output_path(resolve_output(output), name)
        check_writable(path)
        return path

    return RunOutput(await asyncio.to_thread(prepare), guards_output(output))


def _make_rows(run_input: RunInput, envelopes: Sequence[ResultEnvelope]) -> Iterator[AnswerRow]:
    for number, envelope in enumerate(envelopes):
        rows = envelope_rows(envelope, run_input.prompts)
        if not run_input.each_source:
            yield from rows
            continue
        about = {"source": number + 1, "source_name": run_input.sources[number].identifier}
        yield from (row.model_copy(update=about) for row in rows)


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
