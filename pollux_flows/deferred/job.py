"""Job: all that is known of deferred work, from the intent to hand it in until its answers are kept.

A job is handed in as one or several parts, each of which becomes one batch at the provider. What is about to be done is
written down before it is done, so that whoever comes after a crash knows what to look for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal
from uuid import uuid4

from pydantic import Field, field_validator

from pollux_flows.access import guards_output
from pollux_flows.config import Target
from pollux_flows.deferred.manifest import Manifest
from pollux_flows.document import Record
from pollux_flows.handles import VERSION, checked_version
from pollux_flows.options import Options
from pollux_flows.pipeline.plan import Plan
from pollux_flows.providers.batches import ENDED, Batch, BatchState
from pollux_flows.result import CallFailure
from pollux_flows.state.identity import digest
from pollux_flows.state.slots import Chain

JobState = Literal["submitting", "submitted", "ambiguous", "collected"]
OnLost = Literal["submit", "report"]
"""What to do about a batch that was handed in, and that the provider does not seem to have: hand it in again, or leave
that to a person."""

PartState = Literal["waiting", "sending", "sent", "refused", "lost"]
_DIGITS: Final = 9
_LONGEST_PROBLEM: Final = 1000


class Part(Record):
    """One batch, or what is to become one: so many prompts of the job, one after the other."""

    first: int = Field(description="Its first prompt, by the place in the job.")
    count: int
    attempt: int = Field(default=0, description="How many times it was handed in, or was about to be.")
    state: PartState = Field(
        default="waiting",
        description="waiting to be handed in; sending, with an outcome that is not known yet; sent: the provider has "
        "it; refused by the provider; lost: handed in, and the provider does not have it.",
    )
    not_before: float | None = Field(default=None, description="When a part that has to wait may be handed in again.")
    sent_at: float | None = Field(default=None, description="From then on the provider may have it.")
    lost_at: float | None = Field(
        default=None, description="Since when nobody waits for the provider's reply any more."
    )
    batch_id: str | None = Field(default=None, description="The provider's id of it.")
    batch_state: BatchState | None = None
    native: str = ""
    succeeded: int = 0
    failed: int = 0
    ended_at: float | None = None
    expires_at: float | None = None
    results: list[str] = Field(default_factory=list, description="Where the provider has its results.")
    problem: CallFailure | None = Field(default=None, description="Why none of its prompts was answered, or waits.")
    follows: bool = Field(default=False, description="Handed in once the first part, whose cache it reads, has ended.")

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state == "refused" or (self.state == "sent" and self.batch_state in ENDED)

    def seen(self, batch: Batch) -> Part:
        """The same with what the provider says of it now."""
        problem = None
        if batch.state == "failed":
            problem = CallFailure(
                index=0,
                kind="api_error",
                message=f"The provider refused the whole batch: {batch.problem or batch.native}"[:_LONGEST_PROBLEM],
                retryable=batch.queue_full,
            )
        return self.model_copy(
            update={
                "state": "sent",
                "batch_id": batch.id,
                "batch_state": batch.state,
                "native": batch.native,
                "succeeded": batch.succeeded,
                "failed": batch.failed,
                "ended_at": batch.ended_at,
                "expires_at": batch.expires_at,
                "results": list(batch.results),
                "problem": problem,
            }
        )

    def again(self) -> Part:
        """The same, to be handed in again at once."""
        return Part(first=self.first, count=self.count, attempt=self.attempt, follows=self.follows)

    def gone(self, why: str) -> Part:
        """The same, with nothing left of it at the provider."""
        problem = CallFailure(index=0, kind="missing", message=why, retryable=True, outcome_unknown=True)
        return self.model_copy(update={"state": "refused", "problem": problem})

    @property
    def is_missing(self) -> bool:
        """Whether the provider had accepted it, and then did not have it any more."""
        return self.state == "lost" and self.batch_id is not None

    def missing(self, why: str) -> Part:
        """Return the part as lost. It can still be found by its id, should the provider have it after all."""
        problem = CallFailure(index=0, kind="missing", message=why, retryable=True, outcome_unknown=True)
        return self.model_copy(update={"state": "lost", "problem": problem})

    def cancelled(self) -> Part:
        """The same, never to be handed in."""
        problem = CallFailure(
            index=0, kind="cancelled", message="The job was cancelled before this prompt was handed in.", retryable=True
        )
        return self.model_copy(update={"state": "refused", "batch_state": "cancelled", "problem": problem})

    def waits(self, until: float, problem: CallFailure) -> Part:
        """The same, to be handed in again later."""
        return Part(
            first=self.first,
            count=self.count,
            attempt=self.attempt,
            not_before=until,
            problem=problem,
            native="waiting",
            follows=self.follows,
        )


class Job(Record):
    """Deferred work: what was handed in, where, and what became of it."""

    version: int = VERSION
    name: str = Field(description="What people call it.")
    submission: str = Field(description="What every batch of it carries in its name or in its rows.")
    state: JobState = "submitting"
    fingerprint: str = Field(description="Equal for jobs that ask the same.")
    target: Target
    options: Options
    count: int = Field(description="How many prompts it has.")
    rows: list[tuple[int, int]] | None = Field(
        default=None, description="The prompts of its parent that it asks again, as first and last; None for all."
    )
    created_at: float
    parts: list[Part] = Field(default_factory=list)
    on_lost: OnLost = "submit"
    cancelled: bool = Field(default=False, description="Whether somebody wants no more of it.")
    # What those who collect it are to know, and what they have done.
    account: str | None = Field(default=None, description="Tells whether a key is the one it was handed in with.")
    provider_block: str | None = Field(default=None, description="The PolluxProvider whose key it was handed in with.")
    output: str | None = Field(default=None, description="Where its answers are to be written as JSONL.")
    resubmit: int = Field(default=0, ge=0, description="How often what failed is to be handed in again.")
    parent: str | None = Field(default=None, description="The job whose failed prompts it asks again.")
    child: str | None = Field(default=None, description="The job that asks its failed prompts again, until it is done.")
    children: int = Field(default=0, description="How many jobs have done so.")
    failed_in: str | None = Field(default=None, description="The attempt of its run that failed for what it lacks.")
    waiting_runs: list[str] = Field(default_factory=list, description="Suspended flow runs that wait for it.")
    told: list[str] = Field(default_factory=list, description="The events that were sent.")
    manifest: Manifest | None = Field(default=None, description="What came of it, once that is kept.")
    retired_at: float | None = Field(default=None, description="When all was done that its end asks for.")
    taken_by: Chain = Field(default=(), description="Where in a flow run it is waited for, when that is a sub-flow.")
    guards_output: bool = Field(default=False, description="Whether `output` may only replace what a job wrote.")

    @field_validator("version")
    @classmethod
    def _readable(cls, value: int) -> int:
        return checked_version(value, "This job")

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return bool(self.parts) and all(part.is_ended for part in self.parts)

    @property
    def is_handed_in(self) -> bool:
        """Whether the provider has all of it, or has said why not."""
        return bool(self.parts) and all(part.state in {"sent", "refused"} for part in self.parts)

    def was_handed_in_with(self, key: str | None) -> bool:
        """Whether that is the key. Another may be another account's, which has none of it."""
        return self.account == _account(self.submission, key)

    def due(self, now: float) -> list[int]:
        """The numbers of the parts that may be handed in now."""
        return [
            number
            for number, part in enumerate(self.parts)
            if part.state == "waiting"
            and (part.not_before or 0.0) <= now
            and (self.parts[0].is_ended or not part.follows)
        ]

    def is_due(self, now: float) -> bool:
        """Whether some of it may be handed in now."""
        return not self.cancelled and (not self.parts or bool(self.due(now)))

    @property
    def is_complete(self) -> bool:
        """Whether its answers are kept, those of prompts that were handed in again included."""
        return self.manifest is not None and self.child is None

    def tag(self, number: int) -> str:
        """What the batch of that part is called, in its present attempt."""
        return tag_of(self.submission, number, self.parts[number].attempt)

    def with_part(self, number: int, part: Part) -> Job:
        """The same with one part changed, and in the state that follows from that."""
        parts = [*self.parts]
        parts[number] = part
        return self.with_parts(parts)

    def with_parts(self, parts: Sequence[Part]) -> Job:
        """The same with other parts, and in the state that follows from those."""
        return self.model_copy(update={"parts": list(parts), "state": self._state(parts)})

    def _state(self, parts: Sequence[Part]) -> JobState:
        if self.manifest is not None:
            return "collected"
        states = {part.state for part in parts}
        if "lost" in states:
            return "ambiguous"
        # One that was never tried is still being handed in; one that was told to wait is the provider's to take, and
        # one that follows waits for the first.
        untried = any(part.state == "waiting" and part.not_before is None and not part.follows for part in parts)
        return "submitting" if untried or "sending" in states else "submitted"

    def collected(self, manifest: Manifest) -> Job:
        """The same, once its answers are kept."""
        return self.model_copy(update={"manifest": manifest, "state": "collected"})

    def indexes(self, part: Part | None = None) -> Iterator[int]:
        """The numbers of its prompts, or of one part's, as the plan counts them."""
        places = range(self.count) if part is None else range(part.first, part.first + part.count)
        if self.rows is None:
            yield from places
            return
        place = 0
        for first, last in self.rows:
            for index in range(first, last + 1):
                if place in places:
                    yield index
                place += 1


