"""Tests of deployed runs: the parameters that a starter chooses must not reach files or hosts of the worker."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import uuid4

import pytest
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments import run_deployment
from prefect.flow_engine import run_flow_async
from pydantic import SecretStr

from pollux_flows import Options, Source, flows
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import acollect, aconverse, afan_out, arealtime, asubmit
from pollux_flows.simulator import Simulator
from tests.loopback import MODELS
from tests.prefect.jobs import ANSWERS, PROMPTS, SaveProvider, jobs_home, no_jobs_are_left, save_provider

__all__ = ["jobs_home", "no_jobs_are_left", "save_provider"]

ENVIRON = {"source_type": "file", "uri": "/proc/self/environ"}
SECRET = "hunter2 opens the vault"


class Start(Protocol):
    async def __call__(
        self,
        flow: Flow[..., Any],
        parameters: dict[str, Any],
        *,
        own: dict[str, Any] | None = None,
        scheduled: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> State[Any]: ...


async def execute_run(flow: Flow[..., Any], run: FlowRun) -> State[Any]:
    """Execute a run as a worker does, and return its final state."""
    engine: Any = run_flow_async(flow, flow_run=run, parameters=run.parameters, return_type="state")
    # A task, so that the contexts of the run do not stay open here.
    state: State[Any] = await asyncio.create_task(engine)
    return state


@pytest.fixture
def served_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def gemini(world: tuple[Simulator, str], simulator: Simulator) -> dict[str, Any]:
    """Return a provider that takes files of any kind, as the parameters of a run describe it."""
    address = simulator.base_url("gemini", origin=world[1])
    block = PolluxProvider(
        provider="gemini", model=MODELS["gemini"], api_key=SecretStr("sk-typed-in"), base_url=address
    )
    return {**block.model_dump(mode="json"), "api_key": "sk-typed-in"}


@pytest.fixture
def start(served_folder: Path) -> Start:  # noqa: ARG001 (where it is served from)
    """Return a function that executes a run of a deployment as a worker does, and returns its final state."""

    async def run(
        flow: Flow[..., Any],
        parameters: dict[str, Any],
        *,
        own: dict[str, Any] | None = None,
        scheduled: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> State[Any]:
        schedule = DeploymentScheduleCreate(
            schedule=CronSchedule(cron="0 0 1 1 *"), active=False, parameters=scheduled or {}
        )
        async with get_client() as client:
            deployment = await client.create_deployment(
                await client.create_flow(flow), f"starters-{uuid4().hex}", parameters=own or {}, schedules=[schedule]
            )
            made = await client.create_flow_run_from_deployment(
                deployment, parameters=parameters, job_variables={"env": env} if env else None
            )
        return await execute_run(flow, made)

    return run


def read_failure(state: State[Any]) -> str:
    assert state.is_failed(), state
    return str(state.message)


# --- Files --------------------------------------------------------------------------------------------------

WITH_SOURCES = sorted(
    name
    for name in flows.__all__
    if inspect.iscoroutinefunction(getattr(flows, name).fn)
    and {"sources", "provider"} <= inspect.signature(getattr(flows, name).fn).parameters.keys()
    and name.startswith("a")
)


@pytest.mark.parametrize("name", WITH_SOURCES)
async def test_a_starter_reads_no_environment_of_the_worker(
    name: str, start: Start, gemini: dict[str, Any], simulator: Simulator
) -> None:
    """This holds for every flow that takes sources."""
    accepted = inspect.signature(getattr(flows, name).fn).parameters
    questions: dict[str, Any] = {"prompts": ["What is it?"], "prompt": "What is it?"}
    parameters = {field: questions[field] for field in [each for each in questions if each in accepted][:1]}
    state = await start(getattr(flows, name), {**parameters, "provider": gemini, "sources": [ENVIRON]})
    assert "'/proc/self/environ' may not be read by a run of this deployment" in read_failure(state)
    assert "POLLUX_ALLOW_PATHS=/proc" in read_failure(state)
    assert simulator.requests == []


@pytest.mark.parametrize("name", ["amap_rows", "aestimate"])
async def test_a_starter_reads_no_table_outside_the_folders(
    name: str, start: Start, gemini: dict[str, Any], simulator: Simulator, tmp_path: Path
) -> None:
    (tmp_path / "secret.csv").write_text(f"word\n{SECRET}\n")
    parameters = {"table": str(tmp_path / "secret.csv"), "prompt": "Repeat {word}", "provider": gemini}
    state = await start(getattr(flows, name), parameters | ({"prompts": []} if name == "aestimate" else {}))
    assert "secret.csv' may not be read by a run of this deployment" in read_failure(state)
    assert simulator.requests == []


async def test_a_starter_writes_no_table_outside_the_folders(
    start: Start, gemini: dict[str, Any], simulator: Simulator, tmp_path: Path
) -> None:
    parameters = {"table": "in.csv", "prompt": "{a}", "provider": gemini, "output": str(tmp_path / "out.csv")}
    state = await start(flows.amap_rows, parameters)
    assert "may not be written" in read_failure(state)
    assert simulator.requests == []
    assert not [name for name in os.listdir(tmp_path) if name.startswith("out.csv")]  # noqa: PTH208 (it is awaited)


Plant = Callable[[Path], str]


def plant_outside(folder: Path) -> str:
    (folder.parent / "secret.txt").write_text(SECRET)
    return str(folder.parent / "secret.txt")


def plant_link(folder: Path) -> str:
    (folder / "innocent.txt").symlink_to(plant_outside(folder))
    return "innocent.txt"


def plant_folder_link(folder: Path) -> str:
    plant_outside(folder)
    (folder / "innocent").symlink_to(folder.parent)
    return "innocent/secret.txt"


def plant_parent_path(folder: Path) -> str:
    plant_outside(folder)
    return "../secret.txt"


def plant_file_address(folder: Path) -> str:
    return f"file://{plant_outside(folder)}"


def plant_escaped_address(folder: Path) -> str:
    return f"file://{plant_outside(folder).replace('/s', '/%73')}"


def plant_dot_file(folder: Path) -> str:
    (folder / ".env").write_text(SECRET)
    return ".env"


def plant_dot_folder(folder: Path) -> str:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text(SECRET)
    return ".git/config"


def plant_in_pollux_home(folder: Path) -> str:  # noqa: ARG001
    home = Path(os.environ["POLLUX_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    (home / "notes.txt").write_text(SECRET)
    return str(home / "notes.txt")


def plant_in_prefect_home(folder: Path) -> str:  # noqa: ARG001
    from prefect.settings import PREFECT_HOME

    path = Path(PREFECT_HOME.value()) / "notes.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SECRET)
    return str(path)


@pytest.mark.parametrize(
    "plant",
    [
        plant_outside,
        plant_link,
        plant_folder_link,
        plant_parent_path,
        plant_file_address,
        plant_escaped_address,
        plant_dot_file,
        plant_dot_folder,
        plant_in_pollux_home,
        plant_in_prefect_home,
    ],
)
async def test_a_starter_reads_nothing_outside_the_served_folder(
    plant: Plant, start: Start, served_folder: Path, gemini: dict[str, Any], simulator: Simulator
) -> None:
    """The refusal names the setting that would allow the file."""
    source = {"source_type": "file", "uri": plant(served_folder)}
    state = await start(arealtime, {"prompt": "What is it?", "provider": gemini, "sources": [source]})
    assert simulator.requests == []
    assert "may not be read" in read_failure(state)
    line = read_failure(state).rpartition("set this where the flow runs: ")[2]
    variable, _, path = line.partition("=")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, path)
        state = await start(arealtime, {"prompt": "What is it?", "provider": gemini, "sources": [source]})
    assert state.is_completed(), state


async def test_a_starter_reads_files_in_the_served_folder(
    start: Start, served_folder: Path, gemini: dict[str, Any]
) -> None:
    (served_folder / "report.txt").write_text("All is well.")
    source = {"source_type": "file", "uri": "report.txt"}
    assert (await start(arealtime, {"prompt": "Well?", "provider": gemini, "sources": [source]})).is_completed()


async def test_a_starter_cannot_widen_its_restrictions(start: Start, gemini: dict[str, Any]) -> None:
    """Environment variables that come with a run allow no paths."""
    parameters = {"prompt": "What is it?", "provider": gemini, "sources": [ENVIRON]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLLUX_ALLOW_PATHS", "/proc")
        state = await start(arealtime, parameters, env={"POLLUX_ALLOW_PATHS": "/proc"})
    assert "may not be read" in read_failure(state)


async def test_a_starter_attaches_no_file_by_earlier_turns(
    start: Start, served_folder: Path, gemini: dict[str, Any]
) -> None:
    """The turns of a conversation name the files that they were about."""
    name = plant_outside(served_folder)
    source = Source.from_file(name)
    first = await arealtime("What is it?", PolluxProvider(**gemini), sources=[source], options=Options(history=[]))
    stored = first.model_dump(mode="json", by_alias=True)
    state = await start(
        arealtime, {"prompt": "And?", "provider": gemini, "options": {"continue_from": json.loads(json.dumps(stored))}}
    )
    assert "may not be read" in read_failure(state)


# --- Trusted parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["own", "scheduled"])
async def test_the_deployments_own_parameters_are_trusted(
    where: str, start: Start, served_folder: Path, gemini: dict[str, Any]
) -> None:
    """The parameters of its schedules are trusted, too. A starter may ask another question about their file."""
    source = {"source_type": "file", "uri": plant_outside(served_folder)}
    trusted: dict[str, Any] = {"sources": [source]}
    parameters = {"prompt": "Another question?", "provider": gemini, "sources": [source]}
    state = await start(arealtime, parameters, **{where: trusted})
    assert state.is_completed(), state
    other = {**parameters, "sources": [source, ENVIRON]}
    assert "'/proc/self/environ' may not be read" in read_failure(await start(arealtime, other, **{where: trusted}))


async def test_scripts_and_custom_flows_have_no_restrictions(
    start: Start, served_folder: Path, gemini: dict[str, Any], simulator: Simulator
) -> None:
    """The parameters are those of their author. This holds for a custom flow that is deployed, too."""
    name, block = plant_outside(served_folder), PolluxProvider(**gemini)

    @flow
    async def custom_flow(name: str) -> str:
        by_sub_flow = await arealtime("What is it?", block, sources=[Source.from_file(name)])
        by_function = await arealtime.fn("What is it?", block, sources=[Source.from_file(name)])
        return by_sub_flow.text + by_function.text

    assert (await arealtime("What is it?", block, sources=[Source.from_file(name)])).text
    assert await custom_flow(name)
    state = await start(custom_flow, {"name": name})
    assert state.is_completed(), state
    assert simulator.files


async def test_a_run_that_names_a_parent_run_is_restricted(
    start: Start,  # noqa: ARG001 (where it is served from)
    gemini: dict[str, Any],
) -> None:
    """Any starter can name a parent, as `run_deployment` in a flow does."""
    parameters = {"prompt": "What is it?", "provider": gemini, "sources": [ENVIRON]}
    name = f"starters-{uuid4().hex}"
    async with get_client() as client:
        await client.create_deployment(await client.create_flow(arealtime), name)

    @flow
    async def custom_flow() -> FlowRun:
        return cast(FlowRun, await cast(Any, run_deployment)(f"realtime/{name}", parameters=parameters, timeout=0))

    made = await custom_flow()
    assert made.parent_task_run_id is not None
    state = await execute_run(arealtime, made)
    assert "'/proc/self/environ' may not be read" in read_failure(state)


# --- Outputs ------------------------------------------------------------------------------------------------


@pytest.fixture
async def openai(save_provider: SaveProvider) -> dict[str, Any]:
    return (await save_provider("openai")).reference


@pytest.mark.parametrize("each", [asubmit, afan_out], ids=lambda flow: flow.name)
@pytest.mark.parametrize(
    ("output", "refusal"),
    [
        ("../answers.jsonl", "POLLUX_ALLOW_PATHS="),
        ("link/answers.jsonl", "POLLUX_ALLOW_PATHS="),
        (".hidden/answers.jsonl", "POLLUX_ALLOW_PATHS="),
        ("memory://bucket/answers.jsonl", "POLLUX_ALLOW_PATHS=memory://bucket"),
        ("json.py", "ends with none of"),
        ("theirs.jsonl", "exists already, and no run of this package wrote it"),
        ("other.jsonl", "exists already, and no run of this package wrote it"),  # the name of its manifest is taken
    ],
)
async def test_a_starter_overwrites_no_file(  # noqa: PLR0917 (fixtures)
    each: Flow[..., Any],
    output: str,
    refusal: str,
    start: Start,
    served_folder: Path,
    openai: dict[str, Any],
    simulator: Simulator,
) -> None:
    """Outputs outside the served folder, and of other file types, are refused as well."""
    (served_folder / "link").symlink_to(served_folder.parent)
    existing = [served_folder / "theirs.jsonl", served_folder / "other.manifest.json"]
    for file in existing:
        file.write_text("mine")
    state = await start(each, {"prompts": PROMPTS, "provider": openai, "output": output})
    assert refusal in read_failure(state)
    assert simulator.requests == []
    assert [file.read_text() for file in existing] == ["mine", "mine"]


async def test_a_starter_writes_new_files_and_replaces_outputs_of_runs(
    start: Start, served_folder: Path, openai: dict[str, Any]
) -> None:
    """A later run may replace the output of an earlier one."""
    for each in (asubmit, afan_out, asubmit):
        state = await start(each, {"prompts": PROMPTS, "provider": openai, "output": "answers.jsonl"})
        if each is asubmit:
            await acollect([await state.aresult()])
        lines = (served_folder / "answers.jsonl").read_text().splitlines()
        assert [json.loads(line)["answer"] for line in lines] == ANSWERS


@pytest.mark.parametrize("swap", ["link", "file"])
async def test_an_output_is_checked_again_when_it_is_written(
    swap: str, start: Start, served_folder: Path, openai: dict[str, Any]
) -> None:
    """A link or a file may have been put in its place since the submission."""
    (served_folder / "answers").mkdir()
    outside = served_folder.parent / "theirs"
    outside.mkdir()
    state = await start(asubmit, {"prompts": PROMPTS, "provider": openai, "output": "answers/new.jsonl"})
    job = await state.aresult()
    if swap == "link":
        (served_folder / "answers").rmdir()
        (served_folder / "answers").symlink_to(outside)
    else:
        (served_folder / "answers" / "new.jsonl").write_text("mine")
    (row,) = (await acollect([job])).rows
    assert row.problem is not None
    assert ("is a link" if swap == "link" else "no run of this package wrote it") in row.problem
    assert list(outside.iterdir()) == []


async def test_the_deployments_own_output_replaces_an_existing_file(
    start: Start, served_folder: Path, openai: dict[str, Any]
) -> None:
    """The operator of the deployment has chosen the file."""
    output = served_folder.parent / "theirs.csv"
    output.write_text("mine")
    own = {"output": str(output)}
    state = await start(asubmit, {"prompts": PROMPTS, "provider": openai, **own}, own=own)
    await acollect([await state.aresult()])
    assert len(output.read_text().splitlines()) == 1 + len(PROMPTS)


# --- Schemas ------------------------------------------------------------------------------------------------


@pytest.fixture
def local_module(served_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a module in the served folder, which sets IMPORTED when it is imported."""
    name = f"local_{uuid4().hex[:8]}"
    code = (
        "import os\nfrom pydantic import BaseModel\nos.environ['IMPORTED'] = '1'\nclass Shape(BaseModel):\n    a: int"
    )
    (served_folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(served_folder))
    monkeypatch.delenv("IMPORTED", raising=False)
    yield name
    sys.modules.pop(name, None)
    os.environ.pop("IMPORTED", None)


