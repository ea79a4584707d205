"""The results of a job: download them, read one outcome per prompt in order, and make the envelope."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

from pydantic import Field

from pollux_flows.deferred.job import Job, Part, parse_row_key, row_key
from pollux_flows.deferred.report import job_id_of, snapshot, submitted_at
from pollux_flows.deferred.warm import warm_warnings
from pollux_flows.document import Record
from pollux_flows.errors import APIError, InternalError
from pollux_flows.options import Options
from pollux_flows.output import Bucket
from pollux_flows.pipeline.extract import extract_envelope
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.retry import retry_call
from pollux_flows.pipeline.structured import Reading, read_answers, read_instances, shape_warning
from pollux_flows.pricing import Cost, cost_of, total
from pollux_flows.providers.base import UpstreamError
from pollux_flows.providers.batches import Batch, Result
from pollux_flows.providers.registry import find_provider
from pollux_flows.providers.session import Session
from pollux_flows.result import Answer, CallFailure, FailureKind, Outcome, ResultEnvelope

_MAX_MESSAGE_CHARS: Final = 1000
# The number of answers that one thread reads, and that are in memory at once.
_CHUNK: Final = 200
_BUCKETS: Final[dict[FailureKind, Bucket]] = {"expired": "expired", "cancelled": "cancelled", "missing": "missing"}
_UNANSWERED: Final[dict[str, tuple[FailureKind, str]]] = {
    "expired": ("expired", "The provider did not answer this prompt before the batch expired."),
    "cancelled": ("cancelled", "The batch was cancelled before this prompt was answered."),
}


class Item(Record):
    """One prompt of a job, and its outcome."""

    key: str
    bucket: Bucket
    outcome: Outcome
    structured: Any = None
    warning: str | None = None
    code: str | None = Field(default=None, description="The provider's own code for it.")
    earlier: list[Outcome] = Field(default_factory=list, description="Earlier answers that were paid for.")

    @property
    def paid(self) -> list[tuple[Answer, Cost]]:
        """All answers to this prompt, each with its cost."""
        return [
            (outcome.answer, Cost(outcome.cost_usd, outcome.cost_unknown))
            for outcome in (*self.earlier, self.outcome)
            if outcome.answer is not None
        ]


async def download(job: Job, session: Session, folder: Path) -> Results:
    """Download the raw results of all parts into files. A file that exists already is not downloaded again.

    Results of a cancelled job that the provider no longer has are treated as lost.
    """
    files: dict[int, Path] = {}
    for number, part in enumerate(job.parts):
        if part.batch_id is None or not part.results:
            continue
        path = folder / f"{job.tag(number)}.jsonl"
        try:
            if not path.exists():
                await retry_call(partial(_download_part, session, part, path), session.config)
        except APIError as error:
            if error.status_code == HTTPStatus.NOT_FOUND and job.cancelled:
                continue
            raise
        files[number] = path
    # Off the event loop: indexing 50,000 results takes seconds.
    return await asyncio.to_thread(Results, job, files)


async def _download_part(session: Session, part: Part, path: Path) -> None:
    unfinished = path.with_suffix(".unfinished")
    batch = Batch(part.batch_id or "", part.batch_state or "running", part.native, results=tuple(part.results))
    with unfinished.open("wb") as file:
        await session.download_batch(batch, file)
    unfinished.replace(path)


@dataclass
class Results:
    """The raw results of a job in files on this machine. Only their positions are held in memory."""

    job: Job
    files: Mapping[int, Path]
    """The file of each part, by its number."""
    oddities: list[str] = field(default_factory=list)
    """Problems with all results together."""

    def __post_init__(self) -> None:
        batches = find_provider(self.job.target.provider).batches
        if batches is None:
            raise InternalError(f"{self.job.target.provider} has no batches.")
        self._module = batches
        self._places: dict[int, tuple[int, int]] = {}
        """The position of each prompt's result: the number of the file, and the offset in it."""
        duplicate = foreign = unreadable = 0
        for number, path in self.files.items():
            tag, its_own = self.job.tag(number), set(self.job.prompt_indexes(self.job.parts[number]))
            for at, line in _lines(path):
                if (result := self._parse(line)) is None:
                    unreadable += 1
                elif (index := parse_row_key(result.key, tag)) not in its_own or index is None:
                    foreign += 1
                elif index in self._places:
                    duplicate += 1
                else:
                    self._places[index] = (number, at)
        for count, what in (
            (duplicate, "came twice; the first of each counts"),
            (foreign, "came that belong to no prompt of this job"),
            (unreadable, "cannot be read"),
        ):
            if count:
                self.oddities.append(f"{count} results {what}.")

    def items(self) -> Iterator[Item]:
        """Iterate over the prompts with their outcomes, in order."""
        with ExitStack() as stack:
            files = {number: stack.enter_context(path.open("rb")) for number, path in self.files.items()}
            outcomes = self._outcomes(files)
            while chunk := list(islice(outcomes, _CHUNK)):
                answers = [outcome.answer for outcome, _ in chunk]
                readings = read_answers(self.job.options, answers) or [Reading()] * len(answers)
                for (outcome, code), reading in zip(chunk, readings, strict=True):
                    yield _make_item(outcome, code, reading)

    def _outcomes(self, files: Mapping[int, IO[bytes]]) -> Iterator[tuple[Outcome, str | None]]:
        """Iterate over the outcomes of all prompts, each with the provider's own code for it."""
        for number, part in enumerate(self.job.parts):
            for index in self.job.prompt_indexes(part):
                result = None
                if (place := self._places.get(index)) is not None:
                    files[place[0]].seek(place[1])
                    result = self._parse(files[place[0]].readline())
                yield (
                    self._outcome(index, row_key(self.job.tag(number), index), part, result),
                    result.code if result else None,
                )

    def _outcome(self, index: int, key: str, part: Part, result: Result | None) -> Outcome:
        answer, failure = self._read(result, index) if result else (None, _explain_missing(part, index))
        cost = answer and cost_of(self.job.target, answer, batch=True)
        return Outcome(
            index=index,
            identity=key,
            answer=answer,
            failure=failure,
            attempts=part.attempt,
            cost_usd=cost and cost.usd,
            cost_unknown=cost and cost.unknown,
        )

    def _read(self, result: Result, index: int) -> tuple[Answer | None, CallFailure | None]:
        if result.status == "succeeded":
            try:
                return self._module.read_answer(result.response).by_itself(), None
            except UpstreamError as error:
                message = f"The provider's result cannot be read as an answer: {str(error)[:300]}"
                return None, CallFailure(index=index, kind="api_error", message=message, retryable=True)
        if result.status in _UNANSWERED:
            return None, _unanswered_failure(result.status, index)
        message = (result.error or result.code or "The provider did not say why.")[:_MAX_MESSAGE_CHARS]
        return None, CallFailure(index=index, kind="api_error", message=message, retryable=bool(result.retryable))

    def _parse(self, line: bytes) -> Result | None:
        try:
            return self._module.result(line)
        except ValueError:
            return None


