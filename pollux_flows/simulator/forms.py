"""Upload forms: their fields and their one file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from pollux_flows.simulator.multipart import BadMultipart, boundary_of, read_parts
from pollux_flows.simulator.spool import Spool
from pollux_flows.simulator.wire import BadRequest, Call

_FIELD_LIMIT = 64 * 1024


@dataclass
class Form:
    fields: dict[str, str] = field(default_factory=dict)
    #: The file's name as the client sent it; None when the form has no file.
    filename: str | None = None
    content_type: str | None = None
    spool: Spool = field(default_factory=Spool)

    @property
    def has_file(self) -> bool:
        return self.filename is not None

    def extend_field(self, name: str, piece: bytes) -> None:
        text = self.fields.get(name, "") + piece.decode("utf-8", "replace")
        if len(text) > _FIELD_LIMIT:
            raise BadMultipart(f"the field {name!r} is too long")
        self.fields[name] = text

    def describe(self) -> dict[str, Any]:
        """Return the form for the log, without the file's bytes."""
        if not self.has_file:
            return dict(self.fields)
        file = {
            "filename": self.filename,
            "mime_type": self.content_type,
            "size": self.spool.size,
            "sha256": self.spool.sha256,
        }
        return {**self.fields, "file": file}


async def read_form(call: Call, incoming: AsyncIterator[bytes], stores_all: Callable[[dict[str, str]], bool]) -> Form:
    """Read a form with a file in its field `file`.

    `stores_all` decides, from the fields before the file, whether its content is stored at any size.
    """
    form = call.upload = Form()
    call.spools.append(form.spool)
    try:
        async for part, piece in read_parts(incoming, boundary_of(call.headers.get("content-type", ""))):
            if part.name != "file" or part.filename is None:
                form.extend_field(part.name, piece)
                continue
            if not form.has_file:
                form.filename, form.content_type = part.filename, part.content_type
                if not stores_all(form.fields):
                    form.spool.keep_little()
            form.spool.write(piece)
    except BadMultipart as problem:
        raise BadRequest(f"Could not parse multipart form: {problem}") from None
    return form
