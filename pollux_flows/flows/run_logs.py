"""Run logs: a line a phase, a line a failure, and a line for the outcome.

Prefect logs the end of each task, a failed one twice, and the traceback of an error that the state of the run quotes.
In the runs of our flows these are left out; the log of every other run is as it was.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

from prefect.context import FlowRunContext

from pollux_flows.errors import PolluxError

_REMEMBERED: Final = 1_000
_runs: Final[OrderedDict[str, None]] = OrderedDict()
_TASK_ENDS: Final = ("Finished in state Completed()", "Task run failed with ")


def shorten_log() -> None:
    """Leave out of the log of the flow run at hand what its state, or another line, says again."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        _runs[str(context.flow_run.id)] = None
        while len(_runs) > _REMEMBERED:
            _runs.popitem(last=False)


def _is_new(record: logging.LogRecord) -> bool:
    """Return whether the line says what no other line of its run does."""
    if str(getattr(record, "flow_run_id", "")) not in _runs:
        return True
    message = record.getMessage()
    if hasattr(record, "task_run_id"):
        return not message.startswith(_TASK_ENDS)
    is_ours = record.exc_info is not None and isinstance(record.exc_info[1], PolluxError)
    return not (is_ours and message.startswith("Encountered exception during execution"))


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_is_new)
