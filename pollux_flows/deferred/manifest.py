"""Manifest: what came of a job, in numbers that add up to the prompts that were submitted."""

from __future__ import annotations

from typing import Final, Literal, get_args

from pydantic import Field

from pollux_flows.document import Record

Bucket = Literal["succeeded", "failed", "expired", "cancelled", "invalid_output", "missing"]
"""What can become of a prompt. Each is in exactly one of these."""

BUCKETS: Final[tuple[Bucket, ...]] = get_args(Bucket)


class Manifest(Record):
    """What came of a job."""

    submitted: int
    succeeded: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    invalid_output: int = Field(default=0, description="Answered, but not in the shape that was asked for.")
    missing: int = Field(default=0, description="The provider gave no result. It may have billed them all the same.")
    cost_usd: float | None = Field(default=None, description="At batch prices; None where nobody can tell.")
    cost_unknown: str | None = None
    usage: dict[str, int] = Field(default_factory=dict)
    oddities: list[str] = Field(default_factory=list, description="What is wrong with the results as a whole.")
    output: str | None = Field(default=None, description="The JSONL file with a line a prompt.")
    collected_at: float

    @property
    def is_whole(self) -> bool:
        """Whether every prompt succeeded."""
        return self.succeeded == self.submitted

    @property
    def counts(self) -> dict[Bucket, int]:
        """How many are in which bucket, without the empty ones."""
        return {bucket: count for bucket in BUCKETS if (count := getattr(self, bucket))}
