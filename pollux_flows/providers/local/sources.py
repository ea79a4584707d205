"""Sources in the form in which a local server takes them: as text."""

from __future__ import annotations

from pollux_flows.providers.material import Delivery, refused
from pollux_flows.source import Source


def delivery(source: Source, mime_type: str, size_bytes: int | None) -> Delivery:
    """Return the delivery of a source; raise if it is not text."""
    del size_bytes
    if source.source_type not in {"text", "json"}:
        raise refused("A local server", source, mime_type, "Pass its text with Source.from_text.")
    return "text"