def _make_item(outcome: Outcome, code: str | None, reading: Reading) -> Item:
    warning = shape_warning(outcome.index, reading.problem) if reading.problem else None
    if (problem := outcome.problem) is not None:
        bucket = _BUCKETS.get(problem.kind, "failed")
    else:
        bucket = "invalid_output" if warning else "succeeded"
    structured = reading.value
    return Item(key=outcome.identity, bucket=bucket, outcome=outcome, structured=structured, warning=warning, code=code)


def _unanswered_failure(status: str, index: int) -> CallFailure:
    kind, message = _UNANSWERED[status]
    return CallFailure(index=index, kind=kind, message=message, retryable=True)


def _explain_missing(part: Part, index: int) -> CallFailure:
    """Return the reason why there is no result for this prompt."""
    if part.problem is not None:
        return part.problem.model_copy(update={"index": index})
    if part.batch_state in _UNANSWERED:
        return _unanswered_failure(part.batch_state, index)
    message = "The provider reports the batch as done, and returned no result for this prompt."
    # The prompt may have been answered, and billed.
    return CallFailure(index=index, kind="missing", message=message, retryable=True, outcome_unknown=True)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    at = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield at, line
            at += len(line)


def make_envelope(
    job: Job, items: Sequence[Item], *, oddities: Sequence[str] = (), duration_s: float = 0.0
) -> ResultEnvelope:
    """Return one envelope with the outcomes of all prompts, in order."""
    # In a batch these options have another meaning.
    options = job.options.model_copy(update={"implicit_caching": None, "cache_ttl": None})
    plan = Plan.model_construct(
        target=job.target, options=options, sources=[], contents=[], calls=[], sharing=job.count
    )
    outcomes = [item.outcome for item in items]
    # Each answer was read when its item was made, so that a caller's validators run once.
    readings = None if job.options.response_schema is None else [Reading(item.structured) for item in items]
    envelope = extract_envelope(plan, outcomes, duration_s=duration_s, readings=readings, batch=True)
    warnings = [item.warning for item in items if item.warning]
    cost = total(cost for item in items for _, cost in item.paid)
    diagnostics = {
        **envelope.diagnostics,
        "warnings": [*warnings, *envelope.diagnostics["warnings"], *warm_warnings(job, outcomes), *oddities],
        "deferred": {**_describe_job(job), "items": [_describe_item(item) for item in items]},
    }
    metrics = {
        **envelope.metrics,
        "cost_usd": cost.usd,
        **({} if cost.unknown is None else {"cost_unknown": cost.unknown}),
        "deferred": True,
        "cache_mode": "implicit" if any(part.follows for part in job.parts) else "none",
    }
    # All values come from valid documents: validating them again would take another copy of all answers.
    return envelope.model_construct(**{**dict(envelope), "metrics": metrics, "diagnostics": diagnostics})


def _describe_job(job: Job) -> dict[str, Any]:
    at, ended_at = submitted_at(job), snapshot(job).completed_at
    return {
        "job_id": job_id_of(job),
        "job": job.name,
        "batches": [part.batch_id for part in job.parts if part.batch_id],
        "submitted_at": at,
        "completed_at": ended_at,
        "elapsed_s": None if ended_at is None else round(max(0.0, ended_at - at), 3),
    }


def _describe_item(item: Item) -> dict[str, Any]:
    problem, answer = item.outcome.problem, item.outcome.answer
    return {
        "request_id": item.key,
        "status": item.bucket,
        "error": problem.message if problem else item.warning,
        "provider_status": item.code,
        "finish_reason": answer and answer.finish_reason,
    }


def with_instances(envelope: ResultEnvelope, options: Options) -> ResultEnvelope:
    """Return the envelope with `structured` as instances of the model in the options, if there is one. Blocks.

    An answer that fits the schema that was sent, but not the current model, becomes None and a warning.
    """
    model = options.response_model()
    if model is None or envelope.structured is None:
        return envelope
    readings = read_instances(model, envelope.structured)
    warnings = [
        f"The answer to prompts[{index}] does not fit {model.__name__} as it is now: {reading.problem}"
        for index, reading in enumerate(readings)
        if reading.problem
    ]
    warnings = [*envelope.diagnostics.get("warnings", []), *warnings]
    values = [reading.instance for reading in readings]
    diagnostics = {**envelope.diagnostics, "warnings": warnings}
    return envelope.model_copy(update={"structured": values, "diagnostics": diagnostics})
