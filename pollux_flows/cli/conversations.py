"""pollux-flows conversations: list the stored conversations, show one, or delete one."""

from __future__ import annotations

import asyncio
import json as json_text
import time
from typing import Annotated, Final

from cyclopts import App, Parameter

from pollux_flows.blocks.cache import format_time
from pollux_flows.cli.printing import Json, refusals_in_words, say
from pollux_flows.errors import ConfigurationError
from pollux_flows.pages import count_of
from pollux_flows.state.conversations import (
    StoredConversation,
    delete_conversation,
    list_conversations,
    load_conversation,
    normalize_name,
)
from pollux_flows.state.store import open_existing_store
from pollux_flows.turn import Turn, read_turns

conversations = App(name="conversations", help="List the stored conversations, show one, and delete one.")

Name = Annotated[str, Parameter(help="The name of the conversation, as `pollux-flows conversations` lists it.")]
_NONE: Final = "No conversation is stored yet."


@conversations.default
@conversations.command(name="list")
def list_(*, json: Json = False) -> None:
    """List the conversations, the most recent first."""
    with refusals_in_words():
        store = open_existing_store()
        found, unreadable = ([], {}) if store is None else asyncio.run(list_conversations(store))
    if json:
        for each in found:
            say(each.model_dump_json(exclude={"exchanges": {"__all__": {"turns"}}}))
        for key, problem in unreadable.items():
            say(json_text.dumps({"key": key, "problem": problem}, ensure_ascii=False))
    elif not found and not unreadable:
        say(_NONE)
    else:
        say("\n".join([*(_line(each) for each in found), *unreadable.values()]))


@conversations.command
def show(name: Name, *, json: Json = False) -> None:
    """Print a conversation, turn by turn."""
    with refusals_in_words():
        found = asyncio.run(_load(name))
        turns = read_turns([turn for each in found.exchanges for turn in each.turns], found.name)
    say(found.model_dump_json(indent=2) if json else "\n\n".join(_describe(turn) for turn in turns))


@conversations.command
def delete(name: Name) -> None:
    """Delete a conversation. The saved answers of its runs are not deleted."""
    with refusals_in_words():
        say(f"Deleted {asyncio.run(_delete(normalize_name(name)))}.")


async def _load(name: str) -> StoredConversation:
    store = open_existing_store()
    found = None if store is None else await load_conversation(store, normalize_name(name))
    if found is None:
        raise _no_such_conversation(name)
    return found


async def _delete(name: str) -> str:
    """Delete the conversation, and return its name and length."""
    store = open_existing_store()
    try:
        found = None if store is None else await load_conversation(store, name)
    except ConfigurationError:
        found = None
    if store is None or not await delete_conversation(store, name):
        raise _no_such_conversation(name)
    return f"{name}, {'which could not be read' if found is None else f'of {_count(found)}'}"


def _no_such_conversation(name: str) -> ConfigurationError:
    return ConfigurationError(f"There is no conversation {name!r}.", hint="List them with pollux-flows conversations.")


def _count(found: StoredConversation) -> str:
    return count_of(len(found.exchanges), "exchange")


def _line(found: StoredConversation) -> str:
    last = found.exchanges[-1]
    days = (time.time() - last.at) / 86_400
    idle = "" if days < 1 else f", {count_of(int(days), 'day')} ago"
    return f"{found.name}: {_count(found)}, the last {format_time(last.at)}{idle}, with {last.provider} {last.model}"


def _describe(turn: Turn) -> str:
    calls = [f"calls {call.name} {call.arguments}" for call in turn.tool_calls]
    about = [f"about {each.source.identifier}" for each in turn.attached]
    who = f"{turn.role} {turn.name}" if turn.name else turn.role
    return "\n  ".join([f"{who}:", *about, *turn.content.splitlines(), *calls])
