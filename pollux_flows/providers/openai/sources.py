"""Sources in the form in which OpenAI takes them."""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.files.mime import is_text_like
from pollux_flows.providers.material import IMAGES, Delivery, Material, check_size, check_web, refused
from pollux_flows.source import Source

_OFFICE: Final = (
    "application/msword",
    "application/vnd.ms-excel",
    "application/vnd.ms-powerpoint",
    "application/vnd.openxmlformats-officedocument.",
    "application/rtf",
    "text/rtf",
)
_LARGEST: Final = 512 * 1024 * 1024
_LARGEST_TEXT: Final = 10 * 1024 * 1024


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Return the delivery of a source: text inside the request, other files as uploads, addresses as links."""
    if source.source_type in {"text", "json"}:
        check_size("OpenAI", source, size_bytes, _LARGEST_TEXT, "That much text fits no model; send a part of it.")
        return "text"
    if source.source_type == "youtube":
        raise refused("OpenAI", source, mime_type, "Use gemini, which watches YouTube itself.")
    document = mime_type == "application/pdf" or mime_type.startswith(_OFFICE)
    if not document and mime_type not in IMAGES and not is_text_like(mime_type):
        raise refused("OpenAI", source, mime_type, "It takes documents, text and images; gemini takes audio and video.")
    if source.source_type != "file":
        check_web("OpenAI", source, mime_type)
        return "link"
    if is_text_like(mime_type) and not document:
        check_size("OpenAI", source, size_bytes, _LARGEST_TEXT, "That much text fits no model; send a part of it.")
        return "text"
    check_size("OpenAI", source, size_bytes, _LARGEST, "Split the file.")
    return "upload"


def part(material: Material) -> dict[str, Any]:
    """Return one part of the user's turn."""
    if material.text is not None:
        return {"type": "input_text", "text": material.text}
    image = material.mime_type.startswith("image/")
    kind = "input_image" if image else "input_file"
    if material.source.source_type == "file":
        return {"type": kind, "file_id": material.uploaded.file_id}
    return {"type": kind, "image_url" if image else "file_url": material.source.uri}
