"""Run logs: one line per phase, one per failure, and one for the outcome.

Prefect logs the end of each task, a failed one twice, and the traceback of an error that the state of the run quotes.
The runs of our flows leave these out; the logs of all other runs are unchanged.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from prefect import Flow
from prefect.context import FlowRunContext

from pollux_flows.errors import PolluxError

_OF_TASKS: Final = (
    "Finished in state Completed()",
    "Task run failed with ",
    # The run itself logs that it was cancelled.
    "Crash detected! Execution was cancelled",
    "Finished in state Crashed('Execution was cancelled",
)
# Prefect logs these as errors when a run is being cancelled or is suspended.
_NO_ENDS: Final = ("Finished in state Running()", "Finished in state Suspended(")


def shorten_logs_of(kind: type[Flow[..., Any]]) -> None:
    """Remove lines that repeat others from the logs of this kind of flow."""

    def is_new(record: logging.LogRecord) -> bool:
        context = FlowRunContext.get()
        if context is None or not isinstance(context.flow, kind):
            return True
        message = record.getMessage()
        if record.name == "prefect.task_runs":
            return not message.startswith(_OF_TASKS)
        if message.startswith(_NO_ENDS):
            return False
        is_reported = record.exc_info is not None and isinstance(record.exc_info[1], PolluxError)
        return not (is_reported and message.startswith("Encountered exception during execution"))

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(is_new)
