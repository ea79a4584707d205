"""Tests of `pollux-flows init`: the project that it writes runs without a key, and can be deployed."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, cast

import pytest
from prefect.cli.deploy._commands import deploy
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.flows import load_flow_from_entrypoint

from pollux_flows.cli.init import FILES
from pollux_flows.config import KEY_VARIABLES
from tests.prefect.test_cli import Command, pollux

__all__ = ["pollux"]
ROOT = Path(__file__).parents[2]


def run_flow() -> dict[str, str]:
    flow: Any = load_flow_from_entrypoint("flows.py:ask_about_report")
    return cast(dict[str, str], flow())


def test_the_project_runs_with_the_printed_commands(pollux: Command) -> None:
    printed = pollux("init")
    assert [line.split("#")[0].strip() for line in printed.splitlines()[2:]] == [
        "pollux-flows apply",
        "python flows.py",
        "pollux-flows doctor",
    ]
    assert "pollux-provider/simulated: " in pollux("apply")
    assert run_flow() == {
        question: f"Simulated answer to: {question}"
        for question in ("How many pumps were made?", "What should the board know?")
    }


async def test_prefect_deploys_the_project(pollux: Command, capsys: pytest.CaptureFixture[str]) -> None:
    await asyncio.to_thread(pollux, "init")
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="pollux", type="process"), overwrite=True)
        await deploy(deploy_all=True)
        assert capsys.readouterr().out.count("successfully created") == 3
        deployment = await client.read_deployment_by_name("ask-about-report/ask-about-report")
        assert deployment.pull_steps == [
            {"prefect.deployments.steps.set_working_directory": {"directory": str(Path.cwd().resolve())}}
        ]
        for name in ("ask-about-report/ask-about-report", "collect/collect", "sweep/sweep"):
            await client.delete_deployment((await client.read_deployment_by_name(name)).id)
        await client.delete_work_pool("pollux")


def test_init_takes_another_provider(pollux: Command) -> None:
    printed = pollux("init", "a folder", "--provider", "openai")
    assert "cd 'a folder'\n  cp .env.example .env" in printed
    assert "OPENAI_API_KEY" in printed
    assert 'provider: str = "openai"' in Path("a folder", "flows.py").read_text()


def test_init_overwrites_no_file(pollux: Command) -> None:
    Path("flows.py").write_text("mine")
    Path(".env.example").write_text("mine")
    assert f"{Path.cwd()} already has flows.py, .env.example." in pollux("init")
    assert Path("flows.py").read_text() == "mine"
    assert not Path("prefect.yaml").exists()


@pytest.mark.parametrize("folder", ["file", "file/project"])
def test_init_refuses_a_folder_that_cannot_be_written_to(pollux: Command, folder: str) -> None:
    Path("file").write_text("")
    assert pollux("init", folder).startswith("refused: The project cannot be written to ")


def test_the_files_of_the_project_match_the_package(pollux: Command) -> None:
    """The project has the providers and automations of the repository, and a variable for each key."""
    pollux("init")
    assert Path("blocks/providers.yaml").read_text() == (ROOT / "blocks" / "providers.yaml").read_text()
    assert re.findall("^([A-Z_]+)=$", Path(".env.example").read_text(), re.MULTILINE) == list(KEY_VARIABLES.values())
    project = ROOT / "pollux_flows" / "cli" / "project"
    assert {
        str(path.relative_to(project)) for path in project.rglob("*") if path.suffix != ".pyc" and path.is_file()
    } == set(FILES)
    automations = [path.name for path in (ROOT / "deployments" / "automations").iterdir()]
    assert sorted(automations) == sorted(path.name for path in Path("automations").iterdir())
