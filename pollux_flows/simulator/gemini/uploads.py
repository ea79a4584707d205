"""Gemini's resumable uploads: the first request returns a URL, to which the client sends the chunks."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from pollux_flows.simulator.gemini import fields, rules
from pollux_flows.simulator.gemini.files import as_json, name_conflict
from pollux_flows.simulator.gemini.sessions import Session
from pollux_flows.simulator.stored_files import NameTaken, StoredFile
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refusal, Reply

LIMIT_BYTES = 2 * 1024 * 1024 * 1024
#: All chunks but the last are multiples of this.
GRANULARITY = 8 * 1024 * 1024
LIFETIME_S = 48 * 3600
_NAME = re.compile(r"files/[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_MIME_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(?:\s*;.*)?")
_DISPLAY_NAME_CHARS = 512
_PATH = "/upload/{version:apiversion}/files"


def _start(call: Call) -> Reply:
    headers = call.headers
    if headers.get("x-goog-upload-protocol") != "resumable" or headers.get("x-goog-upload-command") != "start":
        raise BadRequest("The simulator takes resumable uploads only: X-Goog-Upload-Protocol: resumable and "
                           "X-Goog-Upload-Command: start")  # fmt: skip
    file = rules.read_message({} if call.body is None else call.body, fields.CREATE_FILE).get("file") or {}
    size = _size(headers, file)
    name = file.get("name") or None
    if name is not None:
        _check_name(call, name)
    if len(file.get("displayName", "")) > _DISPLAY_NAME_CHARS:
        raise BadRequest("* CreateFileRequest.file.display_name: display_name must be at most 512 characters\n")
    session = Session(
        id=f"simulated-upload-{call.simulator.next_number():08d}",
        account=call.account,
        version=call.params["version"],
        name=name,
        display_name=file.get("displayName", ""),
        mime_type=_mime_type(headers, file),
        size=size,
        fails=_fails(call),
    )
    if not is_job_input(session.mime_type):
        session.spool.keep_little()
    call.simulator.gemini_uploads.add(session.id, session)
    url = f"{call.origin}/gemini/upload/{session.version}/files?upload_id={session.id}&upload_protocol=resumable"
    return Reply(
        {},
        headers={
            "x-goog-upload-url": url,
            "x-goog-upload-control-url": url,
            "x-goog-upload-status": "active",
            "x-goog-upload-chunk-granularity": str(GRANULARITY),
        },
    )


def _size(headers: Mapping[str, str], file: Mapping[str, Any]) -> int:
    announced = headers.get("x-goog-upload-header-content-length", "")
    if not re.fullmatch(r"\d{1,15}", announced, re.ASCII):
        raise BadRequest("Invalid or missing X-Goog-Upload-Header-Content-Length")
    size = int(announced)
    if str(file.get("sizeBytes", announced)) != str(size):
        raise BadRequest("file.size_bytes and X-Goog-Upload-Header-Content-Length differ")
    if size == 0:
        raise BadRequest("Upload size must be greater than zero")
    if size > LIMIT_BYTES:
        raise BadRequest(f"Media larger than {LIMIT_BYTES} bytes is not supported: {size} bytes")
    return size


def _mime_type(headers: Mapping[str, str], file: Mapping[str, Any]) -> str:
    announced = headers.get("x-goog-upload-header-content-type", "")
    mime_type = str(file.get("mimeType") or announced)
    if announced and mime_type != announced:
        raise BadRequest("file.mime_type and X-Goog-Upload-Header-Content-Type differ")
    # Batch input is sent as plain `jsonl`, which is not a MIME type, but accepted.
    if mime_type != "jsonl" and not _MIME_TYPE.fullmatch(mime_type):
        raise BadRequest(f"* CreateFileRequest.file.mime_type: Invalid MIME type: '{mime_type}'\n")
    return mime_type


def is_job_input(mime_type: str) -> bool:
    """Return whether batches read files of this type, so that their content is stored at any size."""
    return re.search(r"jsonl|ndjson|json-?lines", mime_type) is not None


def _check_name(call: Call, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadRequest(
            "* CreateFileRequest.file.name: Name may only contain lowercase alphanumeric characters or dashes (-), "
            "cannot begin or end with a dash, and has up to 40 characters after 'files/'.\n"
        )
    # All accounts share one namespace of files.
    if any(file.id == name and file.provider == "gemini" and file.is_there for file in call.simulator.files):
        raise name_conflict(name)


async def _receive(call: Call, incoming: AsyncIterator[bytes]) -> Any:
    session = _session(call)
    command = call.headers.get("x-goog-upload-command", "")
    if "upload" in command:
        session.spool.rewind(session.acknowledged)
        async for piece in incoming:
            if session.spool.size <= session.size:
                session.spool.write(piece)
    # The chunk is accepted later; by then a client that timed out may have sent it again.
    call.received = session.spool.mark()
    return {
        "upload_id": session.id,
        "command": command,
        "offset": call.headers.get("x-goog-upload-offset", ""),
        "name": session.name,
        "filename": session.display_name,
        "mime_type": session.mime_type,
        "size": call.received.size - session.acknowledged.size,
    }


def _session(call: Call) -> Session:
    session = call.simulator.gemini_uploads.get(call.query["upload_id"])
    if session is None:
        raise Refusal(404, "Upload has already been terminated, or was never begun.")
    return session


def _chunk(call: Call) -> Reply:
    session = _session(call)
    commands = {word.strip() for word in call.headers.get("x-goog-upload-command", "").split(",")}
    match sorted(commands):
        case ["query"]:
            headers = {"x-goog-upload-status": "active", "x-goog-upload-size-received": str(session.acknowledged.size)}
            return Reply(b"", headers=headers)
        case ["cancel"]:
            call.simulator.gemini_uploads.remove(session.id)
            session.spool.close()
            return Reply(b"", headers={"x-goog-upload-status": "cancelled"})
        case ["finalize"] | ["upload"] | ["finalize", "upload"]:
            pass
        case _:
            raise BadRequest("Invalid X-Goog-Upload-Command: expected upload, finalize, query or cancel")
    received = session.acknowledged
    if "upload" in commands and call.received is not None:
        received = call.received
        _check_chunk(call, session, received.size, is_last="finalize" in commands)
    if "finalize" in commands and received.size != session.size:
        raise BadRequest(f"Upload was finalized after {received.size} bytes, but {session.size} were announced.")
    session.acknowledged = received
    session.fails |= _fails(call)
    if "finalize" not in commands:
        return Reply(b"", headers={"x-goog-upload-status": "active"})
    file = _store(call, session)
    return Reply({"file": as_json(file, session.version)}, headers={"x-goog-upload-status": "final"})


def _check_chunk(call: Call, session: Session, end: int, *, is_last: bool) -> None:
    offset, length = call.headers.get("x-goog-upload-offset", ""), end - session.acknowledged.size
    if offset != str(session.acknowledged.size):
        raise BadRequest(
            f"X-Goog-Upload-Offset is '{offset}', but {session.acknowledged.size} bytes have been received so far."
        )
    if end > session.size:
        raise BadRequest(f"More bytes were sent than the {session.size} that were announced.")
    if not is_last and length % GRANULARITY:
        raise BadRequest(f"A chunk of {length} bytes that is not the last must be a multiple of {GRANULARITY} bytes.")


def _store(call: Call, session: Session) -> StoredFile:
    simulator = call.simulator
    now = simulator.now()
    file = StoredFile.of(
        session.spool,
        provider="gemini",
        id=session.name or f"files/simulated{simulator.next_number():08d}{session.acknowledged.sha256[:8]}",
        account=session.account,
        filename=session.display_name,
        mime_type=session.mime_type,
        created_at=now,
        expires_at=now + LIFETIME_S,
        ready_at=now + simulator.processing_s,
        fails=session.fails,
    )
    simulator.gemini_uploads.remove(session.id)
    try:
        simulator.file_store.add(file)
    except NameTaken:
        session.spool.close()
        raise name_conflict(file.id) from None
    call.stored = file.id
    return file


def _fails(call: Call) -> bool:
    return call.fault is not None and call.fault.kind == "processing_failed"


OPERATIONS = (
    Operation(
        "file.upload_chunk",
        "POST",
        _PATH,
        _chunk,
        receive=_receive,
        parameter="upload_id",
        needs_key=False,
        # Without it, the SDK sleeps and sends the chunk again, at any status.
        headers={"x-goog-upload-status": "final"},
    ),
    Operation("file.create", "POST", _PATH, _start),
)
