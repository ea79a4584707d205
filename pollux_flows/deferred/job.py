"""The state machine of a deferred job, from the intent to submit it until its answers are saved.

A job is submitted as one or several parts, each of which becomes one batch at the provider. Each step is saved before
it is taken, so that a later process knows after a crash what to look for. Jobs and parts never change: every transition
returns a new one, and the state of a job follows from the states of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal
from uuid import uuid4

from pydantic import AliasChoices, ConfigDict, Field, field_validator

from pollux_flows.access import guards_output
from pollux_flows.config import Target
from pollux_flows.document import Record
from pollux_flows.handles import VERSION, checked_version
from pollux_flows.options import Options
from pollux_flows.output import Manifest
from pollux_flows.pipeline.plan import Plan
from pollux_flows.providers.batches import ENDED, Batch, BatchState
from pollux_flows.result import CallFailure, FailureKind
from pollux_flows.state.identity import digest
from pollux_flows.state.slots import Chain

JobState = Literal["submitting", "submitted", "ambiguous", "collected"]
OnLost = Literal["submit", "report"]
"""The choice for a batch that was submitted and that the provider does not seem to have: submit it again, or leave the
decision to a person."""

PartState = Literal["waiting", "sending", "sent", "refused", "lost"]
_DIGITS: Final = 9
_MAX_PROBLEM_CHARS: Final = 1000
# A provider without room for a batch needs minutes.
_WAIT_S: Final = 60.0
_MAX_WAIT_S: Final = 1800.0


class Part(Record):
    """A batch that was or will be submitted: consecutive prompts of the job."""

    first: int = Field(description="The position of its first prompt in the job.")
    count: int
    attempt: int = Field(default=0, description="The number of submissions that were started.")
    state: PartState = Field(
        default="waiting",
        description="waiting to be submitted; sending, with an unknown outcome; sent: the provider has it; refused by "
        "the provider; lost: submitted, and the provider does not have it.",
    )
    not_before: float | None = Field(default=None, description="The earliest time of the next submission.")
    sent_at: float | None = Field(default=None, description="From then on the provider may have it.")
    lost_at: float | None = Field(default=None, description="The time when waiting for the provider's reply ended.")
    batch_id: str | None = Field(default=None, description="The provider's id of the batch.")
    batch_state: BatchState | None = None
    native: str = ""
    succeeded: int = 0
    failed: int = 0
    ended_at: float | None = None
    expires_at: float | None = None
    results: list[str] = Field(default_factory=list, description="Where the provider has its results.")
    problem: CallFailure | None = Field(default=None, description="The reason why its prompts wait or have no answer.")
    follows: bool = Field(default=False, description="Submitted after the first part, whose cache it reads, has ended.")

    @property
    def is_ended(self) -> bool:
        """True if its results are final."""
        return self.state == "refused" or (self.state == "sent" and self.batch_state in ENDED)

    @property
    def is_missing(self) -> bool:
        """True if the provider had accepted the batch and no longer has it."""
        return self.state == "lost" and self.batch_id is not None

    def with_batch(self, batch: Batch) -> Part:
        """Return the part updated from the provider's current description of its batch."""
        problem = None
        if batch.state == "failed":
            message = f"The provider refused the batch: {batch.problem or batch.native}"[:_MAX_PROBLEM_CHARS]
            problem = _failure("api_error", message, retryable=batch.queue_full)
        copied = {name: getattr(batch, name) for name in ("native", "succeeded", "failed", "ended_at", "expires_at")}
        its = {"batch_id": batch.id, "batch_state": batch.state, "results": list(batch.results)}
        return self.model_copy(update={"state": "sent", "problem": problem, **its, **copied})

    def reset(self) -> Part:
        """Return the part as one that waits to be submitted at once."""
        return Part(first=self.first, count=self.count, attempt=self.attempt, follows=self.follows)

    def postpone(self, now: float, problem: CallFailure, retry_after_s: float | None = None) -> Part:
        """Return the part as one that waits for room at the provider, longer after each attempt."""
        backoff_s = min(_WAIT_S * 2.0 ** max(0, self.attempt - 1), _MAX_WAIT_S)
        not_before = now + max(retry_after_s or 0.0, backoff_s)
        changes = {"not_before": not_before, "problem": problem, "native": "waiting"}
        return self.reset().model_copy(update=changes)

    def mark_sending(self, now: float) -> Part:
        """Return the part with the intent to submit it now."""
        changes = {"attempt": self.attempt + 1, "state": "sending", "sent_at": now}
        return self.reset().model_copy(update=changes)

    def mark_lost(self, why: str) -> Part:
        """Return the part as lost. It keeps its batch id, in case the provider has the batch after all."""
        problem = _failure("missing", why, retryable=True, outcome_unknown=True)
        return self.model_copy(update={"state": "lost", "problem": problem})

    def give_up(self, why: str) -> Part:
        """Return the part as ended without results."""
        return self.mark_lost(why).model_copy(update={"state": "refused"})

    def cancel(self) -> Part:
        """Return the part as one that is never submitted."""
        problem = _failure("cancelled", "The job was cancelled before this prompt was submitted.", retryable=True)
        return self.model_copy(update={"state": "refused", "batch_state": "cancelled", "problem": problem})