def new_job(name: str, plan: Plan, now: float, key: str | None, **more: Any) -> Job:
    """A job that nobody knows of yet, handed in with that key."""
    submission = f"pollux-{uuid4().hex[:16]}"
    return Job(
        name=name,
        submission=submission,
        account=_account(submission, key),
        fingerprint=fingerprint(plan),
        target=plan.target,
        options=as_sent(plan.options),
        count=len(plan.calls),
        created_at=now,
        guards_output=guards_output(more.get("output")),
        **more,
    )


def as_sent(options: Options) -> Options:
    """The same with the schema that is sent. The class that it was made from may be another when the answers come."""
    if options.response_schema is None:
        return options
    return options.model_copy(update={"response_schema": options.response_json_schema()})


def _account(submission: str, key: str | None) -> str:
    """A few letters by which a key can be told from another, and not be found out."""
    return digest("account", [submission, key])[:8]


def fingerprint(plan: Plan) -> str:
    """Equal for plans that ask the same."""
    return digest("job", [call.identity for call in plan.calls])


def tag_of(submission: str, number: int, attempt: int) -> str:
    """What the batch of that part is called in that attempt. As long in each, so that what fits once fits again."""
    return f"{submission}-{number}-{attempt:02}"


def key_of(tag: str, index: int) -> str:
    """What a row is called within its batch."""
    return f"{tag}-{index}"


def index_in(key: str | None, tag: str) -> int | None:
    """The number of the prompt that a row of that batch is about, if it is one."""
    number = key.removeprefix(f"{tag}-") if key and key.startswith(f"{tag}-") else ""
    if not number.isascii() or not number.isdigit() or len(number) > _DIGITS:
        return None
    return int(number) if key == key_of(tag, int(number)) else None


def ranges(indexes: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers in order, as first and last of those that follow each other."""
    found: list[tuple[int, int]] = []
    for index in indexes:
        if found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found
