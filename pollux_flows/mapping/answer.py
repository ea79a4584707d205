"""Answer: a chunk of a table, from its place in the file to an answer a row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from pydantic import Field

from pollux_flows.access import apply_restrictions, current_restrictions
from pollux_flows.answer_rows import AnswerRow
from pollux_flows.config import Config
from pollux_flows.document import CLEAN_INPUT, Record
from pollux_flows.mapping.questions import Questions, plan_questions, read_questions
from pollux_flows.mapping.spec import MapSpec
from pollux_flows.pipeline.execute import QueuePlace, open_execution
from pollux_flows.pipeline.structured import read_answers
from pollux_flows.pipeline.terms import Terms
from pollux_flows.providers.session import Session
from pollux_flows.result import Outcome
from pollux_flows.state.slots import RunScope
from pollux_flows.tables.table import Chunk, read_chunk
from pollux_flows.tables.template import RowError

UNUSABLE_ROW: Final = "unusable_row"
"""The status of a row that cannot be asked: a cell is empty, or a source cannot be read."""

OnOutcome = Callable[[Outcome], None]


class MappedAnswer(Record):
    """The answer of a question, or the reason why there is none."""

    identity: str | None = Field(description="The identity of its call; None for a row that cannot be asked.")
    row: AnswerRow
    is_asked_here: bool = Field(default=True, description="False if another run had asked it.")
    paid_here: bool = Field(default=False, description="True if the run at hand has paid for it, in any attempt.")
    cost_unknown: str | None = None


class ChunkAnswers(Record):
    """The answers of a chunk, and for each of its rows the number of its answer."""

    answers: list[MappedAnswer]
    places: list[int]

    @property
    def has_answers(self) -> bool:
        """True unless calls were made and none of them was answered."""
        asked = [each for each in self.answers if each.identity is not None]
        return not asked or any(each.row.answer is not None for each in asked)

    @property
    def first_failure(self) -> AnswerRow | None:
        """The first row without a usable answer."""
        return next((each.row for each in self.answers if each.row.error is not None), None)


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
    """Read the rows of a chunk, ask what is not answered yet, and return an answer a row.

    `turn` is closed once all calls stand in line.
    """
    with apply_restrictions(current_restrictions() or spec.restrict()):
        rows = await asyncio.to_thread(read_chunk, chunk, spec.columns)
        questions = await asyncio.to_thread(read_questions, rows, spec)
        plan = await plan_questions(questions, spec, first_row=chunk.first, limit_s=config.timeout_s)
        async with open_execution(plan, config, terms, scope, session=session) as execution:
            outcomes = await execution.answer_calls(plan.calls, on_outcome, turn)
    return await asyncio.to_thread(_collect, questions, outcomes, spec, chunk.first, config.timeout_s)


def _collect(
    questions: Questions, outcomes: Sequence[Outcome], spec: MapSpec, first: int, limit_s: float
) -> ChunkAnswers:
    readings = read_answers(spec.options, [outcome.answer for outcome in outcomes], limit_s=limit_s)
    answers: list[MappedAnswer] = []
    for index, (question, outcome) in enumerate(zip(questions.asked, outcomes, strict=True)):
        reading = readings[index] if readings else None
        misfit = f"The answer does not fit response_schema: {reading.problem}" if reading and reading.problem else None
        answers.append(
            MappedAnswer.model_validate(
                {
                    "identity": outcome.identity,
                    "row": AnswerRow.of(
                        first + question.row + 1,
                        None,
                        outcome,
                        structured=reading and reading.value,
                        misfit=misfit,
                    ),
                    "is_asked_here": outcome.reused != "always",
                    "paid_here": outcome.answer is not None and outcome.reused != "always",
                    "cost_unknown": outcome.cost_unknown,
                },
                context=CLEAN_INPUT,
            )
        )
    places: list[int] = []
    refused: dict[tuple[str, str | None], int] = {}
    for index, place in enumerate(questions.places):
        if isinstance(place, RowError):
            number = refused.setdefault((place.message, place.hint), len(answers))
            if number == len(answers):
                answers.append(MappedAnswer(identity=None, row=_refused(first + index + 1, place)))
            place = number  # noqa: PLW2901
        places.append(place)
    return ChunkAnswers(answers=answers, places=places)


def _refused(number: int, error: RowError) -> AnswerRow:
    return AnswerRow(number=number, prompt=None, status=UNUSABLE_ROW, error=error.message, hint=error.hint)
