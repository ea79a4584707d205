"""Console: the progress and warnings of a run on the terminal that it was started from."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import get_current_settings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pollux_flows.artifacts import Progress as RunProgress
from pollux_flows.artifacts import listen_to_progress
from pollux_flows.pricing import dollars

# The command itself prints these errors, and a run that ends by Ctrl-C has not crashed.
_REPEATED: Final = ("Finished in state Failed", "Finished in state Crashed", "Crash detected! Execution was cancelled")


@contextmanager
def show_run() -> Iterator[None]:
    """Show the progress and warnings of the run that is started in the block; without a terminal, only warnings."""
    console = Console(stderr=True, markup=False)  # brackets in a log line are not markup
    with shorten_log():
        if not console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[took]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
            task = bar.add_task("Starting", total=None, took="")

            def update(progress: RunProgress) -> None:
                took = _describe(progress)
                bar.update(task, description="Answered", total=progress.total, completed=progress.done, took=took)

            with _log_to(console), listen_to_progress(update):
                yield


def _describe(progress: RunProgress) -> str:
    cost = "cost unknown" if progress.cost_usd is None else dollars(progress.cost_usd)
    return f"· {progress.tokens:,} tokens · {cost} · left"


@contextmanager
def shorten_log() -> Iterator[None]:
    """Leave lines that the command prints itself out of the log on this terminal, unless a log level is set."""
    if "level" in get_current_settings().logging.model_fields_set:
        yield
        return
    is_terminal = sys.stderr.isatty()

    def is_news(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:  # shown: the address of the run's page, and the start of a server
            return is_terminal and record.name in {"prefect", "prefect.engine"}
        return not record.getMessage().startswith(_REPEATED)

    handlers = _console_handlers()
    for handler in handlers:
        handler.addFilter(is_news)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_news)


@contextmanager
def _log_to(console: Console) -> Iterator[None]:
    """Log through the console of a progress bar, so that lines are printed above the bar."""
    consoles = {handler: handler.console for handler in _console_handlers()}
    for handler in consoles:
        handler.console = console
    try:
        yield
    finally:
        for handler, own in consoles.items():
            handler.console = own


def _console_handlers() -> set[PrefectConsoleHandler]:
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    return {each for logger in loggers for each in logger.handlers if isinstance(each, PrefectConsoleHandler)}
