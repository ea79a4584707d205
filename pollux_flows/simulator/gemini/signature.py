"""The thought signature of a function call, which a client must send back unchanged."""

from __future__ import annotations

import base64
import hashlib

#: Documented placeholders, for calls that this model did not make itself.
_PLACEHOLDERS = frozenset({"context_engineering_is_the_way_to_go", "skip_thought_signature_validator"})


def sign(content: str) -> str:
    return base64.b64encode(b"simulated:" + hashlib.sha256(content.encode()).digest()).decode()


def is_valid(signature: str, content: str) -> bool:
    """Return whether this is the signature of `content`, or a placeholder."""
    if signature in _PLACEHOLDERS:
        return True
    try:
        # Either base64 alphabet is accepted; the SDK sends the URL-safe one.
        raw = base64.b64decode(signature.replace("-", "+").replace("_", "/") + "==")
    except ValueError:
        return False
    return raw == base64.b64decode(sign(content)) or raw.decode("latin-1") in _PLACEHOLDERS
