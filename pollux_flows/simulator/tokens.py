"""Token counts. They follow a rule that can be checked by hand, not a tokenizer.

- A text: a quarter of its characters, rounded up.
- JSON (a schema, a tool, its arguments): the text of its compact form.
- A text file (`text/*`), stored or sent along: a quarter of its bytes, rounded up.
- Any other file (image, document, audio, video): 258 tokens for each started 32 KiB of its bytes, up to
  256 times: a model sees large files at a lower resolution.
- A web address with any content: 258.
"""

from __future__ import annotations

from typing import Any

import orjson

CHARS_PER_TOKEN = 4
ATTACHMENT_TOKENS = 258
ATTACHMENT_BYTES = 32 * 1024
ATTACHMENT_BLOCKS = 256


def of_text(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)


def of_json(value: Any) -> int:
    return of_text(compact(value))


def of_attachment(size: int = 0) -> int:
    return ATTACHMENT_TOKENS * min(max(1, -(-size // ATTACHMENT_BYTES)), ATTACHMENT_BLOCKS)


def of_file(mime_type: str, size: int) -> int:
    return -(-size // CHARS_PER_TOKEN) if mime_type.startswith("text/") else of_attachment(size)


def of_base64(data: str, mime_type: str = "") -> int:
    return of_file(mime_type, len(data) * 3 // 4 - data[-2:].count("="))


def of_url(url: str) -> int:
    """Count the tokens of a URL: a data URL by its content, any other as one attachment."""
    if not url.startswith("data:"):
        return of_attachment()
    head, _, data = url.partition(",")
    return of_base64(data, head.removeprefix("data:"))


def compact(value: Any) -> str:
    return orjson.dumps(value).decode()
