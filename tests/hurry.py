"""Short retries of Prefect's client: a server on SQLite postpones one of two requests that it gets at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings


@contextmanager
def retry_quickly() -> Iterator[None]:
    """Let Prefect's client retry in short intervals.

    By default it waits for 2 to 32 seconds, and then gives up; here it waits about as long in all.
    """
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 300}):
        patch.setattr("prefect.client.base.clamped_poisson_interval", _draw_short_interval)
        yield


def _draw_short_interval(_seconds: float, _factor: float) -> float:
    return random.uniform(0.05, 0.25)  # noqa: S311 (no secret)
