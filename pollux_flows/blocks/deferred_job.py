"""PolluxDeferredJob: the block of a deferred job on a Prefect server."""

from __future__ import annotations

from typing import Any

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from pollux_flows.deferred.api import handle_of
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.report import status_of
from pollux_flows.handles import DeferredHandle


class PolluxDeferredJob(Block):
    """A deferred job: its provider, its progress and its result. Created by the flow `submit`, updated by `collect`.

    Example:
        Load a job by the name that `submit` returned, and print its state:

        ```python
        from pollux_flows.blocks import PolluxDeferredJob

        job = PolluxDeferredJob.load("BLOCK_NAME")
        print(job.state, job.status)
        ```
    """

    _block_type_name = "Pollux Deferred Job"
    _block_type_slug = "pollux-deferred-job"
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")
    _description = "Work that was submitted to a provider's batch system. Created by the flow submit; do not edit it."

    # Field order is part of the block schema's checksum: append new fields, and give them defaults.
    state: str = Field(description="submitting, submitted, ambiguous or collected.")
    status: str = Field(description="The provider's status when the job was last inspected.")
    provider: str = Field(description="The provider of its batches.")
    model: str = Field(description="The model that answers.")
    prompts: int = Field(description="The number of its prompts.")
    batches: list[str] = Field(default_factory=list, description="The provider's ids of its batches.")
    job: dict[str, Any] = Field(description="The complete job.")

    @classmethod
    def of(cls, job: Job) -> PolluxDeferredJob:
        """Return the block of a job."""
        return cls(
            state=job.state,
            status=status_of(job),
            provider=job.target.provider,
            model=job.target.model,
            prompts=job.count,
            batches=[part.batch_id for part in job.parts if part.batch_id],
            job=job.model_dump(mode="json", exclude_defaults=True),
        )

    @property
    def handle(self) -> DeferredHandle:
        """The handle of the job for `inspect_deferred`, `collect_deferred` and `cancel_deferred`."""
        return handle_of(Job.model_validate(self.job))
