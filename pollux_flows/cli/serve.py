"""pollux-flows serve: serve all flows from this machine."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import prefect
from cyclopts import Parameter

from pollux_flows.access import PATHS
from pollux_flows.address import is_path
from pollux_flows.blocks.registration import register_block_types
from pollux_flows.cli.printing import refusals_in_words
from pollux_flows.deployments import deployments
from pollux_flows.state.units import parse_duration


def serve(
    *,
    collect_every: Annotated[str, Parameter(help="How often to collect deferred jobs, such as 10m or 1h.")] = "10m",
    limit: Annotated[int | None, Parameter(help="The most runs at once on this machine.")] = None,
    allow: Annotated[
        list[str] | None,
        Parameter(
            help="Let runs read and write this folder or address, even if their deployment does not name it. "
            "Can be repeated."
        ),
    ] = None,
) -> None:
    """Serve all flows from this machine, until Ctrl-C. The Prefect server of your profile starts their runs here.

    `collect` and `sweep` run on schedules, the others from the UI, from automations or from code.
    """
    with refusals_in_words():
        if allow:  # for the processes that runs start in
            paths = [
                os.environ.get(PATHS, ""),
                *(str(Path(each).absolute()) if is_path(each) else each for each in allow),
            ]
            os.environ[PATHS] = os.pathsep.join(filter(None, paths))
        every = timedelta(seconds=parse_duration(collect_every, "--collect-every"))
        register_block_types()
        prefect.serve(*deployments(collect_every=every), limit=limit)
