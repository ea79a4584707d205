"""pollux-flows: the command. Each command loads what it needs when it is called."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import App, Parameter

from pollux_flows import __version__

app = App(
    name="pollux-flows",
    help="Prompts and sources to LLM providers, as Prefect flows.",
    version=__version__,
    help_format="plaintext",
)


@app.command
def demo() -> None:
    """Run the main job offline, on a Prefect server of its own, and show the result."""
    from pollux_flows.demo import run_demo

    run_demo()


@app.command
def simulator(
    *,
    port: Annotated[int, Parameter(help="Where to listen on 127.0.0.1; 0 takes any free port.")] = 4210,
    latency: Annotated[float, Parameter(help="Seconds to wait before each answer.")] = 0.0,
) -> None:
    """Serve the offline provider, which speaks all five wire protocols, until Ctrl-C, and print its base URLs."""
    from pollux_flows.config import PROVIDERS
    from pollux_flows.simulator import Simulator, run

    def announce(origin: str) -> None:
        lines = [f"The simulator listens at {origin} until Ctrl-C. It takes any API key. Its base URLs:", ""]
        lines += [f"  {provider:10}  {Simulator.base_url(provider, origin)}" for provider in PROVIDERS]
        lines += ["", "Put one into the base_url of a Config or PolluxProvider, with any api_key."]
        sys.stdout.write("\n".join([*lines, ""]))
        sys.stdout.flush()

    try:
        run(Simulator(latency_s=latency), port, announce=announce)
    except (OSError, OverflowError) as error:
        raise SystemExit(f"The simulator cannot listen on port {port}: {error}. Choose another with --port.") from None


for _room, _commands in {
    "apply": {"apply": "Put block documents on the Prefect server, from files."},
    "serve": {"serve": "Serve all flows from this machine, until Ctrl-C."},
    "ask": {
        "run": "Ask, now, and print the answers.",
        "submit": "Hand prompts in to the provider's batch system, and print the name of the job.",
    },
    "answers": {"answers": "Print every prompt of a run with its answer."},
    "jobs": {
        "jobs": "Show the deferred jobs. No provider is asked.",
        "collect": "Look at deferred jobs, and keep the answers of those that are done.",
        "cancel": "Ask the provider to stop a deferred job.",
    },
    "doctor": {"doctor": "Look whether all that a run needs is there. Nothing is asked of a provider."},
    "state": {"state": "Show and prune what is kept."},
    "conversations": {"conversations": "List the stored conversations, show one, and delete one."},
    "caches": {"caches": "List the registered caches, and delete one."},
}.items():
    for _name, _help in _commands.items():
        app.command(f"pollux_flows.cli.{_room}:{_name}", name=_name, help=_help)