class Job(Record):
    """Deferred work: what was submitted, where, and its progress."""

    model_config = ConfigDict(serialize_by_alias=True)

    version: int = VERSION
    name: str = Field(description="The name of the job, which its users know.")
    submission: str = Field(description="The mark that every batch of it carries in its name or in its rows.")
    state: JobState = "submitting"
    fingerprint: str = Field(description="Equal for jobs with the same calls.")
    target: Target
    options: Options
    count: int = Field(description="The number of its prompts.")
    rows: list[tuple[int, int]] | None = Field(
        default=None, description="The prompts of its parent that it repeats, as first and last; None for all."
    )
    created_at: float
    parts: list[Part] = Field(default_factory=list)
    on_lost: OnLost = "submit"
    cancelled: bool = Field(default=False, description="True once its cancellation was requested.")
    # For the collector:
    account: str | None = Field(default=None, description="A mark of the key that it was submitted with.")
    provider_block: str | None = Field(default=None, description="The PolluxProvider with that key.")
    output: str | None = Field(default=None, description="The place for its answers.")
    resubmit: int = Field(default=0, ge=0, description="How often failed prompts are submitted again.")
    parent: str | None = Field(default=None, description="The job whose failed prompts it repeats.")
    child: str | None = Field(default=None, description="The job that repeats its failed prompts, until that is done.")
    children: int = Field(default=0, description="The number of jobs that have repeated its failed prompts.")
    failed_in: str | None = Field(default=None, description="The attempt of its run that failed for missing answers.")
    waiting_runs: list[str] = Field(default_factory=list, description="Suspended flow runs that wait for it.")
    emitted: list[str] = Field(
        default_factory=list,
        validation_alias=AliasChoices("told", "emitted"),
        serialization_alias="told",  # as older versions stored it
        description="The events that were emitted.",
    )
    manifest: Manifest | None = Field(default=None, description="Its results, once its answers are saved.")
    retired_at: float | None = Field(default=None, description="When the last step after its collection was done.")
    taken_by: Chain = Field(default=(), description="The place in a flow run that waits for it, if a sub-flow does.")
    guards_output: bool = Field(default=False, description="True if `output` may only replace the file of a job.")
    max_cost_usd: float | None = Field(
        default=None, description="The most that it may cost, with prompts that are submitted again by themselves."
    )

    @field_validator("version")
    @classmethod
    def _readable(cls, value: int) -> int:
        return checked_version(value, "This job")

    @property
    def is_ended(self) -> bool:
        """True if its results are final."""
        return bool(self.parts) and all(part.is_ended for part in self.parts)

    @property
    def is_submitted(self) -> bool:
        """True if the provider has accepted or refused all of it."""
        return bool(self.parts) and all(part.state in {"sent", "refused"} for part in self.parts)

    @property
    def is_complete(self) -> bool:
        """True if its answers are saved, those of prompts that were submitted again included."""
        return self.manifest is not None and self.child is None

    def was_submitted_with(self, key: str | None) -> bool:
        """Return True if this is the key of its submission. Another key may be for an account without its batches."""
        return self.account == _account_mark(self.submission, key)

    def due_parts(self, now: float) -> list[int]:
        """Return the numbers of the parts that may be submitted now."""
        return [
            number
            for number, part in enumerate(self.parts)
            if part.state == "waiting"
            and (part.not_before or 0.0) <= now
            and (self.parts[0].is_ended or not part.follows)
        ]

    def is_due(self, now: float) -> bool:
        """Return True if some part may be submitted now."""
        return not self.cancelled and (not self.parts or bool(self.due_parts(now)))

    def tag(self, number: int) -> str:
        """Return the name of the batch of this part in its current attempt."""
        return tag_of(self.submission, number, self.parts[number].attempt)

    def with_part(self, number: int, part: Part) -> Job:
        """Return the job with one part replaced, and the state that follows from it."""
        return self.with_parts([*self.parts[:number], part, *self.parts[number + 1 :]])

    def with_parts(self, parts: Sequence[Part]) -> Job:
        """Return the job with these parts, and the state that follows from them; itself if they are equal."""
        if list(parts) == self.parts:
            return self
        return self.model_copy(update={"parts": list(parts), "state": self._state(parts)})

    def _state(self, parts: Sequence[Part]) -> JobState:
        if self.manifest is not None:
            return "collected"
        states = {part.state for part in parts}
        if "lost" in states:
            return "ambiguous"
        # A part that was never tried is still being submitted. A part that the provider has postponed waits for the
        # provider, and a part that follows the first waits for that.
        untried = any(part.state == "waiting" and part.not_before is None and not part.follows for part in parts)
        return "submitting" if untried or "sending" in states else "submitted"

    def with_manifest(self, manifest: Manifest) -> Job:
        """Return the job as collected, with its answers saved."""
        return self.model_copy(update={"manifest": manifest, "state": "collected"})

    @property
    def next_child(self) -> str:
        """The name of the next job that repeats its failed prompts."""
        return f"{self.name}-r{self.children + 1}"

    def with_child(self, child: Job) -> Job:
        """Return the job as one that waits for this child to complete it."""
        changes = {"child": child.name, "children": self.children + 1, "retired_at": None, "failed_in": None}
        return self.model_copy(update=changes)

    def prompt_indexes(self, part: Part | None = None) -> Iterator[int]:
        """Iterate over the indexes of its prompts, or of one part's, in the numbering of the plan."""
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
    """Return a new job that is to be submitted with this key."""
    submission = f"pollux-{uuid4().hex[:16]}"
    return Job(
        name=name,
        submission=submission,
        account=_account_mark(submission, key),
        fingerprint=fingerprint(plan),
        target=plan.target,
        options=resolve_schema(plan.options),
        count=len(plan.calls),
        created_at=now,
        guards_output=guards_output(more.get("output")),
        **more,
    )


