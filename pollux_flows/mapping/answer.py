"""Answer: answer the rows of a chunk of a table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, Field

from pollux_flows.answer_rows import AnswerRow, describe_misfit
from pollux_flows.config import Config
from pollux_flows.document import Record
from pollux_flows.errors import BudgetError
from pollux_flows.mapping.questions import Question, Questions, plan_questions, read_questions
from pollux_flows.mapping.spec import MapSpec
from pollux_flows.pipeline.execute import Execution, QueuePlace, make_unasked_outcome, open_execution
from pollux_flows.pipeline.plan import Plan, PlannedCall
from pollux_flows.pipeline.structured import read_answers
from pollux_flows.pipeline.terms import Terms
from pollux_flows.providers.session import Session
from pollux_flows.result import CallFailure, Outcome
from pollux_flows.state.slots import RunScope
from pollux_flows.tables.table import Chunk, read_chunk
from pollux_flows.tables.template import RowError

UNUSABLE_ROW: Final = "unusable_row"
"""The status of a row that cannot be asked: a cell is empty, or a source cannot be read."""

NOT_ASKED: Final = "not_asked"
"""The status of a row that was not asked because many calls before it had failed."""

Origin = Literal["asked", "reused", "not_asked", "unusable"]
"""The origin of a row's answer: asked by this run, reused, not asked, or unusable, as the row cannot be asked."""

OnOutcome = Callable[[Outcome], None]


class MappedAnswer(Record):
    """The answer of a question, or the reason why there is none."""

    identity: str | None = Field(description="The identity of its call; None for a row that cannot be asked.")
    row: AnswerRow
    origin: Origin = "asked"
    paid_here: bool = Field(default=False, description="True if the run at hand has paid for it, in any attempt.")
    paid_now: bool = Field(default=False, description="True if it was paid for just now, not in an earlier attempt.")
    paid_before_usd: float = Field(default=0.0, description="The cost of earlier answers to its call in this run.")
    cost_unknown: str | None = None
    unknown_attempts: int = Field(default=0, description="Requests just now that may have been billed, unseen.")
    failure: CallFailure | None = None


class ChunkAnswers(Record):
    """The answers of a chunk, and for each of its rows the number of its answer."""

    answers: list[MappedAnswer]
    places: list[int]

    @property
    def lacks_all_answers(self) -> bool:
        """True if calls were made and none of them was answered."""
        called = [each for each in self.answers if each.identity is not None]
        return bool(called) and all(each.row.answer is None for each in called)

    @property
    def calls(self) -> int:
        """The number of calls for its rows, of which equal ones share a call."""
        return sum(each.identity is not None for each in self.answers)

    @property
    def first_failure(self) -> CallFailure | None:
        """The failure of the first call that failed."""
        return next((each.failure for each in self.answers if each.failure and each.identity is not None), None)


async def answer_chunk(
    chunk: Chunk,
    spec: MapSpec,
    config: Config,
    terms: Terms,
    scope: RunScope,
    *,
    session: Session | None = None,
    on_outcome: OnOutcome | None = None,
    turn: QueuePlace | None = None,
) -> ChunkAnswers:
    """Read the rows of a chunk, make the calls without a saved answer, and return an answer for each row.

    `turn` is closed once all calls are queued.
    """
    async with _open_chunk(chunk, spec, config, terms, scope, session=session) as (questions, execution):
        calls = execution.plan.calls
        try:
            outcomes = await execution.answer_calls(calls, on_outcome, turn)
        except BudgetError as error:
            if chunk.first_row == 0:  # nothing is paid for yet, so the run fails
                raise
            outcomes = [make_unasked_outcome(call, error) for call in calls]
    outcomes = [_attribute(outcome, is_own=scope.is_repeated) for outcome in outcomes]
    return await asyncio.to_thread(_collect_answers, questions, outcomes, spec, chunk.first_row, config.timeout_s)


@dataclass(frozen=True)
class LookedUpChunk:
    """The questions of a chunk, and their saved answers."""

    questions: Questions
    plan: Plan
    found: dict[int, Outcome]
    first_row: int

    @property
    def missing(self) -> list[tuple[PlannedCall, Question]]:
        """The calls without a saved answer, each with its question."""
        pairs = zip(self.plan.calls, self.questions.distinct, strict=True)
        return [(call, question) for call, question in pairs if call.index not in self.found]

    def collect(
        self, spec: MapSpec, job: Mapping[str, Outcome | None], *, is_repeated: bool, limit_s: float
    ) -> ChunkAnswers:
        """Return an answer for each row: the saved one, otherwise that of `job`.

        `job` has the outcomes of the calls that were asked now, by identity; None for a call whose answer is saved.
        """
        outcomes: list[Outcome] = []
        for call in self.plan.calls:
            if (saved := self.found.get(call.index)) is not None:
                outcomes.append(_attribute(saved, is_own=is_repeated or call.identity in job))
            else:
                outcomes.append((job.get(call.identity) or _missing_outcome(call)).at(call.index))
        return _collect_answers(self.questions, outcomes, spec, self.first_row, limit_s)


