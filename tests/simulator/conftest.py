"""A served simulator, and a client of every provider that talks to it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import httpx
import pytest

from pollux_flows.simulator import Simulator, serve

from .batchers import BATCHERS, Batcher
from .clients import CLIENTS, KEY_HEADERS, Client
from .uploaders import UPLOADERS, Uploader

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


@pytest.fixture(params=tuple(UPLOADERS))
async def uploader(request: pytest.FixtureRequest, sim: Simulator, origin: str) -> AsyncIterator[Uploader]:
    """A client of each Files API in turn."""
    async with AsyncExitStack() as stack:
        yield await UPLOADERS[request.param].open(sim.base_url(request.param, origin), stack)


@pytest.fixture(params=tuple(BATCHERS))
async def batcher(request: pytest.FixtureRequest, sim: Simulator, origin: str) -> AsyncIterator[Batcher]:
    """A client of each batch system in turn; Gemini's takes requests in two ways."""
    kind = BATCHERS[request.param]
    async with AsyncExitStack() as stack:
        yield await kind.open(sim.base_url(kind.provider, origin), stack)


class Time:
    """The time of a simulated world, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(sim: Simulator) -> Iterator[Time]:
    real, sim.clock, batch_s = sim.clock, Time(), sim.batch_s
    yield sim.clock
    sim.clock, sim.processing_s, sim.batch_s = real, 0.0, batch_s
