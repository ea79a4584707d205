"""Rows: the work of a table, which is read chunk by chunk, and a sample of whose rows is estimated."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pollux_flows.config import Config
from pollux_flows.estimation.work import MOST_EARLIER, SampledCall, Work, load_earlier, spread
from pollux_flows.mapping.questions import Question, Questions, plan_questions, read_questions
from pollux_flows.mapping.spec import MapSpec
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.terms import Terms
from pollux_flows.result import Outcome
from pollux_flows.tables.table import Chunk, Table, read_chunk
from pollux_flows.tables.template import RowError

ROWS_PER_CHUNK: Final = 1_000
_SAMPLE: Final = 1_000
# The number of rows whose source files are opened.
_SAMPLE_WITH_SOURCES: Final = 200
_DIGEST_BYTES: Final = 16


async def find_rows_work(table: Table, spec: MapSpec, config: Config, terms: Terms) -> Work:
    """Return the rows of a table that would be asked on these terms, as a sample that represents all of them.

    Every row is read. With source columns, only the sources of the sample are opened, so the number of rows that are
    answered already is extrapolated from the sample.
    """
    survey = _Survey(spec, table.rows)
    for chunk in table.chunks:
        new = await asyncio.to_thread(survey.read, chunk)
        with spec.restrict():
            await survey.plan(chunk, new, config, terms)
    # Earlier answers to the same calls, of another run or too old to be reused.
    earlier = await load_earlier(spread([each.call for each in survey.sample], MOST_EARLIER))
    return survey.work(list(earlier.values()))


@dataclass
class _Survey:
    """Counts the rows of a table, and collects a sample of those to ask."""

    spec: MapSpec
    rows: int
    unusable: int = 0
    duplicates: int = 0
    reused: int = 0
    looked_up: int = 0
    missing: int = 0
    sample: list[SampledCall] = field(default_factory=list)
    earlier: list[Outcome] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)
    _shared: Plan | None = None

    def read(self, chunk: Chunk) -> list[Question]:
        """Read a chunk, and return its questions that no earlier row has asked."""
        questions = read_questions(read_chunk(chunk, self.spec.columns), self.spec)
        refused = sum(isinstance(place, RowError) for place in questions.places)
        new = list(self._find_new(questions.distinct))
        self.unusable += refused
        self.duplicates += len(questions.places) - refused - len(new)
        return new

    async def plan(self, chunk: Chunk, new: list[Question], config: Config, terms: Terms) -> None:
        """Plan the calls of these questions, or of some, look up their answers, and add calls to the sample."""
        has_sources = bool(self.spec.source_columns)
        step = max(1, self.rows // (_SAMPLE_WITH_SOURCES if has_sources else _SAMPLE))
        picked = [each for each in new if (chunk.first_row + each.row) % step == 0] if has_sources else new
        if not picked:
            return
        questions = Questions(picked, [*range(len(picked))])
        plan = await plan_questions(questions, self.spec, first_row=chunk.first_row, limit_s=config.timeout_s)
        found = await load_earlier(plan.calls, terms.max_age) if terms.reuse == "always" else {}
        self.looked_up += len(picked)
        self.reused += len(found)
        self.earlier += list(found.values())[: MOST_EARLIER - len(self.earlier)]
        if has_sources:  # each source that cannot be read represents others
            self.unusable += (len(picked) - len(plan.calls)) * len(new) // len(picked)
        missing = [call for call in plan.calls if call.identity not in found]
        calls = [call for number, call in enumerate(missing, start=self.missing) if has_sources or number % step == 0]
        self.missing += len(missing)
        part = plan.model_construct(**{**dict(plan), "calls": calls})
        # Rows without sources share one plan.
        self._shared = self._shared or part
        self.sample += [SampledCall(part if has_sources else self._shared, call) for call in calls]

    def work(self, earlier: Sequence[Outcome]) -> Work:
        """Return the work, with numbers for all rows; `earlier` are earlier answers to rows of the sample."""
        usable = self.rows - self.unusable - self.duplicates
        is_complete = self.looked_up == usable
        share = self.reused / self.looked_up if self.looked_up else 0.0
        reused = self.reused if is_complete else round(share * usable)
        why = [] if is_complete else [f"Answers were looked up, and sources opened, for {self.looked_up:,} rows."]
        return Work(
            sample=self.sample,
            calls=self.rows,
            to_ask=max(0, usable - reused),
            duplicates=self.duplicates,
            reused=reused,
            unusable=self.unusable,
            why=why,
            earlier=earlier or self.earlier,
        )

    def _find_new(self, asked: Iterable[Question]) -> Iterator[Question]:
        for question in asked:
            name = hashlib.blake2b(question.prompt.encode(), digest_size=_DIGEST_BYTES)
            for source in question.sources:
                name.update(source.model_dump_json().encode())
            if (digest := name.digest()) not in self._seen:
                self._seen.add(digest)
                yield question