async def look_up_chunk(chunk: Chunk, spec: MapSpec, config: Config, terms: Terms, scope: RunScope) -> LookedUpChunk:
    """Read the rows of a chunk and their saved answers. No call is made."""
    async with _open_chunk(chunk, spec, config, terms, scope) as (questions, execution):
        found = await execution.answers.load_reusable(execution.plan.calls)
        return LookedUpChunk(questions, execution.plan, found, chunk.first_row)


@asynccontextmanager
async def _open_chunk(
    chunk: Chunk, spec: MapSpec, config: Config, terms: Terms, scope: RunScope, *, session: Session | None = None
) -> AsyncIterator[tuple[Questions, Execution]]:
    """Read the rows of a chunk and plan its calls. Files that rows name are opened under the table's restrictions."""
    rows = await asyncio.to_thread(read_chunk, chunk, spec.columns)  # outside the restrictions: the caller names it
    with spec.restrict():
        questions = await asyncio.to_thread(read_questions, rows, spec)
        plan = await plan_questions(questions, spec, first_row=chunk.first_row, limit_s=config.timeout_s)
        async with open_execution(plan, config, terms, scope, session=session) as execution:
            yield questions, execution


def _attribute(outcome: Outcome, *, is_own: bool) -> Outcome:
    """Return the outcome as another run's, unless an earlier attempt of the current run may have asked for it.

    The flow that this run is part of may map several tables, which share their answers.
    """
    if is_own:
        return outcome
    reused = outcome.reused and "always"
    return BaseModel.model_copy(outcome, update={"reused": reused, "paid_before_usd": 0.0})


def _missing_outcome(call: PlannedCall) -> Outcome:
    message, hint = "The batch has no answer to this row.", "Run again: only rows without an answer are asked."
    failure = CallFailure(index=call.index, kind="missing", message=message, hint=hint, retryable=True)
    return Outcome(index=call.index, identity=call.identity, failure=failure, attempts=1)


def _collect_answers(
    questions: Questions, outcomes: Sequence[Outcome], spec: MapSpec, first: int, limit_s: float
) -> ChunkAnswers:
    readings = read_answers(spec.options, [outcome.answer for outcome in outcomes], limit_s=limit_s)
    answers: list[MappedAnswer] = []
    for index, (question, outcome) in enumerate(zip(questions.distinct, outcomes, strict=True)):
        reading = readings[index] if readings else None
        misfit = describe_misfit(reading.problem) if reading and reading.problem else None
        number, value = first + question.row + 1, reading and reading.typed
        answers.append(
            MappedAnswer.model_construct(
                identity=outcome.identity,
                row=AnswerRow.of(number, None, outcome, structured=value, misfit=misfit),
                origin="reused" if outcome.reused == "always" else "asked" if outcome.attempts else "not_asked",
                paid_here=outcome.answer is not None and outcome.reused != "always",
                paid_now=outcome.answer is not None and outcome.reused is None,
                paid_before_usd=outcome.paid_before_usd if outcome.reused != "always" else 0.0,
                cost_unknown=outcome.cost_unknown,
                unknown_attempts=0 if outcome.reused else outcome.unknown_attempts,
                failure=outcome.problem,
            )
        )
    places: list[int] = []
    refused: dict[tuple[str, str | None], int] = {}
    for index, place in enumerate(questions.places):
        if isinstance(place, int):
            places.append(place)
            continue
        number = refused.setdefault((place.message, place.hint), len(answers))
        if number == len(answers):
            answers.append(_refusal_answer(first + index, place))
        places.append(number)
    return ChunkAnswers.model_construct(answers=answers, places=places)


def skip_chunk(chunk: Chunk, failure: CallFailure) -> ChunkAnswers:
    """Return the answers of a chunk that is not asked because many calls before it failed."""
    is_budget = failure.kind == "budget"
    message = failure.message if is_budget else f"Not asked: the calls before it failed. {failure.message}"
    row = AnswerRow(
        number=chunk.first_row + 1,
        prompt=None,
        status=failure.kind if is_budget else NOT_ASKED,
        error=message,
        hint=failure.hint,
    )
    answer = MappedAnswer(identity=None, row=row, origin="not_asked", failure=failure)
    return ChunkAnswers(answers=[answer], places=[0] * chunk.rows)


def _refusal_answer(index: int, error: RowError) -> MappedAnswer:
    row = AnswerRow(number=index + 1, prompt=None, status=UNUSABLE_ROW, error=error.message, hint=error.hint)
    failure = CallFailure(index=index, kind="source", message=error.message, hint=error.hint)
    return MappedAnswer(identity=None, row=row, origin="unusable", failure=failure)
