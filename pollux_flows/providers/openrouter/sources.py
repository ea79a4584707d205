"""Sources in the form in which OpenRouter takes them: inside the request, as it stores no files."""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.providers.material import IMAGES, Delivery, Material, check_size, check_web, refused
from pollux_flows.source import Source

# Our limit, not OpenRouter's: every call under way holds the file in memory, a third larger in base64.
_LARGEST: Final = 20 * 1024 * 1024


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Return the delivery of a source: text as text, image and PDF files as bytes, and those on the web as links."""
    if source.source_type in {"text", "json"}:
        return "text"
    if mime_type != "application/pdf" and mime_type not in IMAGES:
        raise refused("OpenRouter", source, mime_type, "It takes PDFs and images; pass text with Source.from_text.")
    if source.source_type != "file":
        check_web("OpenRouter", source, mime_type)
        return "link"
    check_size(
        "OpenRouter", source, size_bytes, _LARGEST, "Use a provider that stores files: gemini, openai, anthropic."
    )
    return "inline"


def part(material: Material) -> dict[str, Any]:
    """Return one item of the user's turn."""
    if material.text is not None:
        return {"type": "text", "text": material.text}
    url = material.data_url if material.source.source_type == "file" else str(material.source.uri)
    if material.mime_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": material.name, "file_data": url}}
