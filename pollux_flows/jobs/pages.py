"""The artifacts of deferred jobs: pages about a submission, a collected job and a collector pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact

from pollux_flows.address import redact_address
from pollux_flows.artifacts import best_effort
from pollux_flows.deferred.job import Job, Part
from pollux_flows.deferred.report import CollectReport
from pollux_flows.output import Manifest
from pollux_flows.pages import cell, count_of, questions
from pollux_flows.pricing import dollars
from pollux_flows.result import ResultEnvelope

# Ages are shown in the largest unit of which there are two or more.
_UNITS: Final = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86_400.0, "days"))
_STATES: Final = {
    "waiting": "waits for room at the provider",
    "sending": "submitted, without a reply so far",
    "lost": "submitted, and the provider does not have it",
    "refused": "refused",
}


async def publish_submission(job: Job) -> None:
    """Publish a page about a submitted job: its batches, and how to get its answers."""
    async with best_effort():
        await acreate_markdown_artifact(
            markdown=render_submission(job),
            key="pollux-submit",
            description=f"{job.target.model}: {count_of(job.count, 'prompt')} submitted as {job.name}",
        )


async def publish_job(
    job: Job, manifest: Manifest, prompts: Sequence[str | None] = (), envelope: ResultEnvelope | None = None
) -> None:
    """Publish a page about a collected job: its numbers and, unless it is very long, its first answers."""
    async with best_effort():
        await acreate_markdown_artifact(
            markdown=render_job(job, manifest, prompts, envelope),
            key=f"pollux-job-{job.name}",
            description=f"{job.target.model}: {count_of(job.count, 'prompt')}, {_format_counts(manifest)}",
        )


async def publish_report(report: CollectReport) -> None:
    """Publish a table with one row per job."""
    rows = [
        {
            "job": row.job,
            "status": row.status,
            "prompts": row.prompts,
            "succeeded": row.succeeded,
            "failed": row.failed,
            "pending": row.pending,
            "age": format_age(row.age_s),
            "cost": "" if row.cost_usd is None else dollars(row.cost_usd),
            "next": row.problem or row.next,
        }
        for row in report.rows
    ]
    async with best_effort():
        await acreate_table_artifact(table=rows, key="pollux-collect", description=report.headline)


def render_submission(job: Job) -> str:
    """Return the Markdown page about a submitted job."""
    model = f"{job.target.provider} {cell(job.target.model)}"
    parts = [
        f"| {number + 1} | {part.count} | {cell(part.batch_id or '')} | {cell(_describe(part))} |"
        for number, part in enumerate(job.parts)
    ]
    lines = [
        f"**{cell(job.name)}** · {job.state} · {model} · {count_of(job.count, 'prompt')}",
        "",
        "| Part | Prompts | Batch at the provider | Now |",
        "| --- | --- | --- | --- |",
        *parts,
        "",
        f"The job is the block `pollux-deferred-job/{job.name}` of this server.",
        f'The flow `collect` collects it: run it on a schedule, or now with `jobs=["{job.name}"]`.',
        f'In a flow of yours, `wait_for("{job.name}")` returns the answers.',
    ]
    if job.state == "submitting":
        lines += [
            "",
            "The provider's reply was lost: `collect` looks for the batch at the provider. Nothing is submitted twice.",
        ]
    return "\n".join(lines)


def render_job(job: Job, manifest: Manifest, prompts: Sequence[str | None], envelope: ResultEnvelope | None) -> str:
    """Return the Markdown page about a collected job."""
    cost = f"unknown: {cell(manifest.cost_unknown or '')}" if manifest.cost_usd is None else dollars(manifest.cost_usd)
    rows = [*((bucket.replace("_", " "), str(count)) for bucket, count in manifest.counts.items()), ("cost", cost)]
    rows += [(name.replace("_", " "), f"{count:,}") for name, count in manifest.usage.items() if count]
    if manifest.output:
        rows.append(("answers", cell(redact_address(manifest.output))))
    model = f"{job.target.provider} · {cell(job.target.model)}"
    lines = [f"| {cell(job.name)} | {model} · {count_of(manifest.submitted, 'prompt')} |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += ["", *(f"- {cell(oddity)}" for oddity in manifest.oddities)]
    if not manifest.has_all_answers:
        lines += ["", f'`resubmit("{job.name}")` submits again the prompts that did not succeed.']
    if envelope is not None:
        lines += ["", *questions(prompts, envelope)]
    return "\n".join(lines)


def format_age(seconds: float) -> str:
    """Return an age in the largest unit of which there are two or more."""
    size, unit = next((each for each in reversed(_UNITS) if seconds >= 2 * each[0]), _UNITS[0])
    return f"{seconds / size:.0f} {unit}"


def _describe(part: Part) -> str:
    state = _STATES.get(part.state) or part.native or part.state
    if part.state == "waiting" and part.follows and part.not_before is None:
        state = "waits for the first prompt, whose cache it reads"
    return f"{state}: {part.problem.message}" if part.problem else state


def _format_counts(manifest: Manifest) -> str:
    return ", ".join(f"{count:,} {bucket.replace('_', ' ')}" for bucket, count in manifest.counts.items())
