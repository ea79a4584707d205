"""Conversations: stores conversations by name, so that a later run on any worker can continue them.

A conversation is one record, a list of exchanges. An exchange is one prompt with the tool calls, their results and the
answer. A complete exchange is added in one write, and only if the record has not changed since it was read, so no
exchange is lost or added in part. An exchange names the call under which the journal has its first answer. A retry
finds that answer there, and so does not add its exchange a second time.

While a run works on an exchange, it has the lease on the conversation, and other runs wait. Before a run sends a
request, it records the length of the conversation. If the run is killed and other runs continue the conversation
meanwhile, its retry still finds its own answers, which belong to the shorter conversation.

A conversation is stored for as long as answers are, counted from its last exchange. No pruning removes it earlier.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final

from pydantic import Field

from pollux_flows.config import ProviderName, Target
from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.plain import JsonObject
from pollux_flows.state import leases
from pollux_flows.state.identity import digest
from pollux_flows.state.retention import retention_s
from pollux_flows.state.store import Json, Store, damaged_record_error, encode_record

VERSION: Final = 1
"""The format version of a stored conversation, raised when earlier versions of this package would misread one."""

_PREFIX: Final = "conversation/"
_LONGEST_NAME: Final = 200
# Several times the largest context of a model.
_LARGEST: Final = 16 << 20
ToolCall = Mapping[str, str]
"""A tool call as in an envelope: id, name and arguments."""

_leased_here: Final[ContextVar[frozenset[str]]] = ContextVar("pollux_flows_conversations", default=frozenset())


class Exchange(Record):
    """One prompt with its tool calls, their results and the answer."""

    run: str = Field(description="The run that asked, as a digest.")
    call: str = Field(description="The identity of its first call, under which the journal has the answer.")
    at: float
    base: int = Field(description="The number of exchanges before it when its prompt was sent.")
    provider: ProviderName
    model: str
    turns: list[JsonObject]
    response_id: str | None = None
    base_url: str | None = None
    use_mock: bool | None = Field(
        default=None, description="None in a record of an earlier version, which has no base_url either."
    )

    def is_by(self, target: Target) -> bool:
        """Return whether this target wrote the answer, and so accepts the signatures and ids in it."""
        if (self.provider, self.model) != (target.provider, target.model):
            return False
        return self.use_mock is None or (self.base_url, self.use_mock) == (target.base_url, target.use_mock)


class StoredConversation(Record):
    """A conversation, as it is stored."""

    version: int = VERSION
    name: str
    began_at: float
    exchanges: list[Exchange] = Field(default_factory=list)

    def turns_for(self, target: Target, base: int) -> list[JsonObject]:
        """Return the turns of the first `base` exchanges, without the provider_state of other targets."""
        return [
            turn if each.is_by(target) else _without_state(turn)
            for each in self.exchanges[:base]
            for turn in each.turns
        ]

    def response_id_for(self, target: Target, base: int) -> str | None:
        """Return the id under which the provider stores these exchanges, or None unless it stores all of them."""
        last = self.exchanges[base - 1] if base else None
        if last is None or not last.is_by(target) or last.base != base - 1:
            return None
        return last.response_id


def normalize_name(name: str) -> str:
    """Return the name of a conversation in its normal form, or raise a ConfigurationError if it is not valid."""
    name = unicodedata.normalize("NFC", name.strip())
    if not name:
        raise ConfigurationError("The name of the conversation is blank.", hint="Enter a name, or omit it.")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ConfigurationError(
            "The name of the conversation is too long, or has invisible characters.",
            hint=f"Use up to {_LONGEST_NAME} characters on one line, such as support-weekly.",
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


async def list_conversations(store: Store) -> tuple[list[StoredConversation], dict[str, str]]:
    """Return all conversations, the latest first, and the problems of unreadable ones by their records' keys."""
    found, unreadable = [], {}
    for key in [key async for key in store.list_keys(_PREFIX)]:
        try:
            record = await store.get(key)
            found += [] if record is None else [_read(key, record, store.where)]
        except ConfigurationError as error:
            unreadable[key] = str(error)
    found.sort(key=lambda each: each.exchanges[-1].at if each.exchanges else each.began_at, reverse=True)
    return found, unreadable


async def delete_conversation(store: Store, name: str) -> bool:
    """Delete a conversation, even an unreadable one, and return whether there was one.

    The key of its record is accepted as well, as the name may be unreadable.
    """
    wanted = {_key(name), name}
    keys = [key async for key in store.list_keys(_PREFIX) if key in wanted]
    await store.delete(*keys)
    return bool(keys)


