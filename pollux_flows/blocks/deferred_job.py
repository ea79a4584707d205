"""PolluxDeferredJob: work that was handed in to a provider's batch system, as a block that anybody can find it by."""

from __future__ import annotations

from typing import Any

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from pollux_flows.deferred.defer import handle_of
from pollux_flows.deferred.inspect import status_of
from pollux_flows.deferred.job import Job
from pollux_flows.handles import DeferredHandle


class PolluxDeferredJob(Block):
    """Deferred work: who has it, how far it is, and what came of it. The flow `submit` makes it, `collect` changes it.

    Example:
        Load a job by the name that `submit` gave, and look at it:

        ```python
        from pollux_flows.blocks import PolluxDeferredJob

        job = PolluxDeferredJob.load("BLOCK_NAME")
        print(job.state, job.status)
        ```
    """

    _block_type_name = "Pollux Deferred Job"
    _block_type_slug = "pollux-deferred-job"
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")
    _description = "Work that was handed in to a provider's batch system. Made by the flow submit; not to be edited."

    # Field order is part of the block schema's checksum: append new fields, and give them defaults.
    state: str = Field(description="submitting, submitted, ambiguous or collected.")
    status: str = Field(description="What the provider said of it when somebody last looked.")
    provider: str
    model: str
    prompts: int = Field(description="How many prompts it has.")
    batches: list[str] = Field(default_factory=list, description="The provider's ids of it.")
    job: dict[str, Any] = Field(description="All that is known of it.")

    @classmethod
    def of(cls, job: Job) -> PolluxDeferredJob:
        """The block that says what is known of a job."""
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
        """The same for `inspect_deferred`, `collect_deferred` and `cancel_deferred`."""
        return handle_of(Job.model_validate(self.job))
