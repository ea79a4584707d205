"""Damage: records that are not what they should be, found by looking at each."""

from __future__ import annotations

import time
from typing import Any

from pydantic import Field

from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError
from pollux_flows.files.content import Content
from pollux_flows.state.answer_record import read_answer, read_pointer
from pollux_flows.state.kinds import is_removable, kind_of
from pollux_flows.state.leases import get_owner, strip_lease
from pollux_flows.state.store import Row, Store
from pollux_flows.state.upload import Entry, UploadKey


class Damage(Record):
    """The names of damaged records."""

    removed: list[str] = Field(default_factory=list)
    left: list[str] = Field(default_factory=list, description="They tell what is still at a provider, and whose it is.")


async def remove_damaged(store: Store, *, dry_run: bool = False) -> Damage:
    """Remove what is damaged and may go."""
    damaged = [row async for row in store.list_rows() if not row.expired and not _is_well(row)]
    going = [row for row in damaged if is_removable(row.key)]
    gone = going if dry_run else await store.delete_rows(going)
    left = [row for row in damaged if not is_removable(row.key)]
    return Damage(removed=[row.key for row in gone], left=[row.key for row in left])


def _is_well(row: Row) -> bool:
    if row.record is None:
        return False
    try:
        _read(row.key, row.record)
    except (ConfigurationError, LookupError, TypeError, ValueError):
        return False
    return True


def _read(key: str, record: dict[str, Any]) -> None:
    """As those would who use it."""
    get_owner(record, time.time())
    match kind_of(key):
        case "answer":
            read_answer(key, record, "")
        case "pointer":
            read_pointer(key, record, "")
        case "run":
            _ = record["run"] + "", record["at"] + 0.0
        case "hash":
            Content.model_validate(record)
        case "upload" if strip_lease(record):
            Entry.from_record(record)
        case "owner":
            UploadKey.model_validate(record)
        case "account":
            bytes.fromhex(record["salt"])
