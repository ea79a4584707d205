"""Report: what one look at all jobs found and did."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from pollux_flows.deferred.inspect import snapshot, submitted_at
from pollux_flows.deferred.job import Job, JobState
from pollux_flows.document import Record

_LOST: Final[JobState] = "ambiguous"


class JobRow(Record):
    """One job, as it is after that."""

    job: str
    status: str = Field(description="The state of the job or, while the provider works on it, what that says.")
    provider: str = ""
    model: str = ""
    prompts: int = 0
    succeeded: int = 0
    failed: int = 0
    pending: int = 0
    age_s: float = 0.0
    cost_usd: float | None = None
    collected: bool = Field(default=False, description="Whether its answers were collected.")
    next: str = Field(default="", description="What happens next.")
    problem: str | None = Field(default=None, description="Why it was left alone, or is lost.")


class CollectReport(Record):
    """What `collect` did: a row a job."""

    rows: list[JobRow] = Field(default_factory=list)
    requests: int = Field(default=0, description="What looking at them took, in requests to providers.")

    @property
    def headline(self) -> str:
        """The same in a line."""
        collected = sum(row.collected for row in self.rows)
        troubled = sum(row.problem is not None and row.status != _LOST for row in self.rows)
        lost = sum(row.status == _LOST for row in self.rows)
        waiting = len(self.rows) - collected - troubled - lost
        said = [f"{collected} collected", f"{waiting} under way"]
        said += [f"{lost} lost at the provider"] if lost else []
        return ", ".join([*said, *([f"{troubled} left alone"] if troubled else [])])


def row_of(job: Job, now: float, problem: str | None = None) -> JobRow:
    """What there is to say of a job."""
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
        next=_next(job),
        problem=problem or missing_in(job),
    )


def missing_in(job: Job) -> str | None:
    """Return why a batch of the job is lost that the provider had accepted, if one is."""
    return next((part.problem.message for part in job.parts if part.is_missing and part.problem), None)


def _next(job: Job) -> str:
    """What happens next, for people."""
    if job.child is not None:
        return f"{job.child} asks again what failed"
    if job.manifest is not None:
        if job.waiting_runs and job.retired_at is None:
            return "resumes the flow runs that wait for it"
        return "nothing: it is collected" if job.manifest.is_whole else "nothing; resubmit asks again what failed"
    if job.state == "ambiguous":
        return "a person decides: resubmit hands in what the provider does not have, cancel drops it"
    if job.is_ended:
        return "is collected the next time"
    if any(part.state == "sending" for part in job.parts):
        return "is looked for at the provider"
    if any(part.state == "waiting" and part.follows for part in job.parts) and not job.parts[0].is_ended:
        return "the rest is handed in when the first prompt, whose cache it reads, is answered"
    if any(part.state == "waiting" for part in job.parts):
        return "the rest is handed in when the provider has room"
    return "is being cancelled" if job.cancelled else "the provider works on it"