@pytest.mark.parametrize("module", ["os", "antigravity", "this", "local"])
async def test_a_starter_imports_no_module_of_its_choice(
    module: str, start: Start, gemini: dict[str, Any], local_module: str, simulator: Simulator
) -> None:
    """A module of Python or of the served folder is refused before it is imported."""
    name = local_module if module == "local" else module
    if module in {"antigravity", "this"}:
        sys.modules.pop(module, None)
    state = await start(arealtime, {"prompt": "?", "provider": gemini, "options": {"response_schema": f"{name}:path"}})
    assert f"response_schema '{name}:path' may not be imported" in read_failure(state)
    assert read_failure(state).endswith(f"POLLUX_ALLOW_SCHEMAS={name}")
    assert module == "os" or name not in sys.modules
    assert "IMPORTED" not in os.environ
    assert simulator.requests == []


async def test_installed_schemas_may_be_used_unless_a_setting_names_others(
    start: Start, gemini: dict[str, Any], local_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_parameters(name: str) -> dict[str, Any]:
        return {"prompt": "?", "provider": gemini, "options": {"response_schema": name}}

    installed, local = "prefect.client.schemas.schedules:CronSchedule", f"{local_module}:Shape"
    assert "may not be imported" not in str((await start(arealtime, make_parameters(installed))).message)
    monkeypatch.setenv("POLLUX_ALLOW_SCHEMAS", local_module)
    state = await start(arealtime, make_parameters(local))
    assert state.is_completed(), state
    assert "may not be imported" in read_failure(await start(arealtime, make_parameters(installed)))


async def test_the_deployments_own_schema_is_trusted(start: Start, gemini: dict[str, Any], local_module: str) -> None:
    own = {"options": {"response_schema": f"{local_module}:Shape"}}
    state = await start(arealtime, {"prompt": "?", "provider": gemini, **own}, own=own)
    assert state.is_completed(), state


# --- Tools --------------------------------------------------------------------------------------------------


async def test_a_starter_chooses_no_function_that_the_model_calls(
    start: Start, gemini: dict[str, Any], simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function of an installed package is refused, too, unless the deployment or a setting names it."""
    tool = "tests.prefect.weather:get_weather"
    parameters = {"prompt": "Rain?", "provider": gemini, "conversation": "starters", "tools": [tool]}
    for chosen in ("shutil:rmtree", "prefect.utilities.processutils:run_process", tool):
        failure = read_failure(await start(aconverse, {**parameters, "tools": [chosen]}))
        assert failure.endswith(f"POLLUX_ALLOW_TOOLS={chosen}")
    assert simulator.requests == []
    assert (await start(aconverse, parameters, own={"tools": [tool]})).is_completed()
    for allowed in (tool, "tests.prefect.weather", "tests"):
        monkeypatch.setenv("POLLUX_ALLOW_TOOLS", allowed)
        assert (await start(aconverse, parameters)).is_completed()


# --- The web ------------------------------------------------------------------------------------------------


async def test_a_starter_reads_nothing_from_the_workers_network(
    start: Start, gemini: dict[str, Any], world: tuple[Simulator, str], simulator: Simulator
) -> None:
    """The address is that of the simulator on loopback, which gets no request."""
    source = {"source_type": "file", "uri": f"{world[1]}/report.pdf"}
    state = await start(arealtime, {"prompt": "What is it?", "provider": gemini, "sources": [source]})
    assert "is on a private network or on this machine" in read_failure(state)
    assert "POLLUX_ALLOW_HOSTS=127.0.0.1" in read_failure(state)
    assert simulator.requests == []
