"""pollux-flows doctor: check everything that a run needs, and print the next step."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Final, Literal
from uuid import UUID, uuid4

import httpx
import prefect
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import DeploymentStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL

from pollux_flows import __version__
from pollux_flows.address import redact_address
from pollux_flows.blocks import PolluxDeferredJob
from pollux_flows.blocks.registration import load_saved_configs, read_documents
from pollux_flows.cli.exit_codes import ExitCode
from pollux_flows.cli.printing import NO_SERVER, is_silence, say
from pollux_flows.cli.schedules import find_stuck, read_scheduled
from pollux_flows.cli.versions import find_conflicts, find_installed, find_server_problem
from pollux_flows.config import Config
from pollux_flows.errors import PolluxError
from pollux_flows.flows import collect
from pollux_flows.jobs.connection import describe_refusal
from pollux_flows.jobs.store import ResultStorage
from pollux_flows.state import leases
from pollux_flows.state.store import open_store
from pollux_flows.state.units import format_size

_SHORT_S: Final = 5.0
_SET_ADDRESS: Final = "prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api"

Mark = Literal["ok", "?", "NO"]
"""Fine, worth a look, or an error that prevents every run."""


def doctor() -> None:
    """Check that runs will work: server, deployments, saved providers, keys, stored state. No provider is called."""
    checkup = _Checkup()
    asyncio.run(checkup.run())
    say(checkup.verdict)
    if checkup.code:
        raise SystemExit(checkup.code)


class _Checkup:
    """The checks, in the order in which a new user sets things up."""

    def __init__(self) -> None:
        self.code = ExitCode.DONE
        self.verdict = ""
        """The next step: the remedy of the first problem or, without a problem, a run to try."""

    def _report(self, what: str, finding: str, mark: Mark = "ok", todo: str = "") -> None:
        """Print a finding; `todo` is the command or step that solves its problem."""
        say(f"{mark:4}{what}: {finding}")
        if mark == "NO":
            self.code = self.code or ExitCode.USAGE
        if todo:
            self.verdict = self.verdict or f"Next: {todo}"

    async def run(self) -> None:
        versions = f"pollux_flows {__version__}, Prefect {prefect.__version__}, Python {platform.python_version()}"
        self._report("Versions", versions)
        for problem in find_conflicts(find_installed()):
            self._report("Versions", problem, "NO", "update Prefect, as said above under Versions.")
        await self._check_state()
        url = PREFECT_API_URL.value()
        if not url:
            finding = "none is set, so that each program starts a temporary one."
            self._report("Server", finding, "?", f"prefect server start, and in another terminal {_SET_ADDRESS}")
            return
        try:
            async with get_client() as client:
                await self._check_server(client)
        except httpx.HTTPStatusError as error:
            self._report_no_server(describe_refusal(error), "correct the connection, as said above under Server.")
        except NO_SERVER as error:
            if not is_silence(error):
                raise
            finding = f"{redact_address(url)} does not answer ({error}). Start it, or correct PREFECT_API_URL."
            self._report_no_server(finding, f"prefect server start, or {_SET_ADDRESS}")

    def _report_no_server(self, finding: str, todo: str) -> None:
        self.code, self.verdict = ExitCode.NO_SERVER, ""
        self._report("Server", finding, "NO", todo)

    async def _check_state(self) -> None:
        """Check that answers can be saved."""
        try:
            store = open_store()
            if (claim := await leases.acquire_lease(store, f"asking/{uuid4().hex}", "doctor", _SHORT_S)) is not None:
                await claim.release()
            size = await store.size()
        except PolluxError as error:
            self._report("State", str(error), "NO", "make the state writable, as said above under State.")
            return
        self._report("State", store.where if size is None else f"{store.where}, {format_size(size)}")

    async def _check_server(self, client: PrefectClient) -> None:
        version = await client.api_version()
        self._report("Server", f"{redact_address(PREFECT_API_URL.value() or '')}, Prefect {version}")
        if outdated := find_server_problem(version):
            self._report("Server", outdated, "?")
        self._report("Results", (await ResultStorage.open()).where)
        collectors = await read_scheduled(client, collect.name)
        self._check_deployments(collectors)
        await self._check_providers()
        stuck = await find_stuck(client, await read_scheduled(client))
        for problem in stuck.values():
            self._report("Schedule", problem, "?")
        await self._check_jobs(client, collectors, stuck)

    def _check_deployments(self, collectors: Sequence[DeploymentResponse]) -> None:
        """Check that a process starts the runs of deployments. Only that of `collect` is checked, for all."""
        if not collectors:
            finding = "none of collect, so no run is started from the UI or on a schedule."
            self._report("Deployments", finding, "?", "pollux-flows serve")
            return
        ready = [each for each in collectors if each.status == DeploymentStatus.READY]
        pool = (ready or collectors)[0].work_pool_name
        if ready:
            self._report("Deployments", f"a worker of the work pool {pool} runs them." if pool else "served.")
        elif pool:
            finding = f"no worker of the work pool {pool} runs them."
            self._report("Deployments", finding, "?", f"prefect worker start --pool {pool}")
        else:
            self._report("Deployments", "no process serves them.", "?", "pollux-flows serve")

    async def _check_providers(self) -> None:
        """Check each saved provider. One usable provider is enough to try a run."""
        usable: dict[str, str] = {}
        todo = ""
        async for name, config in load_saved_configs():
            if isinstance(config, Config):
                how = "simulated" if config.use_mock else "with a key" if config.key() else "without a key"
                usable.setdefault(how, name)
                self._report(f"Provider {name}", f"{config.provider} {config.model}, {how}")
            else:  # it may be usable where its flows run
                todo = todo or f"make PolluxProvider {name!r} usable. {config.hint}"
                self._report(f"Provider {name}", config.message, "?")
        # A local server need not be running: the simulator is tried first.
        best = [usable[how] for how in ("with a key", "simulated", "without a key") if how in usable]
        if best:
            self.verdict = self.verdict or f'Ready. Try it: pollux-flows run "Why is the sky blue?" -p {best[0]}'
        elif todo:
            self.verdict = self.verdict or f"Next: {todo}"
        else:
            finding = "none yet. Save one in the UI under Blocks, or with pollux-flows apply."
            self._report("Providers", finding, "?", f"pollux-flows {'apply' if _has_block_files() else 'init'}")

    async def _check_jobs(
        self, client: PrefectClient, collectors: Sequence[DeploymentResponse], stuck: Container[UUID]
    ) -> None:
        """Check that deferred jobs are collected; `stuck` are the deployments whose scheduled runs do not start."""
        documents = await read_documents(client, PolluxDeferredJob)
        waiting = sum(document.data.get("state") != "collected" for document in documents)
        under_way = f"{waiting:,} under way" if documents else "none yet"
        if any(each.id not in stuck for each in collectors):
            self._report("Deferred jobs", f"{under_way}, collect is on a schedule.")
            return
        problem = "the scheduled runs of collect do not start" if collectors else "collect is not on a schedule"
        if not waiting:
            self._report("Deferred jobs", f"{under_way}, {problem}.")
            return
        finding = f"{under_way}, but {problem}: run pollux-flows serve, or deploy collect on a schedule."
        self._report("Deferred jobs", finding, "?")


def _has_block_files() -> bool:
    return any(Path("blocks").glob("*.yaml"))
