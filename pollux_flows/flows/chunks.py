"""Chunks: the chunks of a table as task runs, in the process of the flow or on the cluster of its task runner.

In the process of the flow, all chunks share one connection and its limits, and a chunk starts once all calls of the
chunk before it are queued. On a cluster, as many chunks run at once as it has workers, and each has its share of the
limits. Either way answers are passed on in the order of the table, and only a few chunks wait for their turn, so that
memory does not grow with the table.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, cast

from prefect import task
from prefect.context import FlowRunContext
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner

from pollux_flows.artifacts import Progress
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import Config
from pollux_flows.daemon_thread import start_daemon
from pollux_flows.errors import ConfigurationError, raise_if_error
from pollux_flows.mapping.answer import ChunkAnswers, answer_chunk, skip_chunk
from pollux_flows.mapping.spec import MapSpec
from pollux_flows.pipeline.execute import QueuePlace
from pollux_flows.pipeline.terms import Terms
from pollux_flows.providers.session import Session, open_session
from pollux_flows.result import CallFailure
from pollux_flows.run_store import store_id
from pollux_flows.state.slots import RunScope
from pollux_flows.state.store import STATE_URL, open_store
from pollux_flows.tables.table import Chunk
from pollux_flows.tasks import UNSTORED

_IN_PROCESS: Final = 3
"""How many chunks are in flight in the process of the flow: one makes calls, one is read, one is written."""
_ON_CLUSTER: Final = 4
"""How many chunks are in flight on a cluster that does not report how many workers it has."""
_MAX_FAILED_CALLS: Final = 10
"""After this many failed calls without any answer, the run makes no others. Fewer may fail because of their rows."""


@dataclass(frozen=True)
class MapRun:
    """The settings that all chunks of a run share. They hold no key, as they are sent to other machines."""

    spec: MapSpec
    terms: Terms
    scope: RunScope
    store: str
    """The name of the state that the answers are saved in."""
    provider: str | None
    """The name of the saved PolluxProvider."""
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """The part of the provider's limits that a chunk on a cluster may use."""


@dataclass(frozen=True)
class _ChunkContext:
    """The connection and progress bar that the chunks in the process of the flow share."""

    session: Session
    config: Config
    progress: Progress
    loop: asyncio.AbstractEventLoop


_shared: ContextVar[_ChunkContext | None] = ContextVar("pollux_flows_shared_chunks", default=None)
_turn: ContextVar[QueuePlace | None] = ContextVar("pollux_flows_chunk_turn", default=None)


@task(name="map-chunk", task_run_name="{title}", **UNSTORED)
async def map_chunk(chunk: Chunk, run: MapRun, title: str) -> ChunkAnswers:  # noqa: ARG001 (the title is its name)
    """Answer the rows of a chunk."""
    return await _map_chunk(chunk, run)


async def _map_chunk(chunk: Chunk, run: MapRun) -> ChunkAnswers:
    """Answer the rows of a chunk.

    Separate from the task, which is pickled by value, with everything that it refers to, when it is sent to another
    machine. This function is pickled by name.
    """
    shared = _shared.get()
    if shared is None or shared.loop is not asyncio.get_running_loop():
        answers = await answer_chunk(chunk, run.spec, await _config_elsewhere(run), run.terms, run.scope)
    else:
        answers = await answer_chunk(
            chunk,
            run.spec,
            shared.config,
            run.terms,
            run.scope,
            session=shared.session,
            on_outcome=shared.progress.add,
            turn=_turn.get(),
        )
    # The failed state is for people who look at the run; the flow reads the answers from it.
    return _mark_failed(answers, chunk) if answers.lacks_all_answers else answers


async def _config_elsewhere(run: MapRun) -> Config:
    """Return the configuration for a chunk on a worker, after a check that it shares the state of the flow run."""
    store = open_store()
    if await store_id(store) != run.store:
        raise ConfigurationError(
            f"This worker saves answers in a different state ({store.where}) from the flow run.",
            hint=f"Set {STATE_URL}=redis://… in the environment of each machine, so that they share one state.",
        )
    if run.provider is None:
        config = Config(**run.spec.target.model_dump())
    else:
        config = await (await PolluxProvider.named(run.provider)).config()
    return config.model_copy(update=run.limits)


def _mark_failed(answers: ChunkAnswers, chunk: Chunk) -> ChunkAnswers:
    """Return the answers as the data of a failed state."""
    first = answers.first_failure
    message = f"None of {chunk.rows:,} rows has an answer. {first.message if first else ''}"
    # A task that returns a state ends in that state.
    return cast(ChunkAnswers, Failed(data=_Unquoted.model_construct(**dict(answers)), message=message))


class _Unquoted(ChunkAnswers):
    """Answers with a short repr: Prefect writes the data of a failed state to the log."""

    def __repr__(self) -> str:
        return f"{len(self.places)} rows"


