from __future__ import annotations

from tests.loopback import config, sim, world

__all__ = ["config", "sim", "world"]
