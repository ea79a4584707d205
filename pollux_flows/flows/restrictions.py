"""Restrictions: the files, variables, schemas and tools that the parameters of a deployed run may name.

Anything that the deployment itself names is allowed. Only runs of this package's flows that a deployment started have
restrictions. A user's script has none, nor has a user's flow that calls one of ours, as that call is a run without a
deployment. A run that is started with `run_deployment` does have restrictions: its parameters came through the API,
where any caller may name any run as the parent.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.filesystems import LocalFileSystem
from prefect.results import aget_default_result_storage
from prefect.settings import PREFECT_HOME

from pollux_flows.access import Restrictions, apply_restrictions, current_restrictions
from pollux_flows.state.home import home

P = ParamSpec("P")
R = TypeVar("R")

_FORMS = "pollux_flows.flows.sync_and_async"


def with_restrictions(work: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Make a flow's function run within the restrictions of its run."""

    @wraps(work)
    async def done(*args: P.args, **kwargs: P.kwargs) -> R:
        # Restrictions hold for all that a run does, sub-flows included, which have no deployment of their own.
        with apply_restrictions(current_restrictions() or await _restrictions_of_run()):
            return await work(*args, **kwargs)

    return done


async def _restrictions_of_run() -> Restrictions | None:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return None
    if type(context.flow).__module__ != _FORMS:  # a user's deployed flow that calls ours as a plain function
        return None
    own = await _own_parameters(context.flow_run)
    return Restrictions(
        folders=await _folders(),
        private=[str(PREFECT_HOME.value()), str(home())],
        environment=_environment(context.flow_run),
        sources=frozenset(
            _texts([each.get(name) for each in own for name in ("sources", "options", "prompts_from", "table")])
        ),
        outputs=frozenset(_texts([each.get("output") for each in own])),
        schemas=frozenset(_texts([each.get("options") for each in own])),
        tools=frozenset(_texts([each.get("tools") for each in own])),
    )


async def _own_parameters(run: FlowRun) -> Sequence[dict[str, Any]]:
    """Return the parameters that are stored in the deployment and its schedules."""
    if run.deployment_id is None:
        return []
    try:
        async with get_client() as client:
            deployment = await client.read_deployment(run.deployment_id)
    except ObjectNotFound:  # deleted since
        return []
    return [deployment.parameters or {}, *(schedule.parameters for schedule in deployment.schedules)]


async def _folders() -> list[str]:
    storage = await aget_default_result_storage()
    stored = [str(storage.basepath)] if isinstance(storage, LocalFileSystem) and storage.basepath else []
    return [os.getcwd(), *stored]  # noqa: PTH109 (paths are compared as text)


def _environment(run: FlowRun) -> dict[str, str]:
    """Return the environment without the variables set when the run was started, which must not grant access."""
    run_variables = (run.job_variables or {}).get("env") or {}
    return {name: value for name, value in os.environ.items() if name not in run_variables}


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for each in value.values():
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)
