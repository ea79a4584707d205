from __future__ import annotations

from pathlib import Path

import pytest

from pollux_flows.state.ledger import Ledger
from pollux_flows.state.store import Store
from tests.state.places import Clock, Provider, opened


@pytest.fixture(params=["disk"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is. Whoever writes another kind of store adds it here, and to `opened`."""
    return f"{request.param}:{tmp_path / 'state'}"


@pytest.fixture
def store(address: str) -> Store:
    return opened(address)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(clock: Clock) -> Provider:
    return Provider(clock)


@pytest.fixture
def ledger(store: Store, clock: Clock) -> Ledger:
    return Ledger(store, clock)
