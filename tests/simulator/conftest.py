"""Fixtures: a simulator that is served over HTTP, and clients of every provider that talk to it."""

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
def server() -> Iterator[tuple[Simulator, str]]:
    simulator = Simulator()
    with serve(simulator) as origin:
        yield simulator, origin


@pytest.fixture
def origin(server: tuple[Simulator, str]) -> str:
    return server[1]


@pytest.fixture
def sim(server: tuple[Simulator, str]) -> Simulator:
    """Return the served simulator after a reset."""
    server[0].reset()
    return server[0]


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    """Return the name of each provider in turn."""
    name: str = request.param
    return name


@pytest.fixture
async def client(provider: str, sim: Simulator, origin: str) -> AsyncIterator[Client]:
    """Open a client of the provider: its real SDK where there is one."""
    async with AsyncExitStack() as stack:
        yield await CLIENTS[provider].open(sim.base_url(provider, origin), stack)


@pytest.fixture
async def http(sim: Simulator, origin: str) -> AsyncIterator[httpx.AsyncClient]:
    """Open a plain HTTP client that sends the API keys of all providers."""
    assert not sim.requests
    async with httpx.AsyncClient(base_url=origin, headers=KEY_HEADERS, verify=False) as opened:  # noqa: S501 (loopback)
        yield opened


@pytest.fixture(params=tuple(UPLOADERS))
async def uploader(request: pytest.FixtureRequest, sim: Simulator, origin: str) -> AsyncIterator[Uploader]:
    """Open a client of each Files API in turn."""
    async with AsyncExitStack() as stack:
        yield await UPLOADERS[request.param].open(sim.base_url(request.param, origin), stack)


@pytest.fixture(params=tuple(BATCHERS))
async def batcher(request: pytest.FixtureRequest, sim: Simulator, origin: str) -> AsyncIterator[Batcher]:
    """Open a client of each batch system in turn: for Gemini once with inline requests and once with a file."""
    kind = BATCHERS[request.param]
    async with AsyncExitStack() as stack:
        yield await kind.open(sim.base_url(kind.provider, origin), stack)


class Clock:
    """A simulated clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(sim: Simulator) -> Iterator[Clock]:
    real, sim.clock, batch_s = sim.clock, Clock(), sim.batch_s
    yield sim.clock
    sim.clock, sim.processing_s, sim.batch_s = real, 0.0, batch_s