def check_size(store: Store, stored: StoredConversation) -> None:
    """Raise a ConfigurationError if a conversation is too large to be continued."""
    size = len(encode_record(_key(stored.name), stored.model_dump(mode="json")))
    if size > _LARGEST:
        raise ConfigurationError(
            f"The conversation {stored.name!r} in {store.where} has {size >> 20} MiB; the limit is"
            f" {_LARGEST >> 20} MiB.",
            hint="Start a new one with a summary as the first prompt, and pass long texts as files.",
        )


def is_conversation(record: Json) -> bool:
    """Return whether this is an undamaged record of a conversation, perhaps of a newer version."""
    try:
        _read("", record, "")
    except _NewerError:
        return True
    except ConfigurationError:
        return False
    return True


class _NewerError(ConfigurationError):
    """A newer version has written the record."""


def _read(key: str, record: Json, where: str) -> StoredConversation:
    content = record.get("conversation")
    known = content if isinstance(content, dict) else {}
    if isinstance(version := known.get("version"), int) and version > VERSION:
        raise _NewerError(
            f"The conversation {known.get('name', key)!r} in {where} was written by a newer version of pollux_flows.",
            hint="Update pollux_flows on this machine.",
        )
    try:
        return StoredConversation.model_validate(content)
    except PolluxError as error:
        problem = str(error)
    raise damaged_record_error(key, where, problem)


def _key(name: str) -> str:
    # A digest, as a name may contain any character.
    return f"{_PREFIX}{digest('conversation', name)}"


def _without_state(turn: JsonObject) -> JsonObject:
    return {name: value for name, value in turn.items() if name != "provider_state"}


# --- Continuing a conversation ----------------------------------------------------------------------------------------


@asynccontextmanager
async def lease_conversation(
    store: Store, name: str, owner: str, on_wait: Callable[[str], None]
) -> AsyncIterator[None]:
    """Have the lease on the conversation within the block; while another run has it, call `on_wait` and wait."""
    key = f"conversing/{digest('conversation', name)}"
    if key in _leased_here.get():
        raise ConfigurationError(
            f"The conversation {name!r} cannot be continued by one of its own tools: that would wait forever.",
            hint="Use a conversation with another name in the tool.",
        )
    has_waited = False
    while (lease := await leases.acquire_lease(store, key, owner)) is None:
        if not has_waited and (other := leases.get_owner(await store.get(key), time.time())):
            has_waited = True
            on_wait(other)
        await leases.wait_for_release(store, key)
    token = _leased_here.set(_leased_here.get() | {key})
    try:
        async with leases.use_lease(lease):
            yield
    finally:
        _leased_here.reset(token)


class RunRecords:
    """The records of one run about its exchanges: their positions in a conversation, and the tool results."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, digest("run", run)

    @property
    def run(self) -> str:
        """The run, as a digest."""
        return self._run

    async def load_bases(self, name: str, prompt: str) -> list[int]:
        """Return the length of the conversation each time this run sent this prompt."""
        record = await self._store.get(self._base_key(name, prompt))
        return [] if record is None else list(record["bases"])

    async def add_base(self, name: str, prompt: str, base: int) -> None:
        """Record the length of the conversation before the prompt is sent."""
        key = self._base_key(name, prompt)
        while True:
            found = await self._store.get(key)
            bases = [] if found is None else found["bases"]
            record = {"at": time.time(), "bases": sorted({*bases, base})}
            if base in bases or await self._store.swap(key, found, record, retention_s()):
                return

    async def load_tool_result(self, answer: str, tool_call: ToolCall) -> str | None:
        """Return the result of a tool call in an answer, or None if it has none yet."""
        record = await self._store.get(self._result_key(answer, tool_call))
        return None if record is None else str(record["content"])

    async def save_tool_result(self, answer: str, tool_call: ToolCall, content: str) -> None:
        """Save the result of a tool call, so that a retry sends the same result."""
        await self._store.put(
            self._result_key(answer, tool_call), {"at": time.time(), "content": content}, retention_s()
        )

    def _base_key(self, name: str, prompt: str) -> str:
        return f"turn/{self._run}/{digest('turn', [name, prompt])}"

    def _result_key(self, answer: str, tool_call: ToolCall) -> str:
        # An id alone is not unique: some models number the tool calls of each answer from zero.
        parts = [tool_call[part] for part in ("id", "name", "arguments")]
        return f"tool/{self._run}/{digest('tool', [answer, *parts])}"
