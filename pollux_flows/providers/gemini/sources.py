"""Sources in the form in which Gemini takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pollux_flows.providers.material import Delivery, Material, check_size, check_web, refused
from pollux_flows.source import Source

if TYPE_CHECKING:
    from google.genai import types

# Types that Gemini refuses with "Unsupported MIME type". The types that it takes grow each year.
_UNREADABLE: Final = (
    "application/octet-stream",
    "application/zip",
    "application/msword",
    "application/vnd.ms-",
    "application/vnd.openxmlformats-",
)
_LARGEST: Final = 2 * 1024 * 1024 * 1024


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Return the delivery of a source: text inline, files of nearly any type as uploads, addresses as links."""
    if source.source_type in {"text", "json"}:
        return "text"
    if source.source_type != "file":
        check_web("Gemini", source, mime_type, ("http", "https", "gs"))
        return "link"
    if mime_type.startswith(_UNREADABLE):
        raise refused("Gemini", source, mime_type, "Save it as PDF or text, or pass its real type as mime_type=….")
    check_size("Gemini", source, size_bytes, _LARGEST, "Split the file.")
    return "upload"


def parts(materials: Sequence[Material]) -> list[types.Part]:
    """Return the parts of the user's turn."""
    return [_part(material) for material in materials]


def _part(material: Material) -> types.Part:
    from google.genai import types

    source, video = material.source, material.source.gemini_video
    if material.text is not None:
        return types.Part(text=material.text)
    if source.gemini_url_context:  # it opens the address itself, with a tool
        return types.Part(text=source.uri)
    uri = material.uploaded.uri if source.source_type == "file" else source.uri
    settings = video and types.VideoMetadata(
        start_offset=video.start_offset, end_offset=video.end_offset, fps=video.fps
    )
    return types.Part(
        file_data=types.FileData(file_uri=uri, mime_type=material.mime_type), video_metadata=settings or None
    )
