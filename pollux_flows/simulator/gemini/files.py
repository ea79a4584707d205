"""Gemini's file endpoints: get, list, delete and download. Uploads are in `uploads.py`."""

from __future__ import annotations

import base64
from typing import Any

from pollux_flows.simulator.gemini import rules
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.simulator.timestamps import format_timestamp
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refusal, Reply

#: The origin in the URIs of files, at any address of the API.
ORIGIN = "https://generativelanguage.googleapis.com"
_PATH = "/{version:apiversion}/files"
_STATES = {"processing": "PROCESSING", "active": "ACTIVE", "failed": "FAILED"}
#: Only the outputs of batches can be downloaded, not uploaded files.
_GENERATED = "batch_output"


def as_json(file: StoredFile, version: str) -> dict[str, Any]:
    state = file.state
    body: dict[str, Any] = {
        "name": file.id,
        "mimeType": file.mime_type,
        "sizeBytes": str(file.size),
        "createTime": format_timestamp(file.created_at),
        "updateTime": format_timestamp(file.created_at),
        "sha256Hash": base64.b64encode(bytes.fromhex(file.sha256)).decode(),
        "uri": f"{ORIGIN}/{version}/{file.id}",
        "state": _STATES.get(state, "STATE_UNSPECIFIED"),
        "source": "GENERATED" if file.purpose == _GENERATED else "UPLOADED",
    }
    if file.filename:
        body["displayName"] = file.filename
    if file.expires_at is not None:
        body["expirationTime"] = format_timestamp(file.expires_at)
    if file.purpose == _GENERATED:
        body["downloadUri"] = f"{body['uri']}:download?alt=media"
    if state == "failed":
        body["error"] = {"code": 13, "message": "The file could not be processed."}
    return body


def find(call: Call, file_id: str) -> StoredFile:
    """Return an account's file; refuse with 403 if it does not exist or belongs to another account."""
    file = call.simulator.file_store.find("gemini", file_id, call.account)
    if file is None:
        raise Refusal(
            403, f"You do not have permission to access the File {file_id.removeprefix('files/')} or it may not exist."
        )
    return file


def find_active(call: Call, name: str) -> StoredFile:
    """Return an account's file if it is ready for use; refuse otherwise."""
    file = find(call, name)
    if file.state != "active":
        raise BadRequest(
            f"The File {name.removeprefix('files/')} is not in an ACTIVE state and usage is not allowed.",
            kind="FAILED_PRECONDITION",
        )
    return file


def name_conflict(name: str) -> Refusal:
    return Refusal(409, f"File {name} already exists.")


def _list(call: Call) -> Reply:
    files = call.simulator.file_store.list_owned("gemini", call.account)[::-1]
    page, following = rules.page(call, files, "ListFilesRequest")
    listed = [as_json(file, call.params["version"]) for file in page]
    return Reply({"files": listed, **following} if listed else following)


def _get(call: Call) -> Reply:
    return Reply(as_json(find(call, f"files/{call.params['id']}"), call.params["version"]))


def _delete(call: Call) -> Reply:
    call.simulator.file_store.delete(find(call, f"files/{call.params['id']}"))
    return Reply({})


def _content(call: Call) -> Reply:
    file = find(call, f"files/{call.params['id']}")
    if file.purpose != _GENERATED:
        raise BadRequest("Only generated files can be downloaded.", kind="FAILED_PRECONDITION")
    return Reply(file.spool, headers={"content-type": "application/octet-stream"})


OPERATIONS = (
    Operation("file.content", "GET", _PATH + "/{id}:download", _content),
    Operation("file.list", "GET", _PATH, _list),
    Operation("file.get", "GET", _PATH + "/{id}", _get),
    Operation("file.delete", "DELETE", _PATH + "/{id}", _delete),
)
