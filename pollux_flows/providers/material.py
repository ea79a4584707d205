"""Material: sources in the form they are sent in."""

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
"""How a source travels: as text, as bytes inside the request, as an uploaded file, or by its address alone."""

IMAGES: Final = ("image/png", "image/jpeg", "image/webp", "image/gif")


@dataclass(frozen=True)
class Material:
    """A source with what it takes to send it: its text, its bytes, or the file that the provider has of it."""

    source: Source
    mime_type: str
    text: str | None = None
    data: bytes | None = None
    file: Uploaded | None = None

    @property
    def name(self) -> str:
        """A file name for the provider: of the address only its last part."""
        return file_name(str(self.source.uri)) or "file"

    @cached_property  # all calls of a run share it
    def data_url(self) -> str:
        """The bytes as an address that holds them."""
        return f"data:{self.mime_type};base64,{base64.b64encode(self.data or b'').decode()}"

    @property
    def uploaded(self) -> Uploaded:
        """The file that the provider has of it."""
        if self.file is None:
            raise InternalError(f"The {self.source.source_type} source {self.name!r} was not uploaded.")
        return self.file


class SourcesModule(Protocol):
    """`sources.py`: how each kind of source travels to a provider, or the error that says why it cannot."""

    def delivery(self, source: Source, mime_type: str, size_bytes: int | None, /) -> Delivery: ...


def refused(provider: str, source: Source, mime_type: str, hint: str) -> ConfigurationError:
    """A kind of source that this provider does not take."""
    kind = {"file": "file", "youtube": "YouTube video"}.get(source.source_type, "address")
    return ConfigurationError(f"{provider} takes no {mime_type} {kind} ({source.identifier}).", hint=hint)


def check_size(provider: str, source: Source, size_bytes: int | None, limit: int, way_out: str) -> None:
    """Refuse what is larger than the provider takes."""
    if size_bytes is not None and size_bytes > limit:
        raise ConfigurationError(
            f"{source.identifier!r} has {size_bytes:,} bytes; {provider} takes {limit:,} at the most.", hint=way_out
        )


def check_web(provider: str, source: Source, mime_type: str, schemes: tuple[str, ...] = ("http", "https")) -> None:
    """Refuse an address that the provider does not open."""
    if urlsplit(str(source.uri)).scheme not in schemes:
        hint = f"Pass an {' or '.join(schemes)} address, or the file itself with Source.from_file."
        raise refused(provider, source, mime_type, hint)
