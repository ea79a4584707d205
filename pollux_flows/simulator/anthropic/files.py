"""Anthropic's file endpoints below `/v1/files`."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator
from typing import Any

from pollux_flows.simulator.anthropic.rules import check_version, page_limit
from pollux_flows.simulator.forms import Form, read_form
from pollux_flows.simulator.media import guess_type
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.simulator.timestamps import format_timestamp
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refusal, Reply

LIMIT_BYTES = 500 * 1024 * 1024
_IDS_LIMIT = 100
_LIFETIME_S = (3600, 7_776_000)
_FILENAME = re.compile(r'[^<>:"|?*\\/\x00-\x1f]{1,255}')


async def _receive(call: Call, incoming: AsyncIterator[bytes]) -> Any:
    # Uploaded files cannot be downloaded, so large content need not be stored.
    form = await read_form(call, incoming, lambda _: False)
    return form.describe()


def _create(call: Call) -> Reply:
    check_version(call)
    form = call.upload or Form()
    if not form.has_file:
        raise BadRequest("file: Field required")
    if unknown := sorted(form.fields.keys() - {"expires_in_seconds"}):
        raise BadRequest(f"{unknown[0]}: Extra inputs are not permitted")
    now = call.simulator.now()
    expires_at = _expiry(form.fields.get("expires_in_seconds"), now)
    if form.spool.size == 0:
        raise BadRequest("file: File must not be empty")
    if form.spool.size > LIMIT_BYTES:
        raise Refusal(413, f"File too large: {form.spool.size} bytes, and the maximum is {LIMIT_BYTES}")
    mime_type = form.content_type or guess_type(form.filename or "")
    file = StoredFile.of(
        form.spool,
        provider="anthropic",
        id=f"file_{call.simulator.next_number():08d}{form.spool.sha256[:8]}",
        account=call.account,
        filename=_filename(form.filename or "", mime_type),
        mime_type=mime_type,
        created_at=now,
        expires_at=expires_at,
    )
    call.simulator.file_store.add(file)
    call.stored = file.id
    return Reply(as_json(file))


def _filename(path: str, mime_type: str) -> str:
    """Return the last component of the path that the client sent; refuse an invalid one."""
    name = re.split(r"[/\\]", path)[-1]
    if not name:
        return f"unnamed{mimetypes.guess_extension(mime_type) or ''}"
    if not _FILENAME.fullmatch(name):
        raise BadRequest(
            "Invalid filename: must be between 1 and 255 characters without forbidden characters or control codes"
        )
    return name


def _expiry(seconds: str | None, now: float) -> float | None:
    if seconds is None:
        return None
    if not re.fullmatch(r"\d{1,12}", seconds, re.ASCII):
        raise BadRequest("expires_in_seconds: Input should be a valid integer")
    least, most = _LIFETIME_S
    if int(seconds) < least:
        raise BadRequest(f"expires_in_seconds: Input should be greater than or equal to {least}")
    if int(seconds) > most:
        raise BadRequest(f"expires_in_seconds: Input should be less than or equal to {most}")
    return now + int(seconds)


def as_json(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "type": "file",
        "filename": file.filename,
        "mime_type": file.mime_type,
        "size_bytes": file.size,
        "created_at": format_timestamp(file.created_at),
        "expires_at": None if file.expires_at is None else format_timestamp(file.expires_at),
        "downloadable": False,
    }


def _list(call: Call) -> Reply:
    """List files page by page, newest first, or those requested by id."""
    check_version(call)
    files = call.simulator.file_store.list_owned("anthropic", call.account)[::-1]
    ids = {value for name, value in call.query_pairs if name in ("ids", "ids[]")}
    if ids:
        if call.query.keys() & {"page", "limit"}:
            raise BadRequest("ids: Cannot be combined with `page` or `limit`")
        if len(ids) > _IDS_LIMIT:
            raise BadRequest(f"ids: List should have at most {_IDS_LIMIT} items after validation, not {len(ids)}")
        return Reply({"data": [as_json(file) for file in files if file.id in ids], "next_page": None})
    limit = page_limit(call)
    start = _after(files, call.query.get("page"))
    page = files[start : start + limit]
    more = start + limit < len(files)
    return Reply(
        {"data": [as_json(file) for file in page], "next_page": f"page_{page[-1].id}" if more and page else None}
    )


def _after(files: list[StoredFile], cursor: str | None) -> int:
    """Return the index at which the page after the cursor begins."""
    if not cursor:
        return 0
    for place, file in enumerate(files):
        if cursor == f"page_{file.id}":
            return place + 1
    raise BadRequest("page: Invalid page cursor")


def _get(call: Call) -> Reply:
    check_version(call)
    return Reply(as_json(find(call, call.params["id"])))


def _delete(call: Call) -> Reply:
    check_version(call)
    file = find(call, call.params["id"])
    call.simulator.file_store.delete(file)
    return Reply({"id": file.id, "type": "file_deleted"})


def _content(call: Call) -> Reply:
    check_version(call)
    file = find(call, call.params["id"])
    raise BadRequest(f"File is not downloadable: {file.id}", code="file_not_downloadable")


def find(call: Call, file_id: str) -> StoredFile:
    file = call.simulator.file_store.find_any("anthropic", file_id, call.account)
    if file is not None and file.state == "expired":
        raise Refusal(404, f"File has expired: {file_id}", code="file_expired")
    if file is None or not file.is_there:
        raise Refusal(404, f"File not found: {file_id}")
    return file


OPERATIONS = (
    Operation("file.create", "POST", "/v1/files", _create, receive=_receive),
    Operation("file.list", "GET", "/v1/files", _list),
    Operation("file.get", "GET", "/v1/files/{id}", _get),
    Operation("file.delete", "DELETE", "/v1/files/{id}", _delete),
    Operation("file.content", "GET", "/v1/files/{id}/content", _content),
)
