"""A served simulator, and a client of every provider that talks to it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import httpx
import pytest

from pollux_flows.simulator import Simulator, serve

from .clients import CLIENTS, KEY_HEADERS, Client

PROVIDERS = tuple(CLIENTS)


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[Simulator, str]]:
    world = Simulator()
    with serve(world) as origin:
        yield world, origin


@pytest.fixture
def origin(served: tuple[Simulator, str]) -> str:
    return served[1]


@pytest.fixture
def sim(served: tuple[Simulator, str]) -> Simulator:
    """The served simulator as good as new."""
    served[0].reset()
    return served[0]


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    """Each provider in turn."""
    name: str = request.param
    return name


@pytest.fixture
async def client(provider: str, sim: Simulator, origin: str) -> AsyncIterator[Client]:
    """A client of that provider: its real SDK where there is one."""
    async with AsyncExitStack() as stack:
        yield await CLIENTS[provider].open(sim.base_url(provider, origin), stack)


@pytest.fixture
async def http(sim: Simulator, origin: str) -> AsyncIterator[httpx.AsyncClient]:
    """Plain HTTP with everybody's key."""
    assert not sim.requests
    async with httpx.AsyncClient(base_url=origin, headers=KEY_HEADERS, verify=False) as opened:  # noqa: S501 (loopback)
        yield opened
