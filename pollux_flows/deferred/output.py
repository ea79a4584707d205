"""The output of a deferred job: rows of its saved answers, written piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from pollux_flows.answer_rows import AnswerRow
from pollux_flows.deferred.answers import Storage, read_pieces
from pollux_flows.deferred.job import Job
from pollux_flows.output import Manifest, output_path, write_output


async def read_rows(storage: Storage, job: Job, prompts: Sequence[str | None]) -> AsyncIterator[list[AnswerRow]]:
    """Iterate over the rows of the job in pieces, in the order of its prompts."""
    places = dict(zip(job.prompt_indexes(), prompts, strict=True))
    async for items in read_pieces(storage, job):
        yield [
            AnswerRow.of(
                item.outcome.index + 1,
                places[item.outcome.index],
                item.outcome,
                structured=item.structured,
                misfit=item.warning,
            )
            for item in items
        ]


async def write_job_output(
    storage: Storage, job: Job, output: str, prompts: Sequence[str | None], manifest: Manifest
) -> None:
    """Write the answers of the job to its output, and the manifest beside them."""
    await write_output(
        output_path(output, job.name),
        read_rows(storage, job, prompts),
        manifest,
        what=f"The answers of {job.name}",
        hint="Free space, or give the worker write access: the next pass tries again. Or cancel the job: its answers "
        "are saved nevertheless.",
        is_guarded=job.guards_output,
    )
