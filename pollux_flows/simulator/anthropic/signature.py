"""The seal on a thinking block, by which a replayed thought is known to be the one that was thought."""

from __future__ import annotations

import base64
import hashlib

_SEAL = b"simulated:"


def sign(thinking: str) -> str:
    return base64.b64encode(_SEAL + hashlib.sha256(thinking.encode()).digest()).decode()


def is_ours(signature: str, thinking: str) -> bool:
    """Thinking that was left out (display: omitted) comes back empty; its seal alone must do."""
    if thinking:
        return signature == sign(thinking)
    return signature.startswith(base64.b64encode(_SEAL).decode()[:12])
