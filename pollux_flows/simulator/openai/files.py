"""OpenAI's file endpoints below `/files`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pollux_flows.simulator.forms import Form, read_form
from pollux_flows.simulator.media import extension, guess_type
from pollux_flows.simulator.openai.attachments import find_file
from pollux_flows.simulator.openai.paging import list_reply, page
from pollux_flows.simulator.openai.rules import refusal_for
from pollux_flows.simulator.shape import Mismatch, Path, anything, integer, one_of, record
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refusal, Reply

LIMIT_BYTES = 512 * 1024 * 1024
BATCH_LIMIT_BYTES = 200 * 1024 * 1024
LIST_LIMIT = 10_000
_BATCH_LIFETIME_S = 30 * 86_400
#: The purposes of files that can be downloaded: inputs and outputs of jobs.
_DOWNLOADABLE = frozenset({"batch", "batch_output", "fine-tune", "fine-tune-results", "evals"})


def _seconds(value: Any, path: Path) -> None:
    integer(3600, 2_592_000)(int(value) if value.isascii() and value.isdigit() else value, path)


_FORM = record(
    {"file": anything, "purpose": one_of("assistants", "batch", "fine-tune", "vision", "user_data", "evals")},
    {"expires_after": record({"anchor": one_of("created_at"), "seconds": _seconds})},
)


async def _receive(call: Call, incoming: AsyncIterator[bytes]) -> Any:
    form = await read_form(call, incoming, lambda fields: fields.get("purpose", "batch") in _DOWNLOADABLE)
    return form.describe()


def _create(call: Call) -> Reply:
    form = call.upload or Form()
    _check(form)
    purpose = form.fields["purpose"]
    if purpose not in _DOWNLOADABLE:
        form.spool.keep_little()
    now = call.simulator.now()
    lifetime_s = form.fields.get("expires_after[seconds]", _BATCH_LIFETIME_S if purpose == "batch" else None)
    filename = form.filename or ""
    file = StoredFile.of(
        form.spool,
        provider="openai",
        id=f"file-{call.simulator.next_number():08d}{form.spool.sha256[:8]}",
        account=call.account,
        filename=filename,
        mime_type=form.content_type or guess_type(filename),
        created_at=now,
        purpose=purpose,
        expires_at=None if lifetime_s is None else now + int(lifetime_s),
    )
    call.simulator.file_store.add(file)
    call.stored = file.id
    return Reply(as_json(file))


def _check(form: Form) -> None:
    fields: dict[str, Any] = {}
    for name, value in form.fields.items():
        outer, bracket, inner = name.partition("[")
        if not bracket:
            fields[name] = value
            continue
        if not isinstance(fields.get(outer), dict):
            fields[outer] = {}
        fields[outer][inner.removesuffix("]")] = value
    # A plain field of that name is not a file.
    fields.pop("file", None)
    if form.has_file:
        fields["file"] = form.filename
    try:
        _FORM(fields, ())
    except Mismatch as mismatch:
        raise refusal_for(mismatch) from None
    purpose, size = fields["purpose"], form.spool.size
    limit = BATCH_LIMIT_BYTES if purpose == "batch" else LIMIT_BYTES
    if size > limit:
        raise Refusal(413, f"Maximum content size limit ({limit}) exceeded ({size} bytes read)", param="file")
    if size == 0:
        raise BadRequest("File is empty. Please try again with a different file.", param="file")
    if purpose == "batch" and extension(form.filename or "") != ".jsonl":
        raise BadRequest("Invalid file format for Batch API. Must be .jsonl", param="file")


def as_json(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at),
        "expires_at": None if file.expires_at is None else int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def _list(call: Call) -> Reply:
    """List files, newest first unless `order` is `asc`."""
    files = call.simulator.file_store.list_owned("openai", call.account)
    order = call.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise refusal_for(Mismatch(("order",), "value", "'asc' and 'desc'", order))
    if order == "desc":
        files.reverse()
    if "purpose" in call.query:
        files = [file for file in files if file.purpose == call.query["purpose"]]
    found, more = page(call, files, most=LIST_LIMIT, default=LIST_LIMIT, unknown="No such File object: {}")
    return list_reply([as_json(file) for file in found], more=more)


def _get(call: Call) -> Reply:
    return Reply(as_json(_find(call)))


def _delete(call: Call) -> Reply:
    file = _find(call)
    call.simulator.file_store.delete(file)
    return Reply({"id": file.id, "object": "file", "deleted": True})


def _content(call: Call) -> Reply:
    file = _find(call)
    if file.purpose not in _DOWNLOADABLE:
        raise BadRequest(f"Not allowed to download files of purpose: {file.purpose}")
    return Reply(file.spool, headers={"content-type": "application/octet-stream"})


def _find(call: Call) -> StoredFile:
    return find_file(call, call.params["id"], "id")


OPERATIONS = (
    Operation("file.create", "POST", "/files", _create, receive=_receive),
    Operation("file.list", "GET", "/files", _list),
    Operation("file.get", "GET", "/files/{id}", _get),
    Operation("file.delete", "DELETE", "/files/{id}", _delete),
    Operation("file.content", "GET", "/files/{id}/content", _content),
)
