from __future__ import annotations

from tests.loopback import config, sim, world
from tests.state.conftest import redis_place, shared_redis

__all__ = ["config", "redis_place", "shared_redis", "sim", "world"]
