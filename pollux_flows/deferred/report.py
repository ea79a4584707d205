"""Reports on jobs: the snapshot of one job, and the rows of a collector pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pydantic import Field

from pollux_flows.deferred.job import Job, JobState
from pollux_flows.document import Record
from pollux_flows.handles import DeferredSnapshot, DeferredStatus

_LOST: Final[JobState] = "ambiguous"


def snapshot(job: Job, job_id: str | None = None) -> DeferredSnapshot:
    """Return the progress of a job in numbers."""
    succeeded, failed = _counts(job)
    return DeferredSnapshot(
        job_id=job_id or job_id_of(job),
        provider=job.target.provider,
        model=job.target.model,
        status=status_of(job),
        provider_status=" · ".join(dict.fromkeys(part.native or part.state for part in job.parts)) or job.state,
        request_count=job.count,
        succeeded=succeeded,
        failed=failed,
        pending=job.count - succeeded - failed,
        submitted_at=submitted_at(job),
        completed_at=max(_known_times(part.ended_at for part in job.parts), default=None) if job.is_ended else None,
        expires_at=min(_known_times(part.expires_at for part in job.parts), default=None),
    )


def status_of(job: Job) -> DeferredStatus:
    """Return one status for all parts together."""
    states = {"failed" if part.state == "refused" else part.batch_state or "queued" for part in job.parts}
    if not job.is_ended:
        return "cancelling" if "cancelling" in states else "queued" if states <= {"queued"} else "running"
    succeeded, failed = _counts(job)
    if succeeded:
        return "partial" if failed else "completed"
    return "cancelled" if states == {"cancelled"} else "expired" if states == {"expired"} else "failed"


def job_id_of(job: Job) -> str:
    """Return the provider's id of the batch; of several batches, our name for all of them."""
    ids = [part.batch_id for part in job.parts]
    return ids[0] if len(ids) == 1 and ids[0] else job.submission


def submitted_at(job: Job) -> float:
    """Return the time when the first part was submitted."""
    return min(_known_times(part.sent_at for part in job.parts), default=job.created_at)


def _counts(job: Job) -> tuple[int, int]:
    """Return the numbers of prompts with an answer, and of those that will have none."""
    succeeded = failed = 0
    for part in job.parts:
        answered = min(part.succeeded, part.count)  # a provider may count more
        succeeded += answered
        failed += part.count - answered if part.is_ended else min(part.failed, part.count - answered)
    return succeeded, failed


def _known_times(times: Iterable[float | None]) -> list[float]:
    return [time for time in times if time is not None]


class JobRow(Record):
    """One job after a collector pass."""

    job: str
    status: str = Field(description="The provider's status of the job while it works on it, or else the job's state.")
    provider: str = ""
    model: str = ""
    prompts: int = 0
    succeeded: int = 0
    failed: int = 0
    pending: int = 0
    age_s: float = 0.0
    cost_usd: float | None = None
    collected: bool = Field(default=False, description="True if its answers are collected.")
    next: str = Field(default="", description="The next step.")
    problem: str | None = Field(default=None, description="The reason why it was skipped, or is lost.")


class CollectReport(Record):
    """The result of a collector pass: one row per job."""

    rows: list[JobRow] = Field(default_factory=list)
    requests: int = Field(default=0, description="The number of requests to providers for inspecting batches.")

    @property
    def headline(self) -> str:
        """The report in one line."""
        collected = sum(row.collected for row in self.rows)
        skipped = sum(row.problem is not None and row.status != _LOST for row in self.rows)
        lost = sum(row.status == _LOST for row in self.rows)
        pending = len(self.rows) - collected - skipped - lost
        counts = [f"{collected} collected", f"{pending} under way"]
        counts += [f"{lost} lost at the provider"] if lost else []
        return ", ".join([*counts, *([f"{skipped} skipped"] if skipped else [])])


def row_of(job: Job, now: float, problem: str | None = None) -> JobRow:
    """Return the row of a job."""
    seen, manifest = snapshot(job), job.manifest
    return JobRow(
        job=job.name,
        status=seen.status if job.state == "submitted" or manifest else job.state,
        provider=job.target.provider,
        model=job.target.model,
        prompts=job.count,
        succeeded=manifest.succeeded if manifest else seen.succeeded,
        failed=manifest.submitted - manifest.succeeded if manifest else seen.failed,
        pending=0 if manifest else seen.pending,
        age_s=round(now - submitted_at(job), 1),
        cost_usd=manifest and manifest.cost_usd,
        collected=job.is_complete,
        next=_next_step(job),
        problem=problem or missing_problem(job),
    )


def missing_problem(job: Job) -> str | None:
    """Return the problem of a batch that the provider had accepted and has lost; None if there is none."""
    return next((part.problem.message for part in job.parts if part.is_missing and part.problem), None)


def _next_step(job: Job) -> str:
    if job.child is not None:
        return f"{job.child} repeats the failed prompts"
    if job.manifest is not None:
        if job.waiting_runs and job.retired_at is None:
            return "resumes the flow runs that wait for it"
        return "nothing: it is collected" if job.manifest.has_all_answers else "nothing; resubmit repeats what failed"
    if job.state == "ambiguous":
        return "your decision: resubmit submits what the provider does not have, cancel drops it"
    if job.is_ended:
        return "is collected by the next pass"
    if any(part.state == "sending" for part in job.parts):
        return "is looked for at the provider"
    if any(part.state == "waiting" and part.follows for part in job.parts) and not job.parts[0].is_ended:
        return "the rest is submitted once the first prompt, whose cache it reads, is answered"
    if any(part.state == "waiting" for part in job.parts):
        return "the rest is submitted once the provider has room"
    return "is being cancelled" if job.cancelled else "the provider works on it"
