"""The encrypted content of a reasoning item, which a client must send back unchanged."""

from __future__ import annotations

import hashlib


def seal(reasoning: str) -> str:
    content = hashlib.sha256(reasoning.encode()).hexdigest()
    return content + _check(content)


def is_unchanged(sealed: str) -> bool:
    return len(sealed) > _CHECK_CHARS and sealed[-_CHECK_CHARS:] == _check(sealed[:-_CHECK_CHARS])


_CHECK_CHARS = 16


def _check(content: str) -> str:
    return hashlib.sha256(b"simulated:" + content.encode()).hexdigest()[:_CHECK_CHARS]
