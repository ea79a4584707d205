"""The signature of a thinking block, which proves that a replayed block is unchanged."""

from __future__ import annotations

import base64
import hashlib

_SEAL = b"simulated:"


def sign(thinking: str) -> str:
    return base64.b64encode(_SEAL + hashlib.sha256(thinking.encode()).digest()).decode()


def is_valid(signature: str, thinking: str) -> bool:
    """Return whether a signature is valid; omitted thinking comes back empty, and only its prefix is checked."""
    if thinking:
        return signature == sign(thinking)
    return signature.startswith(base64.b64encode(_SEAL).decode()[:12])