class ChunkRunner:
    """Runs the chunks of a table on the task runner of the flow run."""

    def __init__(self, config: Config, run: MapRun, progress: Progress) -> None:
        context = FlowRunContext.get()
        self._runner = None if context is None else context.task_runner
        self._is_local = self._runner is None or isinstance(self._runner, ThreadPoolTaskRunner)
        self._config, self._progress = config, progress
        self._at_once = _IN_PROCESS if self._is_local else min(_count_workers(self._runner), config.request_concurrency)
        # On a cluster, further chunks run beside a slow one, and while one is written.
        self._most = self._at_once if self._is_local else 2 * self._at_once
        self._refused: CallFailure | None = None
        self._failed_calls = 0  # since the last chunk with an answer
        self._run = run if self._is_local else replace(run, limits=_share_limits(config, self._at_once))

    async def answer(self, chunks: Sequence[Chunk]) -> AsyncGenerator[tuple[Chunk, ChunkAnswers], None]:
        """Yield the chunks with their answers, in order. After many failed calls in a row, no others are made."""
        under_way: deque[tuple[Chunk, asyncio.Task[ChunkAnswers]]] = deque()
        left = deque(chunks)
        async with self._share() as turns:
            try:
                while left or under_way:
                    while left and len(under_way) < self._most:
                        chunk = left.popleft()
                        under_way.append((chunk, asyncio.create_task(self._answer(chunk, turns))))
                    chunk, answering = under_way.popleft()
                    yield chunk, await answering
            except asyncio.CancelledError:
                for _, answering in under_way:
                    answering.cancel()
                raise
            finally:  # calls in flight are paid for: their answers are saved
                await asyncio.gather(*(answering for _, answering in under_way), return_exceptions=True)

    @asynccontextmanager
    async def _share(self) -> AsyncIterator[asyncio.Semaphore]:
        """Open the connection that the chunks of this process share, and yield the semaphore that they queue at."""
        turns = asyncio.Semaphore(1 if self._is_local else self._at_once)
        if not self._is_local:
            yield turns
            return
        async with open_session(self._config) as session:
            shared = _ChunkContext(session, self._config, self._progress, asyncio.get_running_loop())
            token = _shared.set(shared)
            try:
                yield turns
            finally:
                _shared.reset(token)

    async def _answer(self, chunk: Chunk, turns: asyncio.Semaphore) -> ChunkAnswers:
        await turns.acquire()
        with closing(QueuePlace(turns)) as turn:
            if self._refused is not None:
                self._progress.advance(chunk.rows)
                return skip_chunk(chunk, self._refused)
            title = f"rows {chunk.first_row + 1:,} to {chunk.first_row + chunk.rows:,}"
            answers = await (self._ask_here(chunk, title, turn) if self._is_local else self._ask_cluster(chunk, title))
        self._failed_calls = self._failed_calls + answers.calls if answers.lacks_all_answers else 0
        if self._failed_calls >= _MAX_FAILED_CALLS:
            self._refused = self._refused or answers.first_failure
        return answers

    async def _ask_here(self, chunk: Chunk, title: str, turn: QueuePlace) -> ChunkAnswers:
        token = _turn.set(turn)
        try:
            state = await cast(Coroutine[Any, Any, Any], map_chunk(chunk, self._run, title, return_state=True))
        finally:
            _turn.reset(token)
        answers = cast(ChunkAnswers, raise_if_error(await state.aresult(raise_on_failure=False)))
        self._progress.advance(chunk.rows - answers.calls)
        return answers

    async def _ask_cluster(self, chunk: Chunk, title: str) -> ChunkAnswers:
        future = cast(Any, map_chunk).submit(chunk, self._run, title)
        # On a thread of its own: a cluster may have more workers than the event loop's executor has threads.
        found = await asyncio.wrap_future(start_daemon(partial(future.result, raise_on_failure=False), title))
        self._progress.advance(chunk.rows)
        return cast(ChunkAnswers, raise_if_error(found))


def _share_limits(config: Config, shares: int) -> dict[str, int | None]:
    """Return the limits of one chunk, when `shares` chunks run at once."""
    names = ("request_concurrency", "requests_per_minute", "tokens_per_minute")
    limits = {name: getattr(config, name) for name in names}
    return {name: limit and max(1, limit // shares) for name, limit in limits.items()}


def _count_workers(runner: Any) -> int:
    """Return how many tasks the cluster of a task runner runs at once, or a default if it does not report that."""
    count_threads = getattr(getattr(runner, "client", None), "nthreads", None)  # of Dask
    if count_threads is not None:
        threads: int = sum(count_threads().values())
        return max(1, threads)
    if type(runner).__module__.startswith("prefect_ray"):
        import ray

        processors: float = ray.cluster_resources().get("CPU", _ON_CLUSTER)
        return max(1, int(processors))
    return _ON_CLUSTER
