"""A server on SQLite that is asked for two things at once puts one of them off. Here it is asked again at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings


@contextmanager
def hurried() -> Iterator[None]:
    """Prefect's client waits for 2 to 32 seconds, and gives up after that; this one is as patient in smaller steps."""
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 300}):
        patch.setattr("prefect.client.base.clamped_poisson_interval", _soon)
        yield


def _soon(_seconds: float, _factor: float) -> float:
    return random.uniform(0.05, 0.25)  # noqa: S311 (no secret)
