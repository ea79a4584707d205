"""The command line `pollux-flows`. The module of a command is imported when the command is called."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.text import Text

from pollux_flows import __version__
from pollux_flows.cli.exit_codes import ExitCode
from pollux_flows.cli.printing import refuse


def _describe_usage_error(error: CycloptsError) -> Text:
    """Return a usage error as one line that ends with the command for its help."""
    command = " ".join(["pollux-flows", *(error.command_chain or [])])
    return Text(f"{error} See {command} --help.")


app = App(
    name="pollux-flows",
    help="Send prompts and sources to LLM providers, as Prefect flows.",
    default_parameter=Parameter(negative=""),
    error_formatter=_describe_usage_error,
    version=__version__,
    help_format="plaintext",
)


def main() -> None:
    """Run the command. Ctrl-C and a closed pipe end it without a traceback, even while it is still being imported."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(ExitCode.INTERRUPTED) from None
    except BrokenPipeError:
        # At its end, Python flushes the output once more, and would report that this fails.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(ExitCode.PIPE_CLOSED) from None


@app.command
def demo() -> None:
    """Run a fan-out and a broadcast offline, on a temporary Prefect server, and show their answers."""
    from pollux_flows.demo import run_demo

    run_demo()


@app.command
def simulator(
    *,
    port: Annotated[int, Parameter(help="The port on 127.0.0.1; 0 for any free one.")] = 4210,
    latency: Annotated[float, Parameter(help="Seconds to wait before each answer.")] = 0.0,
) -> None:
    """Start a simulator of all five providers on this machine, until Ctrl-C, and print its base URLs."""
    from pollux_flows.config import PROVIDERS
    from pollux_flows.simulator import Simulator, run

    def announce(origin: str) -> None:
        lines = [f"The simulator listens at {origin} until Ctrl-C. It accepts any API key. Its base URLs:", ""]
        lines += [f"  {provider:10}  {Simulator.base_url(provider, origin)}" for provider in PROVIDERS]
        lines += ["", "Use one as the base_url of a Config or PolluxProvider, with any api_key, or set OPENAI_BASE_URL"]
        lines += ["and so on. [[simulate: status=429 times=2]] in a prompt makes it fail twice, then answer."]
        sys.stdout.write("\n".join([*lines, ""]))
        sys.stdout.flush()

    try:
        with suppress(KeyboardInterrupt):
            run(Simulator(latency_s=latency), port, announce=announce)
    except (OSError, OverflowError) as error:
        problem = getattr(error, "strerror", None) or error
        refuse(f"The simulator cannot listen on port {port}: {problem}. Choose another with --port.")


# The help is here so that a command is imported only when it is called. The list of commands shows the first line.
for _room, _commands in {
    "init": {"init": "Write a small project that runs at once with the simulator. Existing files are not overwritten."},
    "apply": {
        "apply": """Save blocks on the Prefect server, from YAML files.

        A file names each block as type/name, with its fields. A value may come from the environment or the file .env,
        as {env: GEMINI_API_KEY}; a secret must. A secret that is left out is not changed on the server. Nothing is
        saved unless all files are valid."""
    },
    "serve": {
        "serve": """Serve all flows from this machine, until Ctrl-C.

        The Prefect server starts their runs here: collect and sweep on schedules, the others from the UI, automations
        or code."""
    },
    "ask": {
        "run": """Ask prompts and print the answers.

        This is a run of the flow fan-out in this process. Its page is on the Prefect server of your profile.""",
        "submit": """Submit prompts as a batch, at half the price, and print the name of the job.

        Collect its answers with pollux-flows collect.""",
    },
    "estimate": {
        "estimate": """Estimate calls, tokens, cost and time of a run, a broadcast or a batch, before anything is spent.

        If it can, the provider counts the tokens of a sample, which is free. Nothing is generated or uploaded."""
    },
    "map": {
        "map_": """Ask one prompt about each row of a table, and write the table with the answers.

        Saved answers are reused: after Ctrl-C, run the same command again to continue.""",
    },
    "answers": {"answers": "Print all prompts of a run with their answers, even if it failed or was cancelled."},
    "jobs": {
        "jobs": "List the deferred jobs. No provider is called.",
        "collect": "Collect the answers of deferred jobs that are done. Run it as often as you like.",
        "cancel": """Cancel a deferred job.

        Prompts that are answered by then are billed, and collected.""",
    },
    "doctor": {
        "doctor": """Check the setup, and print the next step. No provider is called.

        Checks versions, stored state, Prefect server, deployments, saved providers and their keys, and schedules."""
    },
    "state": {"state": "Show or remove stored answers."},
    "conversations": {"conversations": "List the stored conversations, show one, or delete one."},
    "caches": {"caches": "List the providers' caches that were created here, or delete one."},
}.items():
    for _name, _help in _commands.items():
        _paragraphs = [" ".join(each.split()) for each in _help.split("\n\n")]
        app.command(f"pollux_flows.cli.{_room}:{_name}", name=_name.rstrip("_"), help="\n\n".join(_paragraphs))
