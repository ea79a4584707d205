from __future__ import annotations

from tests.loopback import config, sim, world
from tests.providers.shelf import shelf

__all__ = ["config", "shelf", "sim", "world"]
