"""pollux-flows init: a small project that runs at once, with the simulator."""

from __future__ import annotations

import json
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from pollux_flows.cli.printing import refuse, say
from pollux_flows.config import KEY_VARIABLES

FILES: Final = (
    "blocks/providers.yaml",
    "flows.py",
    "prefect.yaml",
    ".env.example",
    "automations/collected.yaml",
    "automations/failed.yaml",
    "automations/crashed.yaml",
    "automations/batch-ended.yaml",
)
_Provider = Literal["simulated", "gemini", "openai", "anthropic", "openrouter", "local"]
"""A block in blocks/providers.yaml."""


def init(
    folder: Annotated[Path, Parameter(help="The folder for the files; created if it does not exist.")] = Path(),
    /,
    *,
    provider: Annotated[
        _Provider,
        Parameter(("--provider", "-p"), help="The saved provider that the flow asks; simulated needs no key."),
    ] = "simulated",
) -> None:
    """Write a small project: provider blocks, a flow of your own, deployments, automations. No file is overwritten."""
    try:
        if existing := [name for name in FILES if (folder / name).exists()]:
            there = ", ".join(existing)
            refuse(f"Nothing was written: {folder.absolute()} already has {there}. Choose another folder.")
        for name in FILES:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(_content(name, folder, provider))
    except OSError as error:
        refuse(f"The project cannot be written to {folder.absolute()}: {error.strerror or error}. Choose another.")
    say("\n".join(_next_steps(folder, provider)))


def _content(name: str, folder: Path, provider: _Provider) -> str:
    content = (files("pollux_flows.cli") / "project" / name).read_text(encoding="utf-8")
    match name:
        case "flows.py":
            return content.replace('"simulated"', f'"{provider}"')
        case "prefect.yaml":  # a JSON string is a valid YAML string, with any characters in the path
            return content.replace("directory: FOLDER", f"directory: {json.dumps(str(folder.resolve()))}")
        case _:
            return content


def _next_steps(folder: Path, provider: _Provider) -> list[str]:
    steps = [] if folder.resolve() == Path.cwd() else [(f"cd {shlex.quote(str(folder))}", "")]
    if provider != "simulated" and (variable := KEY_VARIABLES.get(provider)):
        steps.append(("cp .env.example .env", f"and fill in {variable}"))
    answers = "the simulator answers, without a key" if provider == "simulated" else f"{provider} answers"
    steps += [
        ("pollux-flows apply", "save the providers on your Prefect server"),
        ("python flows.py", f"run your own flow; {answers}"),
        ("pollux-flows doctor", "see what is missing for deployments and schedules"),
    ]
    width = max(len(command) for command, _ in steps)
    lines = [f"  {command:{width}}  # {comment}" if comment else f"  {command}" for command, comment in steps]
    written = dict.fromkeys(f"{top}/" if below else top for top, below, _ in (name.partition("/") for name in FILES))
    return [f"Wrote {', '.join(written)} to {folder.absolute()}. Next:", "", *lines]