def resolve_schema(options: Options) -> Options:
    """Return options with the JSON Schema in place of its class, which may have changed when the answers arrive."""
    if options.response_schema is None:
        return options
    return options.model_copy(update={"response_schema": options.response_json_schema()})


def fingerprint(plan: Plan) -> str:
    """Return a digest that is equal for plans with the same calls."""
    return digest("job", [call.identity for call in plan.calls])


def _account_mark(submission: str, key: str | None) -> str:
    """Return a short digest that tells keys apart and does not reveal them."""
    return digest("account", [submission, key])[:8]


def _failure(kind: FailureKind, message: str, *, retryable: bool, outcome_unknown: bool = False) -> CallFailure:
    return CallFailure(index=0, kind=kind, message=message, retryable=retryable, outcome_unknown=outcome_unknown)


def tag_of(submission: str, number: int, attempt: int) -> str:
    """Return the name of a part's batch in this attempt. Its length is constant: rows that fit once fit again."""
    return f"{submission}-{number}-{attempt:02}"


def row_key(tag: str, index: int) -> str:
    """Return the key of a row within its batch."""
    return f"{tag}-{index}"


def parse_row_key(key: str | None, tag: str) -> int | None:
    """Return the index of the prompt behind a row key of this batch; None for any other key."""
    number = key.removeprefix(f"{tag}-") if key and key.startswith(f"{tag}-") else ""
    if not number.isascii() or not number.isdigit() or len(number) > _DIGITS:
        return None
    return int(number) if key == row_key(tag, int(number)) else None


def to_ranges(indexes: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending indexes as ranges, each with its first and last index."""
    found: list[tuple[int, int]] = []
    for index in indexes:
        if found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found
