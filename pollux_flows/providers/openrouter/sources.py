"""How sources travel to OpenRouter, which keeps no files: inside the request."""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.providers.material import IMAGES, Delivery, Material, check_size, check_web, refused
from pollux_flows.source import Source

# Ours, not OpenRouter's: the whole file is in memory, a third larger than it is, for every call under way.
_LARGEST: Final = 20 * 1024 * 1024


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Images and PDFs, as bytes or by address."""
    if source.source_type in {"text", "json"}:
        return "text"
    if mime_type != "application/pdf" and mime_type not in IMAGES:
        raise refused("OpenRouter", source, mime_type, "It takes PDFs and images; pass text with Source.from_text.")
    if source.source_type != "file":
        check_web("OpenRouter", source, mime_type)
        return "link"
    check_size(
        "OpenRouter", source, size_bytes, _LARGEST, "Use a provider that keeps files: gemini, openai, anthropic."
    )
    return "inline"


def part(material: Material) -> dict[str, Any]:
    """One item of the user's turn."""
    if material.text is not None:
        return {"type": "text", "text": material.text}
    url = material.data_url if material.source.source_type == "file" else str(material.source.uri)
    if material.mime_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": material.name, "file_data": url}}
