"""Conversations by name, so that a later run, on any worker, goes on with them.

A conversation is one record, a list of exchanges. An exchange is all that came of one prompt: the prompt, the calls of
tools and their results, and the answer. It is added in one write, once it is complete, and only if the record is still
as it was read: no exchange is lost, and none is added by halves. An exchange names the call that its first answer has
in the journal. A retry finds that answer there, and so does not add its exchange a second time.

While a run works on an exchange, it has the lease on the conversation, and others wait for it. Before a run asks, it
records how long the conversation was. If it is killed and others go on meanwhile, its retry still finds its answers,
which are those to the shorter conversation.

A conversation is stored until nothing was added to it for as long as answers are stored. No pruning removes it earlier.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final

from pydantic import Field

from pollux_flows.config import ProviderName
from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.plain import JsonObject
from pollux_flows.state import leases
from pollux_flows.state.identity import digest
from pollux_flows.state.retention import retention_s
from pollux_flows.state.store import Json, Store, damaged_record_error, encode_record

VERSION: Final = 1
"""Of a stored conversation. It grows when an older version of this package would misread one."""

_PREFIX: Final = "conversation/"
_LONGEST_NAME: Final = 200
# Several times what the largest context of a model holds.
_LARGEST: Final = 16 << 20
_here: Final[ContextVar[frozenset[str]]] = ContextVar("pollux_flows_conversations", default=frozenset())


class Exchange(Record):
    """All that came of one prompt."""

    run: str = Field(description="The run that asked, as a digest.")
    call: str = Field(description="The identity of its first call, under which the journal has the answer.")
    at: float
    base: int = Field(description="How many exchanges came before it when it was asked.")
    provider: ProviderName
    model: str
    turns: list[JsonObject]
    response_id: str | None = None


class StoredConversation(Record):
    """A conversation."""

    version: int = VERSION
    name: str
    began_at: float
    exchanges: list[Exchange] = Field(default_factory=list)

    def turns_for(self, provider: str, model: str, base: int) -> list[JsonObject]:
        """Return the turns of the first `base` exchanges. Those with another model have no provider_state."""
        return [
            turn if (each.provider, each.model) == (provider, model) else _without_state(turn)
            for each in self.exchanges[:base]
            for turn in each.turns
        ]

    def response_id_for(self, provider: str, model: str, base: int) -> str | None:
        """Return the id under which the provider itself stores these exchanges, if it stores all of them."""
        last = self.exchanges[base - 1] if base else None
        if last is None or (last.provider, last.model, last.base) != (provider, model, base - 1):
            return None
        return last.response_id


def read_name(name: str) -> str:
    """Return the name of a conversation in its one spelling, or raise why it is none."""
    name = unicodedata.normalize("NFC", name.strip())
    if not name:
        raise ConfigurationError("The name of the conversation is blank.", hint="Write one, or leave it out.")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ConfigurationError(
            "The name of the conversation is too long, or has invisible characters.",
            hint=f"Write up to {_LONGEST_NAME} characters on one line, such as support-weekly.",
        )
    return name


# --- Records ----------------------------------------------------------------------------------------------------------


async def load_conversation(store: Store, name: str) -> StoredConversation | None:
    """Return the conversation of this name, or None if there is none."""
    record = await store.get(_key(name))
    return None if record is None else _read(_key(name), record, store.where)


async def append_exchange(store: Store, name: str, exchange: Exchange) -> StoredConversation:
    """Add an exchange to the conversation, unless it is in there already, and return the conversation."""
    key = _key(name)
    while True:
        found = await store.get(key)
        stored = (
            StoredConversation(name=name, began_at=exchange.at) if found is None else _read(key, found, store.where)
        )
        if any((each.run, each.call) == (exchange.run, exchange.call) for each in stored.exchanges):
            return stored
        stored = stored.model_copy(update={"exchanges": [*stored.exchanges, exchange]})
        record = {"at": exchange.at, "conversation": {**stored.model_dump(mode="json"), "version": VERSION}}
        if await store.swap(key, found, record, retention_s()):
            return stored


async def list_conversations(store: Store) -> list[StoredConversation]:
    """Return all conversations, the one that was added to last first."""
    found = [_read(key, record, store.where) async for key, record in store.scan(_PREFIX)]
    return sorted(found, key=lambda each: each.exchanges[-1].at if each.exchanges else each.began_at, reverse=True)


async def delete_conversation(store: Store, name: str) -> None:
    """Remove a conversation."""
    await store.delete(_key(name))


def check_size(store: Store, stored: StoredConversation) -> None:
    """Refuse to go on with a conversation that is too large to be stored once more."""
    size = len(encode_record(_key(stored.name), stored.model_dump(mode="json")))
    if size > _LARGEST:
        raise ConfigurationError(
            f"The conversation {stored.name!r} has grown to {size >> 20} MiB in {store.where}; {_LARGEST >> 20} is the"
            " most.",
            hint="Begin another one, with a summary of it as the first prompt, and pass long texts as files.",
        )


def is_conversation(record: Json) -> bool:
    """Return whether this is the record of a conversation, for the search for damage."""
    try:
        _read("", record, "")
    except ConfigurationError:
        return False
    return True


def _read(key: str, record: Json, where: str) -> StoredConversation:
    try:
        found = StoredConversation.model_validate(record["conversation"])
    except (PolluxError, LookupError) as error:
        problem = str(error)
    else:
        if found.version <= VERSION:
            return found
        raise ConfigurationError(
            f"The conversation {found.name!r} in {where} was written by a newer version of pollux_flows.",
            hint="Update pollux_flows here.",
        )
    raise damaged_record_error(key, where, problem)


def _key(name: str) -> str:
    # A digest, as a name may have any characters.
    return f"{_PREFIX}{digest('conversation', name)}"


def _without_state(turn: JsonObject) -> JsonObject:
    return {name: value for name, value in turn.items() if name != "provider_state"}


# --- A run that goes on with one --------------------------------------------------------------------------------------


@asynccontextmanager
async def lease_conversation(
    store: Store, name: str, owner: str, on_wait: Callable[[str], None]
) -> AsyncIterator[None]:
    """Have the conversation exclusively within; wait, after calling `on_wait`, while another run has it."""
    key = f"conversing/{digest('conversation', name)}"
    if key in _here.get():
        raise ConfigurationError(
            f"The conversation {name!r} is asked to go on from within itself, which would wait for ever.",
            hint="Let a tool ask in a conversation of another name.",
        )
    has_waited = False
    while (lease := await leases.acquire_lease(store, key, owner)) is None:
        if not has_waited and (other := leases.get_owner(await store.get(key), time.time())):
            has_waited = True
            on_wait(other)
        await leases.wait_for_release(store, key)
    token = _here.set(_here.get() | {key})
    try:
        async with leases.use_lease(lease):
            yield
    finally:
        _here.reset(token)


class RunRecords:
    """The records of one run about its exchanges: where they began, and the results of the tools that were called."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, digest("run", run)

    @property
    def run(self) -> str:
        """The run, as a digest."""
        return self._run

    async def load_bases(self, name: str, prompt: str) -> list[int]:
        """Return how long the conversation was each time that this run asked this prompt."""
        record = await self._store.get(self._base_key(name, prompt))
        return [] if record is None else list(record["bases"])

    async def add_base(self, name: str, prompt: str, base: int) -> None:
        """Record how long the conversation is, before the prompt is asked."""
        key = self._base_key(name, prompt)
        while True:
            found = await self._store.get(key)
            bases = [] if found is None else found["bases"]
            record = {"at": time.time(), "bases": sorted({*bases, base})}
            if base in bases or await self._store.swap(key, found, record, retention_s()):
                return

    async def load_tool_result(self, answer: str, tool_call: str) -> str | None:
        """Return the result of a tool call in an answer, or None if it has none yet."""
        record = await self._store.get(self._result_key(answer, tool_call))
        return None if record is None else str(record["content"])

    async def save_tool_result(self, answer: str, tool_call: str, content: str) -> None:
        """Save the result of a tool call, so that a retry sends the same."""
        await self._store.put(
            self._result_key(answer, tool_call), {"at": time.time(), "content": content}, retention_s()
        )

    def _base_key(self, name: str, prompt: str) -> str:
        return f"turn/{self._run}/{digest('turn', [name, prompt])}"

    def _result_key(self, answer: str, tool_call: str) -> str:
        return f"tool/{self._run}/{digest('tool', [answer, tool_call])}"
