"""pollux-flows state: show or remove stored answers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Final

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pollux_flows.cli.printing import Flag, Json, refusals_in_words, refuse, say
from pollux_flows.pricing import dollars
from pollux_flows.state.kinds import kind_of
from pollux_flows.state.maintenance import DamageReport, Pruned, RunSummary, Survey, prune, remove_damaged, survey
from pollux_flows.state.store import open_existing_store
from pollux_flows.state.units import format_size, parse_duration, parse_size

state = App(name="state", help="Show or remove stored answers.")

_WORDS: Final = {
    "answer": "Answers",
    "pointer": "Calls with an answer",
    "run": "Runs",
    "claim": "Calls being made",
    "hash": "Files that were read",  # by earlier versions
    "upload": "Files at providers",
    "owner": "Owners of files",
    "account": "Account salt",
    "job": "Deferred jobs",
    "conversation": "Conversations",
    "unknown": "From another version",
}
_NOTHING: Final = "Nothing is stored yet."
_OPTIONS: Final = (
    "Choose what to remove: --older-than 30d, --max-size 500MB, --run NAME or --damaged. With --dry-run, nothing is "
    "removed."
)


@state.default
@state.command
def show(
    *,
    runs: Annotated[int, Parameter(help="How many of the last runs to show.")] = 10,
    json: Json = False,
) -> None:
    """Show what is stored, where, how much space it takes, and the last runs."""
    with refusals_in_words():
        store = open_existing_store()
        found = None if store is None else asyncio.run(survey(store, last=runs))
    if json:
        say("null" if found is None else found.model_dump_json(indent=2))
    elif found is None:
        say(_NOTHING)
    else:
        _print(found)


@state.command(name="prune")
def prune_(
    *,
    older_than: Annotated[str | None, Parameter(help="Remove answers older than this, such as 30d or 12h.")] = None,
    max_size: Annotated[
        str | None, Parameter(help="Remove the oldest answers until the rest fits in this, such as 500MB or 2GiB.")
    ] = None,
    run: Annotated[
        str | None, Parameter(help="Remove the answers of the run of this name, or of all parts of a flow run.")
    ] = None,
    damaged: Annotated[Flag, Parameter(help="Remove records that cannot be read.")] = False,
    dry_run: Annotated[Flag, Parameter(help="Only show what would be removed.")] = False,
) -> None:
    """Remove stored answers. Records of files at a provider stay, and so do answers of runs that are under way."""
    if older_than is None and max_size is None and run is None and not damaged:
        refuse(_OPTIONS)
    if run is not None and (older_than is not None or max_size is not None):
        refuse("--run removes all answers of that run: leave --older-than and --max-size out.")
    with refusals_in_words():
        age = None if older_than is None else parse_duration(older_than, "--older-than")
        size = None if max_size is None else parse_size(max_size, "--max-size")
        if (store := open_existing_store()) is None:
            say(_NOTHING)
            return
        if damaged:
            say(_damage_in_words(asyncio.run(remove_damaged(store, dry_run=dry_run)), dry_run=dry_run))
        if (age, size, run) == (None, None, None):
            return
        pruned = asyncio.run(prune(store, older_than_s=age, max_size=size, run=run, dry_run=dry_run))
        if run is not None and not pruned.answers + pruned.runs:
            refuse(f"No answers of a run named {run!r} are stored. pollux-flows state lists the last runs.")
        say(_pruned_in_words(pruned, dry_run=dry_run))


# --- In words -------------------------------------------------------------------------------------------------------


def _print(found: Survey) -> None:
    most = "" if found.max_size_bytes is None else f" of at most {format_size(found.max_size_bytes)}"
    say(f"{found.where}: {format_size(found.size_bytes)}{most}. Answers are stored for {found.kept_days:g} days.")
    if found.max_size_bytes is None:
        say("In Redis, answers are removed only by age: give it enough memory, and set maxmemory-policy noeviction.")
    if found.oldest_at is not None and found.newest_at is not None:
        say(f"The oldest answer is from {_when(found.oldest_at)}, the newest from {_when(found.newest_at)}.")
    if found.unreadable:
        say(
            f"{_some(found.unreadable, 'record')} cannot be read: pollux-flows state prune --damaged --dry-run lists"
            " the damaged ones."
        )
    if found.expired:
        say(
            f"{_some(found.expired, 'record')} more expired: they are removed after an hour without a clock change, or"
            " by any prune."
        )
    kinds = Table("Stored", "Records", "Size")
    for kind, words in _WORDS.items():
        if kind in found.records:
            kinds.add_row(words, f"{found.records[kind]:,}", format_size(found.bytes[kind]))
    console = Console()
    console.print(kinds)
    if found.runs:
        console.print(_runs_table(found.runs))


def _runs_table(runs: list[RunSummary]) -> Table:
    table = Table("Began", "Answers", "Cost", title="The last runs", title_justify="left")
    table.add_column("Run", overflow="fold")
    for run in runs:
        cost = f"{dollars(run.cost_usd)}" if run.cost_usd or not run.cost_unknown else ""
        unknown = f"unknown of {run.cost_unknown}" if run.cost_unknown else ""
        table.add_row(_when(run.began_at), f"{run.answers:,}", ", ".join(filter(None, (cost, unknown))), Text(run.name))
    return table


def _pruned_in_words(pruned: Pruned, *, dry_run: bool) -> str:
    removed, freed = ("Would remove", "which would free about {}") if dry_run else ("Removed", "which freed {}")
    text = (
        f"{removed} {_some(pruned.answers, 'answer')}, {_some(pruned.runs, 'run')} without answers, and"
        f" {_some(pruned.others, 'other record')}, {freed.format(format_size(pruned.freed_bytes))}."
    )
    if pruned.spared_runs:
        runs = _some(pruned.spared_runs, "run")
        text += f" Not removed, as it is in progress or was incomplete less than a day ago: {runs}."
    return text


def _damage_in_words(damage: DamageReport, *, dry_run: bool) -> str:
    removed = "Would remove" if dry_run else "Removed"
    lines = [f"{removed} {_some(len(damage.removed), 'damaged record')}.", *damage.removed]
    conversations = [key for key in damage.left if kind_of(key) == "conversation"]
    if conversations:
        lines.append(
            f"Left {_some(len(conversations), 'damaged conversation')}. Restore the state from a backup, or give one"
            " up: pollux-flows conversations delete KEY."
        )
        lines += conversations
    if others := [key for key in damage.left if key not in conversations]:
        lines.append(
            f"Left {_some(len(others), 'damaged record')}, as these say which files are still at a provider."
            " Restore the state from a backup, or move it away to start with an empty one."
        )
        lines += others
    return "\n".join(lines)


def _some(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _when(at: float) -> str:
    try:
        return f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M}"
    except (OverflowError, OSError, ValueError):
        return "?"
