"""How many tokens something is. A rule, not a tokenizer: what counts is that it can be checked by hand.

- A text: a quarter of its characters, rounded up.
- JSON (a schema, a tool, its arguments): the text of its compact form.
- Anything else (image, document, sound): 258 tokens for each started 32 KiB of its bytes, and
  258 where only a reference to it was sent.
"""

from __future__ import annotations

from typing import Any

import orjson

CHARS_PER_TOKEN = 4
ATTACHMENT_TOKENS = 258
ATTACHMENT_BYTES = 32 * 1024


def of_text(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)


def of_json(value: Any) -> int:
    return of_text(compact(value))


def of_attachment(size: int = 0) -> int:
    return ATTACHMENT_TOKENS * max(1, -(-size // ATTACHMENT_BYTES))


def of_base64(data: str) -> int:
    return of_attachment(len(data) * 3 // 4)


def of_url(url: str) -> int:
    """A data URL carries its bytes; any other is a reference."""
    return of_base64(url.partition(",")[2]) if url.startswith("data:") else of_attachment()


def compact(value: Any) -> str:
    return orjson.dumps(value).decode()
