"""Results: from what a provider gave back, in whatever order, to one outcome a prompt, in theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field

from pollux_flows.deferred.job import Job, Part, index_in, key_of
from pollux_flows.deferred.manifest import Bucket
from pollux_flows.document import Record
from pollux_flows.errors import InternalError
from pollux_flows.pipeline.structured import Reading, read_answers, shape_warning
from pollux_flows.pricing import Cost, cost_of
from pollux_flows.providers.base import UpstreamError
from pollux_flows.providers.batches import Result
from pollux_flows.providers.registry import find_provider
from pollux_flows.result import Answer, CallFailure, FailureKind, Outcome

_LONGEST_MESSAGE: Final = 1000
# So many answers are read by one thread, and are in memory at once.
_TOGETHER: Final = 200
_BUCKETS: Final[dict[FailureKind, Bucket]] = {"expired": "expired", "cancelled": "cancelled", "missing": "missing"}
_GONE: Final[dict[str, tuple[FailureKind, str]]] = {
    "expired": ("expired", "The provider did not come to this prompt in time."),
    "cancelled": ("cancelled", "The batch was cancelled before this prompt was answered."),
}


class Item(Record):
    """One prompt of a job, and what became of it."""

    key: str
    bucket: Bucket
    outcome: Outcome
    structured: Any = None
    warning: str | None = None
    code: str | None = Field(default=None, description="The provider's own word for it.")
    earlier: list[Outcome] = Field(default_factory=list, description="What was answered, and paid for, before.")

    @property
    def paid(self) -> list[tuple[Answer, Cost]]:
        """All answers that there were, with what each cost."""
        return [
            (outcome.answer, Cost(outcome.cost_usd, outcome.cost_unknown))
            for outcome in (*self.earlier, self.outcome)
            if outcome.answer is not None
        ]


@dataclass
class Results:
    """The raw results of a job on this machine. Only places are held in memory: results are read one by one."""

    job: Job
    files: Mapping[int, Path]
    """By the number of the part."""
    oddities: list[str] = field(default_factory=list)
    """What is wrong with the results as a whole."""

    def __post_init__(self) -> None:
        batches = find_provider(self.job.target.provider).batches
        if batches is None:
            raise InternalError(f"{self.job.target.provider} has no batches.")
        self._module = batches
        self._places: dict[int, tuple[int, int]] = {}
        """Where each prompt's result begins: in which file, and how far into it."""
        doubled = strangers = unreadable = 0
        for number, path in self.files.items():
            its = set(self.job.indexes(self.job.parts[number]))
            for at, line in _lines(path):
                result = self._result(line)
                index = None if result is None else index_in(result.key, self.job.tag(number))
                index = index if index in its else None
                if result is None:
                    unreadable += 1
                elif index is None:
                    strangers += 1
                elif index in self._places:
                    doubled += 1
                else:
                    self._places[index] = (number, at)
        for count, what in (
            (doubled, "came twice; the first of each counts"),
            (strangers, "came that belong to no prompt of this job"),
            (unreadable, "cannot be read"),
        ):
            if count:
                self.oddities.append(f"{count} results {what}.")

    def items(self) -> Iterator[Item]:
        """What became of each prompt, in their order."""
        with _Open(self.files) as opened:
            found = self._outcomes(opened)
            while together := list(islice(found, _TOGETHER)):
                answers = [outcome.answer for outcome, _ in together]
                readings = read_answers(self.job.options, answers) or [Reading()] * len(answers)
                yield from (
                    _item(outcome, code, read) for (outcome, code), read in zip(together, readings, strict=True)
                )

    def _outcomes(self, opened: _Open) -> Iterator[tuple[Outcome, str | None]]:
        """The outcome of each prompt, and the provider's own word for it."""
        for number, part in enumerate(self.job.parts):
            for index in self.job.indexes(part):
                place = self._places.get(index)
                line = None if place is None else opened.line(*place)
                yield self._outcome(index, key_of(self.job.tag(number), index), part, line)

    def _outcome(self, index: int, key: str, part: Part, line: bytes | None) -> tuple[Outcome, str | None]:
        result = None if line is None else self._result(line)
        answer, failure = self._answer(result, index) if result else (None, _without_result(part, index))
        cost = answer and cost_of(self.job.target, answer, batch=True)
        outcome = Outcome(
            index=index,
            identity=key,
            answer=answer,
            failure=failure,
            attempts=part.attempt,
            cost_usd=cost and cost.usd,
            cost_unknown=cost and cost.unknown,
        )
        return outcome, result.code if result else None

    def _answer(self, result: Result, index: int) -> tuple[Answer | None, CallFailure | None]:
        if result.status == "succeeded":
            try:
                return self._module.read_answer(result.response).by_itself(), None
            except UpstreamError as error:
                said = f"The provider's result cannot be read as an answer: {str(error)[:300]}"
                return None, CallFailure(index=index, kind="api_error", message=said, retryable=True)
        if result.status in _GONE:
            kind, message = _GONE[result.status]
            return None, CallFailure(index=index, kind=kind, message=message, retryable=True)
        message = (result.error or result.code or "The provider did not say why.")[:_LONGEST_MESSAGE]
        return None, CallFailure(index=index, kind="api_error", message=message, retryable=bool(result.retryable))

    def _result(self, line: bytes) -> Result | None:
        try:
            return self._module.result(line)
        except ValueError:
            return None


def _item(outcome: Outcome, code: str | None, reading: Reading) -> Item:
    warning = shape_warning(outcome.index, reading.problem) if reading.problem else None
    return Item(
        key=outcome.identity,
        bucket=bucket_of(outcome, warning),
        outcome=outcome,
        structured=reading.value,
        warning=warning,
        code=code,
    )


def bucket_of(outcome: Outcome, warning: str | None) -> Bucket:
    """What it counts as."""
    problem = outcome.problem
    if problem is None:
        return "invalid_output" if warning else "succeeded"
    return _BUCKETS.get(problem.kind, "failed")


def _without_result(part: Part, index: int) -> CallFailure:
    """Why there is no result for that prompt."""
    if part.problem is not None:
        return part.problem.model_copy(update={"index": index})
    if part.batch_state in _GONE:
        kind, message = _GONE[part.batch_state]
        return CallFailure(index=index, kind=kind, message=message, retryable=True)
    message = "The provider says that the batch is done, and gave no result for this prompt."
    # It may have been answered, and billed.
    return CallFailure(index=index, kind="missing", message=message, retryable=True, outcome_unknown=True)


class _Open:
    """Files that are read from here and there."""

    def __init__(self, files: Mapping[int, Path]) -> None:
        self._files = {number: path.open("rb") for number, path in files.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def line(self, number: int, at: int) -> bytes:
        self._files[number].seek(at)
        return self._files[number].readline()


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    at = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield at, line
            at += len(line)
