"""The thought signature that a function call part carries, and that a client must bring back."""

from __future__ import annotations

import base64
import hashlib

#: Documented stand-ins, for calls that this model did not make itself.
_STAND_INS = frozenset({"context_engineering_is_the_way_to_go", "skip_thought_signature_validator"})


def sign(content: str) -> str:
    return base64.b64encode(b"simulated:" + hashlib.sha256(content.encode()).digest()).decode()


def is_valid(signature: str, content: str) -> bool:
    """Whether this is what `content` was signed with."""
    if signature in _STAND_INS:
        return True
    try:
        # Bytes travel as either alphabet of base64; the SDK answers with the URL-safe one.
        raw = base64.b64decode(signature.replace("-", "+").replace("_", "/") + "==")
    except ValueError:
        return False
    return raw == base64.b64decode(sign(content)) or raw.decode("latin-1") in _STAND_INS
