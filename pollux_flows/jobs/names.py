"""Names of jobs: derived from the flow run that submits, so that a retry of the run finds its job."""

from __future__ import annotations

from typing import Any

from pollux_flows.state.identity import digest


def job_name(run_id: str) -> str:
    """Return the name of the job that an outermost flow run submits."""
    return _name(run_id)


def sub_flow_job_name(outermost_id: str, parameters: str, ordinal: int) -> str:
    """Return the name of a sub-flow's job. Sub-flows of a run with equal parameters differ by an ordinal."""
    return _name([outermost_id, parameters, ordinal])


def _name(submitter: Any) -> str:
    return f"deferred-{digest('deferred', submitter)[:12]}"
