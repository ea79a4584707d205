"""The attachments of Messages requests: images, documents, and references to stored files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pollux_flows.simulator.anthropic.files import find
from pollux_flows.simulator.media import IMAGES, is_base64, is_web_url
from pollux_flows.simulator.wire import BadRequest, Call

_DOCUMENTS = frozenset({"application/pdf", "text/plain"})


def check(call: Call) -> None:
    """Refuse attachments that the model cannot read; collect the stored files in `call.files`."""
    for place, message in enumerate(call.body["messages"]):
        for block, at in _sources(message["content"], f"messages.{place}.content"):
            _check(call, block, f"{at}.{block['type']}.source")


def _sources(content: Any, at: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Iterate over images and documents, including those inside documents and tool results."""
    for index, block in enumerate(content if isinstance(content, list) else []):
        where = f"{at}.{index}"
        if block["type"] in ("image", "document"):
            yield block, where
            yield from _sources(block["source"].get("content"), f"{where}.source.content")
        elif block["type"] == "tool_result":
            yield from _sources(block.get("content"), f"{where}.tool_result.content")


def _check(call: Call, block: dict[str, Any], at: str) -> None:
    source = block["source"]
    match source["type"]:
        case "base64" if not is_base64(source["data"]):
            raise BadRequest(f"{at}.base64.data: Invalid base64 data")
        case "url" if not is_web_url(source["url"], "https"):
            raise BadRequest(f"{at}.url: Only HTTPS URLs are supported.")
        case "file":
            file = find(call, source["file_id"])
            mime_type = file.mime_type.partition(";")[0].strip().lower()
            if block["type"] == "image" and mime_type not in IMAGES:
                raise BadRequest(
                    f"{at}.file: Unsupported image file format: {mime_type}. Supported image formats are JPEG, PNG, "
                    "GIF, and WebP."
                )
            if block["type"] == "document" and mime_type not in _DOCUMENTS:
                raise BadRequest(
                    f"{at}.file: Unsupported document file format: {mime_type}. Only PDF and plaintext documents are "
                    "supported."
                )
            call.files[source["file_id"]] = file
