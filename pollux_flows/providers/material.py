"""Material: sources in the form in which they are sent."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, Protocol
from urllib.parse import urlsplit

from pollux_flows.address import file_name
from pollux_flows.errors import ConfigurationError, InternalError
from pollux_flows.source import Source
from pollux_flows.state.upload import Uploaded

Delivery = Literal["text", "inline", "upload", "link"]
"""The way a source is sent: as text, as bytes inside the request, as an uploaded file, or by its address only."""

IMAGES: Final = ("image/png", "image/jpeg", "image/webp", "image/gif")


@dataclass(frozen=True)
class Material:
    """A source ready to send, with its text, its bytes, or its uploaded file."""

    source: Source
    mime_type: str
    text: str | None = None
    data: bytes | None = None
    file: Uploaded | None = None

    @property
    def name(self) -> str:
        """Return a file name for the provider: the last part of the source's address."""
        return file_name(str(self.source.uri)) or "file"

    @cached_property  # all calls of a run share it
    def data_url(self) -> str:
        """The bytes as a data URL."""
        return f"data:{self.mime_type};base64,{base64.b64encode(self.data or b'').decode()}"

    @property
    def uploaded(self) -> Uploaded:
        """Return the uploaded file. Raises an InternalError if there is none."""
        if self.file is None:
            raise InternalError(f"The {self.source.source_type} source {self.name!r} was not uploaded.")
        return self.file


class InputsModule(Protocol):
    """The interface of `inputs.py`, which chooses the delivery of a source. Raises if the provider does not take it."""

    def delivery(self, source: Source, mime_type: str, size_bytes: int | None, /) -> Delivery: ...


def refusal(provider: str, source: Source, mime_type: str, hint: str) -> ConfigurationError:
    """Return the error for a kind of source that this provider does not accept."""
    kind = {"file": "file", "youtube": "YouTube video"}.get(source.source_type, "address")
    return ConfigurationError(f"{provider} accepts no {mime_type} {kind} ({source.identifier}).", hint=hint)


def check_size(provider: str, source: Source, size_bytes: int | None, limit: int, way_out: str) -> None:
    """Raise if the source is larger than the provider's limit."""
    if size_bytes is not None and size_bytes > limit:
        raise ConfigurationError(
            f"{source.identifier!r} has {size_bytes:,} bytes; {provider} takes at most {limit:,}.", hint=way_out
        )


def check_web(provider: str, source: Source, mime_type: str, schemes: tuple[str, ...] = ("http", "https")) -> None:
    """Raise if the source's address has a scheme that the provider does not open."""
    if urlsplit(str(source.uri)).scheme not in schemes:
        hint = f"Pass an {' or '.join(schemes)} address, or the file itself with Source.from_file."
        raise refusal(provider, source, mime_type, hint)
