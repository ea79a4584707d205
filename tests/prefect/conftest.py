"""A Prefect server for all tests here, and a simulated provider on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_SERVER_API_MAX_PARAMETER_SIZE,
    PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

from pollux_flows.blocks import PolluxProvider
from pollux_flows.simulator import Simulator, serve
from tests.hurry import retry_quickly

_SETTINGS: Final = {
    # An event is seen five seconds later, unless the server saves events more often.
    PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL: 0.5,
    # For the job of 10,001 prompts in test_memory.py.
    PREFECT_SERVER_API_MAX_PARAMETER_SIZE: 1 << 28,
}


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    with retry_quickly(), temporary_settings(_SETTINGS), prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def world() -> Iterator[tuple[Simulator, str]]:
    simulator = Simulator()
    with serve(simulator) as origin:
        yield simulator, origin


@pytest.fixture
def simulator(world: tuple[Simulator, str]) -> Iterator[Simulator]:
    world[0].reset()
    yield world[0]
    world[0].reset()


@pytest.fixture
def no_caches_are_left() -> Iterator[None]:
    """Delete all caches of the server before and after the test."""
    _delete_caches()
    yield
    _delete_caches()


def _delete_caches() -> None:
    with get_client(sync_client=True) as client:
        for document in client.read_block_documents_by_type("pollux-cache"):
            client.delete_block_document(document.id)


@pytest.fixture
def provider(world: tuple[Simulator, str], simulator: Simulator) -> PolluxProvider:
    """Return a provider that is not saved on the server."""
    return PolluxProvider(
        provider="openai",
        model="gpt-4.1-mini",
        api_key="sk-never-saved",
        base_url=simulator.base_url("openai", origin=world[1]),
    )
