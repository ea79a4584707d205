"""Fixtures of the tests of deferred jobs: a saved provider, and a server without jobs of other tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
from prefect.client.orchestration import get_client
from pydantic import SecretStr

from pollux_flows import ConfigurationError
from pollux_flows.blocks import PolluxProvider
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Simulator
from tests.loopback import MODELS
from tests.prefect.events import read_events

PROMPTS = ["one", "two", "three", "four"]
ANSWERS = [f"Simulated answer to: {prompt}" for prompt in PROMPTS]


class SaveProvider(Protocol):
    async def __call__(self, kind: ProviderName, **more: Any) -> PolluxProvider: ...


@pytest.fixture(autouse=True)
def jobs_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
async def no_jobs_are_left() -> AsyncIterator[None]:
    yield
    async with get_client() as client:
        for document in await client.read_block_documents_by_type("pollux-deferred-job"):
            await client.delete_block_document(document.id)


@pytest.fixture
def save_provider(world: tuple[Simulator, str], simulator: Simulator) -> SaveProvider:
    """Return a function that saves a provider on the server, unless it is saved there already."""
    simulator.batch_s = 0

    async def save(kind: ProviderName, **more: Any) -> PolluxProvider:
        name = f"deferred-{kind}"
        block = PolluxProvider(
            provider=kind,
            model=MODELS[kind],
            api_key=SecretStr("sk-deferred-sentinel"),
            base_url=simulator.base_url(kind, origin=world[1]),
            **more,
        )
        with suppress(ConfigurationError):
            existing = await PolluxProvider.named(name)
            if all(getattr(existing, field) == getattr(block, field) for field in PolluxProvider.model_fields):
                return existing
        await block.asave(name, overwrite=True)
        return await PolluxProvider.named(name)

    return save


async def read_job_events(job: str, count: int = 2) -> list[str]:
    """Return the events of the job on the server, in order."""
    return await read_events(f"pollux.deferred-job.{job}", count)
