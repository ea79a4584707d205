"""Stored conversations: concurrent writers add each exchange once, and none is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pollux_flows.config import Target
from pollux_flows.errors import ConfigurationError
from pollux_flows.state import conversations
from pollux_flows.state.conversations import (
    Exchange,
    RunRecords,
    StoredConversation,
    append_exchange,
    check_size,
    delete_conversation,
    lease_conversation,
    list_conversations,
    load_conversation,
)
from pollux_flows.state.identity import digest
from pollux_flows.state.maintenance import remove_damaged
from pollux_flows.state.store import Store
from tests.state.places import damage


def make_exchange(call: str, base: int = 0) -> Exchange:
    turns = [{"role": "user", "content": f"{call}?"}, {"role": "assistant", "content": "Yes.", "provider_state": {}}]
    return Exchange(run="r", call=call, at=1e9 + base, base=base, turns=turns, response_id=call, **dict(OPENAI))


OPENAI = Target(provider="openai", model="m")


async def test_an_exchange_is_added_once(store: Store) -> None:
    await append_exchange(store, "a", make_exchange("one"))
    again = await append_exchange(store, "a", make_exchange("one"))
    assert [each.call for each in again.exchanges] == ["one"]
    assert await load_conversation(store, "a") == again
    assert await load_conversation(store, "b") is None


async def test_no_concurrent_exchange_is_lost(store: Store) -> None:
    await asyncio.gather(*(append_exchange(store, "a", make_exchange(f"{n}")) for n in range(20)))
    found = await load_conversation(store, "a")
    assert found is not None
    assert {each.call for each in found.exchanges} == {f"{n}" for n in range(20)}


async def test_a_response_id_is_used_only_if_the_provider_stores_all_exchanges(store: Store) -> None:
    await append_exchange(store, "a", make_exchange("one"))
    await append_exchange(store, "a", make_exchange("two", 1))
    found = await append_exchange(store, "a", make_exchange("late", 1))
    assert found.response_id_for(OPENAI, 2) == "two"
    assert found.response_id_for(OPENAI, 3) is None
    assert "provider_state" in found.turns_for(OPENAI, 1)[1]


@pytest.mark.parametrize(
    ("change", "old_is_sent"),
    [
        ({}, True),
        ({"use_mock": True}, True),
        ({"base_url": "http://127.0.0.1:9/v1"}, True),
        ({"model": "other"}, False),
        ({"provider": "anthropic"}, False),
    ],
)
def test_provider_state_is_sent_only_to_the_target_that_returned_it(change: dict[str, Any], old_is_sent: bool) -> None:
    """An earlier version recorded no more than provider and model, so these decide for its exchanges."""
    target = OPENAI.model_copy(update=change)
    recorded = make_exchange("one")
    earlier = Exchange.model_validate_json(recorded.model_dump_json(exclude={"base_url", "use_mock"}))
    for each, is_sent in ((recorded, not change), (earlier, old_is_sent)):
        found = StoredConversation(name="a", began_at=1e9, exchanges=[each])
        assert ("provider_state" in found.turns_for(target, 1)[1]) is is_sent
        assert found.response_id_for(target, 1) == ("one" if is_sent else None)


async def test_conversations_are_listed_by_their_last_exchange(store: Store) -> None:
    for name, base in (("old", 0), ("new", 5), ("middle", 3)):
        await append_exchange(store, name, make_exchange("one", base))
    assert [each.name for each in (await list_conversations(store))[0]] == ["new", "middle", "old"]
    assert await delete_conversation(store, "new")
    assert not await delete_conversation(store, "new")
    assert [each.name for each in (await list_conversations(store))[0]] == ["middle", "old"]


async def test_a_damaged_conversation_hides_no_other_and_can_be_deleted(store: Store, address: str) -> None:
    for name in ("valid", "edited", "cut"):
        await append_exchange(store, name, make_exchange("one"))
    edited, cut = (f"conversation/{digest('conversation', name)}" for name in ("edited", "cut"))
    await store.put(edited, {"at": 1.0, "conversation": {"name": "edited"}})
    damage(address, cut, b"{")
    found, unreadable = await list_conversations(store)
    assert [each.name for each in found] == ["valid"]
    assert unreadable.keys() == {edited, cut}
    assert f"pollux-flows conversations delete {cut}" in unreadable[cut]
    assert set((await remove_damaged(store)).left) == {edited, cut}
    assert await delete_conversation(store, "edited")
    assert await delete_conversation(store, cut)
    assert await list_conversations(store) == (found, {})


async def test_a_second_run_waits_for_the_lease_of_a_conversation(store: Store) -> None:
    order: list[str] = []
    first_began = asyncio.Event()

    async def work(name: str) -> None:
        async with lease_conversation(store, "a", name, lambda other: order.append(f"waits for {other}")):
            order.append(name)
            first_began.set()
            await asyncio.sleep(0.1)

    first = asyncio.create_task(work("one"))
    await first_began.wait()
    await asyncio.gather(first, work("two"))
    assert order == ["one", "waits for one", "two"]


async def test_a_conversation_cannot_be_leased_within_its_own_lease(store: Store) -> None:
    async with lease_conversation(store, "a", "one", print), lease_conversation(store, "b", "one", print):
        with pytest.raises(ConfigurationError, match="by one of its own tools"):
            async with lease_conversation(store, "a", "two", print):
                pass


async def test_newer_damaged_and_oversized_conversations_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await append_exchange(store, "a", make_exchange("one"))
    (key,) = [each async for each in store.list_keys("conversation/")]
    record = await store.get(key)
    assert record is not None
    await store.put(key, {**record, "conversation": {**record["conversation"], "version": 2, "new": 1}})
    with pytest.raises(ConfigurationError, match="newer version"):
        await append_exchange(store, "a", make_exchange("two", 1))
    assert (await remove_damaged(store)).left == []
    await store.put(key, {**record, "conversation": {"name": "a"}})
    with pytest.raises(ConfigurationError, match="damaged"):
        await load_conversation(store, "a")
    assert (await remove_damaged(store)).left == [key]
    monkeypatch.setattr(conversations, "_LARGEST", 100)
    with pytest.raises(ConfigurationError, match="Start a new one"):
        check_size(store, found)


async def test_records_of_a_run_are_invisible_to_other_runs(store: Store) -> None:
    one, two = RunRecords(store, "one"), RunRecords(store, "two")
    await asyncio.gather(*(one.add_base("a", "Why?", base) for base in (2, 0, 2)))
    assert await one.load_bases("a", "Why?") == [0, 2]
    assert await two.load_bases("a", "Why?") == []
    call = {"id": "call_0", "name": "get_weather", "arguments": '{"city": "Oslo"}'}
    await one.save_tool_result("answer", call, "clear")
    assert await one.load_tool_result("answer", call) == "clear"
    assert await one.load_tool_result("answer", {**call, "arguments": '{"city": "Rome"}'}) is None
    assert await one.load_tool_result("answer", {**call, "name": "get_news"}) is None
    assert await two.load_tool_result("answer", call) is None
