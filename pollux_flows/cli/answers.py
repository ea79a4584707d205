"""pollux-flows answers: all answers of a run."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from pollux_flows.answer_rows import AnswerRow, csv_header, csv_lines, json_lines
from pollux_flows.cli.printing import Flag, refusals_in_words, refuse, say
from pollux_flows.run_answers import load_answers


def answers(
    run: Annotated[str, Parameter(help="The name or id of a flow run, as its page shows it.")],
    /,
    *,
    json: Annotated[Flag, Parameter(help="Print a line of JSON for each prompt.")] = False,
    csv_: Annotated[Flag, Parameter("--csv", help="Print a row of CSV for each prompt.")] = False,
) -> None:
    """Print all prompts of a run with their answers, even if it failed or was cancelled."""
    if json and csv_:
        refuse("--json and --csv exclude each other.")
    with refusals_in_words():
        rows = asyncio.run(load_answers(run))
    try:
        _print_all(rows, json=json, csv_=csv_)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_all(rows: Sequence[AnswerRow], *, json: bool, csv_: bool) -> None:
    if json:
        sys.stdout.write(json_lines(rows))
    elif csv_:
        sys.stdout.write(csv_header())
        sys.stdout.write(csv_lines(rows))
    else:
        for row in rows:
            _print(row)


def _print(row: AnswerRow) -> None:
    about = f" (source {row.source}: {row.source_name})" if row.source else ""
    say(f"{row.number}.{about} {row.prompt or '(sources only)'}")
    if row.error:
        say(f"   {row.status}: {' '.join(filter(None, [row.error, row.hint]))}")
    elif row.status != "answered":
        say(f"   {row.status}")
    if row.answer:
        say("\n".join(f"   {line}" for line in row.answer.splitlines()))
    say("")
