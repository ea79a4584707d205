"""Pages: what deferred jobs leave for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact

from pollux_flows.address import shown
from pollux_flows.artifacts import answered, cell, not_worth_an_answer
from pollux_flows.deferred.job import Job, Part
from pollux_flows.deferred.manifest import Manifest
from pollux_flows.deferred.report import CollectReport
from pollux_flows.pricing import dollars
from pollux_flows.result import ResultEnvelope

# From so many of one unit on, the next one says more.
_UNITS: Final = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86_400.0, "days"))
_STATES: Final = {
    "waiting": "waits for room at the provider",
    "sending": "handed in, without a reply so far",
    "lost": "handed in, and the provider does not have it",
    "refused": "refused",
}


async def leave_submission(job: Job) -> None:
    """What was handed in, where it is, and what becomes of it."""
    async with not_worth_an_answer():
        await acreate_markdown_artifact(
            markdown=submission_page(job),
            key="pollux-submit",
            description=f"{job.target.model}: {_prompts(job.count)} handed in as {job.name}",
        )


async def leave_job(
    job: Job, manifest: Manifest, prompts: Sequence[str | None] = (), envelope: ResultEnvelope | None = None
) -> None:
    """What came of a job: its numbers and, unless it is very long, its first answers."""
    async with not_worth_an_answer():
        await acreate_markdown_artifact(
            markdown=job_page(job, manifest, prompts, envelope),
            key=f"pollux-job-{job.name}",
            description=f"{job.target.model}: {_prompts(job.count)}, {_counted(manifest)}",
        )


async def leave_report(report: CollectReport) -> None:
    """A row a job."""
    rows = [
        {
            "job": row.job,
            "status": row.status,
            "prompts": row.prompts,
            "succeeded": row.succeeded,
            "failed": row.failed,
            "pending": row.pending,
            "age": age(row.age_s),
            "cost": "" if row.cost_usd is None else dollars(row.cost_usd),
            "next": row.problem or row.next,
        }
        for row in report.rows
    ]
    async with not_worth_an_answer():
        await acreate_table_artifact(table=rows, key="pollux-collect", description=report.headline)


def submission_page(job: Job) -> str:
    """The Markdown of `leave_submission`."""
    model = f"{job.target.provider} {cell(job.target.model)}"
    parts = [
        f"| {number + 1} | {part.count} | {cell(part.batch_id or '')} | {cell(_now(part))} |"
        for number, part in enumerate(job.parts)
    ]
    lines = [
        f"**{cell(job.name)}** · {job.state} · {model} · {_prompts(job.count)}",
        "",
        "| Part | Prompts | Batch at the provider | Now |",
        "| --- | --- | --- | --- |",
        *parts,
        "",
        f"It is the block `pollux-deferred-job/{job.name}` of this server.",
        f'The flow `collect` collects it: run it on a schedule, or now with `jobs=["{job.name}"]`.',
        f'In a flow of yours, `wait_for("{job.name}")` gives the answers.',
    ]
    if job.state == "submitting":
        lines += [
            "",
            "The provider's reply was lost: `collect` finds out what became of it. Nothing is handed in twice.",
        ]
    return "\n".join(lines)


def job_page(job: Job, manifest: Manifest, prompts: Sequence[str | None], envelope: ResultEnvelope | None) -> str:
    """The Markdown of `leave_job`."""
    cost = f"unknown: {cell(manifest.cost_unknown or '')}" if manifest.cost_usd is None else dollars(manifest.cost_usd)
    rows = [*((bucket.replace("_", " "), str(count)) for bucket, count in manifest.counts.items()), ("cost", cost)]
    rows += [(name.replace("_", " "), f"{count:,}") for name, count in manifest.usage.items() if count]
    if manifest.output:
        rows.append(("answers", cell(shown(manifest.output))))
    model = f"{job.target.provider} · {cell(job.target.model)}"
    lines = [f"| {cell(job.name)} | {model} · {_prompts(manifest.submitted)} |", "| --- | --- |"]
    lines += [f"| {name} | {said} |" for name, said in rows]
    lines += ["", *(f"- {cell(oddity)}" for oddity in manifest.oddities)]
    if not manifest.is_whole:
        lines += ["", f'`resubmit("{job.name}")` hands in again what did not succeed.']
    if envelope is not None:
        lines += ["", *answered(prompts, envelope)]
    return "\n".join(lines)


def age(seconds: float) -> str:
    """For people: in the largest unit of which there are two or more."""
    size, unit = next((each for each in reversed(_UNITS) if seconds >= 2 * each[0]), _UNITS[0])
    return f"{seconds / size:.0f} {unit}"


def _now(part: Part) -> str:
    told = _STATES.get(part.state) or part.native or part.state
    if part.state == "waiting" and part.follows and part.not_before is None:
        told = "waits for the first prompt, whose cache it reads"
    return f"{told}: {part.problem.message}" if part.problem else told


def _prompts(count: int) -> str:
    return f"{count:,} prompt{'' if count == 1 else 's'}"


def _counted(manifest: Manifest) -> str:
    return ", ".join(f"{count:,} {bucket.replace('_', ' ')}" for bucket, count in manifest.counts.items())
