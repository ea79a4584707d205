"""One trial of the kill tests: the processes that work on a job, and the checks of its result."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow_async
from prefect.states import Pending
from pydantic import SecretStr

from pollux_flows import ResultEnvelope, Source
from pollux_flows.blocks import PolluxProvider
from pollux_flows.config import ProviderName
from pollux_flows.deferred.job import Job
from pollux_flows.flows import acollect, asubmit
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.pipeline.cleanup import delete, store_of
from pollux_flows.providers.session import open_session
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.identity import digest
from pollux_flows.state.ledger import Ledger
from pollux_flows.state.process import is_dead
from tests.loopback import MODELS
from tests.mortal import ROWS_A_BATCH, Death, Mortal, start_process

BATCH_S: Final = 0.3
_HUNG_S: Final = 60.0
_DONE_S: Final = 120.0

Phase = Literal["submit", "collect"]
_JOBS, _DEFERRED = "pollux_flows.jobs", "pollux_flows.deferred"
_SESSION = "pollux_flows.providers.session:Session"
BOTH = (
    f"{_JOBS}.lease:_acquire",
    f"{_JOBS}.lease:ServerLease.release",
    f"{_JOBS}.store:_BlockJobLock.save",
    f"{_JOBS}.events:emit_job_event",
)
STEPS: dict[Phase, tuple[str, ...]] = {
    "submit": (
        f"{_JOBS}.store:BlockJobStore.save_request",
        f"{_JOBS}.store:BlockJobStore.create",
        f"{_SESSION}.upload",
        f"{_SESSION}.submit_batch",
        f"{_JOBS}.pages:publish_submission",
        *BOTH,
    ),
    "collect": (
        f"{_JOBS}.collector:poll",
        f"{_SESSION}.download_batch",
        "pollux_flows.providers.lines:Lines.write",
        f"{_JOBS}.store:ResultStorage.put",
        f"{_JOBS}.collector:write_job_output",
        "pollux_flows.output:NewFile.complete",
        f"{_JOBS}.pages:publish_job",
        f"{_JOBS}.collector:release_files",
        f"{_SESSION}.delete_file",
        f"{_DEFERRED}.job:Job.with_child",
        f"{_JOBS}.collector:create_child",
        f"{_JOBS}.collector:merge_answers",
        f"{_JOBS}.collector:emit_job_event",
        f"{_JOBS}.collector:resume_runs",
        *BOTH,
    ),
}


@dataclass(frozen=True)
class Trial:
    """The provider of a job, and the process that is killed at a step of a phase."""

    seed: int
    kind: ProviderName
    phase: Phase
    death: Death

    def __str__(self) -> str:
        return f"{self.seed}: {self.kind}, {self.phase} dies {self.death}"


async def run_submit(run_id: UUID, provider: str, parameters: dict[str, Any]) -> None:
    """Run a flow run of `submit` as a worker does."""
    async with get_client() as client:
        run = await client.read_flow_run(run_id)
    block = await PolluxProvider.aload(provider)
    await run_flow_async(asubmit, flow_run=run, parameters={**parameters, "provider": block})


async def run_collect(name: str) -> None:
    report = await acollect([name])
    assert [row.problem for row in report.rows if row.problem] == []


class Lane:
    """A simulator for trials that run one after the other."""

    def __init__(self, number: int, simulator: Simulator, origin: str, folder: Path) -> None:
        self.simulator, self._origin, self.folder, self._number = simulator, origin, folder, number
        simulator.batch_s = BATCH_S
        self._providers: dict[ProviderName, PolluxProvider] = {}

    async def provider(self, kind: ProviderName) -> PolluxProvider:
        if kind in self._providers:
            return self._providers[kind]
        self._providers[kind] = block = PolluxProvider(
            provider=kind,
            model=MODELS[kind],
            api_key=SecretStr("sk-killed-jobs"),
            base_url=self.simulator.base_url(kind, origin=self._origin),
            keep_files_s=0.0,
        )
        await block.asave(f"killed-jobs-{self._number}-{kind}", overwrite=True)
        return block

    async def run(self, trial: Trial) -> bool:
        """Run and check a trial. Return whether a process was killed."""
        self.simulator.reset()
        life = await Life.create(self, trial, self.folder / str(trial.seed))
        try:
            await life.run()
            await life.check()
        except Exception as error:
            raise AssertionError(f"{trial}\n{life.describe()}") from error
        finally:
            await life.clean_up()
        return life.died


class Life:
    """The processes and the state of one trial."""

    def __init__(self, lane: Lane, trial: Trial, folder: Path, provider: PolluxProvider, run_id: UUID) -> None:
        self._simulator, self._trial, self._run_id = lane.simulator, trial, run_id
        self._home, self._said, self._provider = folder / "home", folder / "said", provider
        self._said.mkdir(parents=True)
        self._chance = random.Random(trial.seed)  # noqa: S311 (no secret)
        self._name = f"deferred-{digest('deferred', str(run_id))[:12]}"
        self.died = self.swept = False
        self._history = ""
        self._processes = 0
        step = trial.death.function
        chance = self._chance
        self._prompts = [f"Question {n} of {trial.seed}?" for n in range(chance.randint(1, 7))]
        self._split = chance.random() < 0.3
        self._output = folder / "answers.jsonl" if "write" in step or chance.random() < 0.5 else None
        self._resubmit = (
            "child" in step or step.endswith((":merge_answers", "_complete_parent")) or chance.random() < 0.3
        )
        if self._resubmit:
            self._simulator.batch(end="expired", answered=0.5)
        if chance.random() < 0.15:
            self._simulator.fail(Fault(kind="drop_after"), operation="batch.create")
        self._parameters: dict[str, Any] = {
            "prompts": self._prompts,
            "output": None if self._output is None else str(self._output),
            "resubmit": int(self._resubmit),
        }
        if step.endswith((".upload", ".delete_file")) or chance.random() < 0.4:
            file = folder / "report.pdf"
            file.write_bytes(f"%PDF-1.7 {trial.seed}\n".encode() + bytes(200))
            self._parameters["sources"] = [Source.from_file(file)]

    @classmethod
    async def create(cls, lane: Lane, trial: Trial, folder: Path) -> Life:
        provider = await lane.provider(trial.kind)
        async with get_client() as client:
            run = await client.create_flow_run(asubmit, state=Pending())
        return cls(lane, trial, folder, provider, run.id)

    # --- Processes ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self._store = await BlockJobStore.open()
        trial, chance = self._trial, self._chance
        dies = trial.death if trial.phase == "submit" else None
        await self._all(self._submit(dies))
        if dies is not None and chance.random() < 0.7:
            processes = [await self._restart(self._choose_death("submit") if chance.random() < 0.3 else None)]
            if chance.random() < 0.3 and await self._store.find(self._name):
                processes.append(self._collect(None))
            await self._all(*processes)
        death = trial.death if trial.phase == "collect" else None
        deadline = time.monotonic() + _DONE_S
        while (left := await self._find_unfinished()) is not None:
            assert time.monotonic() < deadline, f"not done: {left!r}"
            await asyncio.sleep(BATCH_S)
            collectors = [self._collect(death or (self._choose_death("collect") if chance.random() < 0.1 else None))]
            if chance.random() < 0.3:
                collectors.append(self._collect(None))
            await self._all(*collectors)
            if self.died and chance.random() < 0.8:
                death = None

    async def run_concurrently(self) -> None:
        """Run two collectors and a rerun at once, until the job is retired."""
        self._store = await BlockJobStore.open()
        await self._all(self._submit(None))
        deadline = time.monotonic() + _DONE_S
        while (left := await self._find_unfinished()) is not None:
            assert time.monotonic() < deadline, f"not done: {left!r}"
            await asyncio.sleep(BATCH_S)
            await self._all(self._collect(None), await self._restart(None), self._collect(None))

    async def _load_jobs(self) -> list[Job]:
        """Return the job and its child, if it has one."""
        found = [await self._store.find(name) for name in (self._name, f"{self._name}-r1")]
        return [job for job in found if job is not None]

    async def _find_unfinished(self) -> Job | None:
        return next((job for job in await self._load_jobs() if job.retired_at is None), None)

    def _choose_death(self, phase: Phase) -> Death:
        chance = self._chance
        return Death(chance.choice(STEPS[phase]), chance.choice(("before", "after")), chance.choice((1, 1, 2)))

    def _submit(self, death: Death | None) -> Mortal:
        return self._start(
            "submit", death, run_submit, self._run_id, self._provider._block_document_name, self._parameters
        )

    async def _restart(self, death: Death | None) -> Mortal:
        """Start the flow run again, as a worker does."""
        async with get_client() as client:
            await client.set_flow_run_state(self._run_id, Pending(), force=True)
        return self._submit(death)

    def _collect(self, death: Death | None) -> Mortal:
        return self._start("collect", death, run_collect, self._name)

    def _start(self, what: str, death: Death | None, *work: Any) -> Mortal:
        self._history += f"{what} {'lives' if death is None else f'dies {death}'}; "
        self._processes += 1
        said = self._said / f"{self._processes}-{what}"
        return start_process(*work, death=death, home=self._home, log=said, split=self._split)

    async def _all(self, *mortals: Mortal) -> None:
        ends = await asyncio.gather(*(mortal.runs_to_completion(_HUNG_S) for mortal in mortals))
        self.died |= not all(ends)

    # --- Checks -------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        family = await self._load_jobs()
        if not family:
            assert self._trial.phase == "submit"
            assert self._simulator.batches == [], "no job has them"
            return
        for each in family:
            assert (each.state, each.retired_at is None, each.child) == ("collected", False, None)
        self._check_batches(family)
        envelope = await self._store.storage.get(f"{self._name}/envelope")
        assert isinstance(envelope, ResultEnvelope)
        answers = [f"Simulated answer to: {prompt}" for prompt in self._prompts]
        assert (envelope.status, envelope.answers) == ("ok", answers)
        if self._output is not None:
            lines = [json.loads(line) for line in self._output.read_text().splitlines()]
            assert [(line["number"], line["answer"]) for line in lines] == list(enumerate(answers, start=1))
        await self._check_files()
        for each in family:
            await self._check_events(each)
        await self._check_leases()

    def _check_batches(self, family: list[Job]) -> None:
        answered: Counter[str] = Counter()
        for batch in self._simulator.batches:
            for place, row in enumerate(batch.requests()):
                asked = [prompt for prompt in self._prompts if prompt in json.dumps(row)]
                assert len(asked) == 1
                answered[asked[0]] += place < batch.answered
        assert answered == Counter(self._prompts)
        batches = [part.batch_id for job in family for part in job.parts]
        assert sorted(map(str, batches)) == sorted(batch.id for batch in self._simulator.batches)
        first = -(-len(self._prompts) // ROWS_A_BATCH) if self._split else 1
        assert len(family[0].parts) == first
        assert len(family) == 1 + self._resubmit

    async def _check_files(self) -> None:
        """Check that all files are deleted, if need be after a sweep: a killed process may have begun a deletion."""
        if self.died and self._find_files_left():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("POLLUX_HOME", str(self._home))
                config = await self._provider.config()
                ledger = Ledger(store_of(config), lambda: time.time() + 3600)
                async with open_session(config) as session:
                    await delete(session, ledger, await ledger.list_due())
            self.swept = True
        assert self._find_files_left() == []

    def _find_files_left(self) -> list[str]:
        return [file.filename for file in self._simulator.files if file.is_there and "pollux-" in file.filename]

    async def _check_events(self, job: Job) -> None:
        resource = {"resource": {"id": [f"pollux.deferred-job.{job.name}"]}, "order": "ASC"}
        deadline = time.monotonic() + 20
        async with get_client() as client:
            while True:
                answer = await client.request("POST", "/events/filter", json={"filter": resource, "limit": 50})
                emitted = Counter(event["event"].rpartition(".")[2] for event in answer.json()["events"])
                if emitted["collected"] + emitted["failed"] or time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.2)
        happened = "collected" if job.manifest and job.manifest.succeeded else "failed"
        assert emitted == Counter({happened: 1, "submitted": 1})

    async def _check_leases(self) -> None:
        async with get_client() as client:
            leases = {each.name: each.value for each in await client.read_variables() if self._name in each.name}
        active = [name for name, value in leases.items() if isinstance(value, dict) and not is_dead(value["process"])]
        assert active == []

    def describe(self) -> str:
        said = "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in sorted(self._said.iterdir()))
        batches = [(batch.id, batch.rows, batch.answered) for batch in self._simulator.batches]
        files = [(file.filename, file.purpose, file.state) for file in self._simulator.files]
        return f"{self._history}\n{self._parameters}, split: {self._split}\n{batches}\n{files}\n{said}"

    async def clean_up(self) -> None:
        async with get_client() as client:
            for document in await client.read_block_documents_by_type("pollux-deferred-job"):
                if document.name and document.name.startswith(self._name):
                    await client.delete_block_document(document.id)
