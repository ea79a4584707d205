"""Sources in the form in which Anthropic takes them."""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.errors import ConfigurationError
from pollux_flows.files.mime import is_text_like
from pollux_flows.providers.material import IMAGES, Delivery, Material, check_size, check_web, refused
from pollux_flows.source import Source

_LARGEST: Final = 500 * 1024 * 1024
_LARGEST_TEXT: Final = 10 * 1024 * 1024


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Return the delivery of a source: files as uploads, texts inside the request, web addresses as links.

    Text files other than text/plain go inside the request, too.
    """
    if source.source_type in {"text", "json"}:
        if not str(source.text).strip():
            raise ConfigurationError("Anthropic takes no empty text.", hint=f"Leave {source.identifier!r} out.")
        check_size("Anthropic", source, size_bytes, _LARGEST_TEXT, "That much text fits no model; send a part of it.")
        return "text"
    if source.source_type == "youtube":
        raise refused("Anthropic", source, mime_type, "Use gemini, which watches YouTube itself.")
    seen = mime_type == "application/pdf" or mime_type in IMAGES
    if source.source_type != "file":
        if not seen:
            raise refused("Anthropic", source, mime_type, "It fetches PDFs and images only; download the rest first.")
        check_web("Anthropic", source, mime_type, ("https",))
        return "link"
    if not seen and not is_text_like(mime_type):
        raise refused("Anthropic", source, mime_type, "It takes PDFs, text and images; gemini takes audio and video.")
    if is_text_like(mime_type) and mime_type != "text/plain":
        check_size("Anthropic", source, size_bytes, _LARGEST_TEXT, "That much text fits no model; send a part of it.")
        return "text"
    check_size("Anthropic", source, size_bytes, _LARGEST, "Split the file.")
    return "upload"


def part(material: Material) -> dict[str, Any]:
    """Return one block of the user's turn."""
    if material.text is not None:
        return {"type": "text", "text": material.text}
    kind = "image" if material.mime_type.startswith("image/") else "document"
    if material.source.source_type == "file":
        return {"type": kind, "source": {"type": "file", "file_id": material.uploaded.file_id}}
    return {"type": kind, "source": {"type": "url", "url": material.source.uri}}
