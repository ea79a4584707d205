"""The automations in deployments/: the server takes each file, and does what it says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import httpx
import pytest
import yaml
from prefect import flow
from prefect.cli.automation import create
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from pollux_flows.blocks import PolluxProvider
from pollux_flows.deployments import deployments
from pollux_flows.flows import acollect, asubmit, collect
from tests.prefect.jobs import no_jobs_are_left

pytestmark = pytest.mark.usefixtures(no_jobs_are_left.__name__)
FOLDER = Path(__file__).parents[2] / "deployments"
SECRET = "whsec_" + base64.b64encode(b"a secret of a webhook").decode()


@pytest.fixture(autouse=True)
async def no_automations_are_left() -> AsyncIterator[None]:
    yield
    async with get_client() as client:
        for automation in await client.read_automations():
            await client.delete_automation(automation.id)


async def create_automation(name: str, folder: Path, filled_in: object = UUID(int=0)) -> None:
    """Run `prefect automation create --from-file`, with an id filled in."""
    file = folder / name
    file.write_text((FOLDER / "automations" / name).read_text().replace("FILL_IN", str(filled_in)))
    with pytest.raises(SystemExit) as ended:
        await create(from_file=str(file))
    assert ended.value.code == 0


async def emit_until_it_fires(emit: Callable[[], Awaitable[None]], deployment: UUID) -> dict[str, Any]:
    """Emit an event until there is a run of the deployment, which is deleted, and return the run's parameters.

    The server on SQLite does not say when it has read a new automation: an event may come before that.
    """
    only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    deadline = time.monotonic() + 60
    async with get_client() as client:
        while time.monotonic() < deadline:
            await emit()
            for _ in range(10):
                if runs := await client.read_flow_runs(deployment_filter=only):
                    await client.delete_deployment(deployment)
                    return dict(runs[0].parameters)
                await asyncio.sleep(0.2)
    raise AssertionError("The automation has not fired.")


async def test_a_collected_job_starts_a_deployment(tmp_path: Path) -> None:
    @flow
    def evaluate(job: str) -> None: ...

    deployment = UUID(str(await (await evaluate.ato_deployment("evaluate")).aapply()))
    await create_automation("collected.yaml", tmp_path, deployment)
    jobs: list[str] = []

    async def collect_a_job() -> None:
        provider = PolluxProvider(provider="gemini", model="gemini-2.5-flash", use_mock=True)
        jobs.append(await asubmit(["Why?"], provider))
        await acollect()

    assert await emit_until_it_fires(collect_a_job, deployment) in [{"job": job} for job in jobs]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The web app in deployments/webhooks.py."""
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", SECRET)
    spec = util.spec_from_file_location("webhooks", FOLDER / "webhooks.py")
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def send(receiver: ModuleType, provider: str, *, secret: bytes) -> httpx.Response:
    """Send a webhook that is signed with this secret, as OpenAI does."""
    body = json.dumps({"id": "evt_1", "type": "batch.completed", "created_at": 1, "data": {"id": "batch_1"}})
    now = str(int(time.time()))
    signature = hmac.digest(secret, f"wh_1.{now}.{body}".encode(), hashlib.sha256)
    headers = {
        "webhook-id": "wh_1",
        "webhook-timestamp": now,
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }
    transport = httpx.ASGITransport(receiver.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
        return await client.post(f"/webhooks/{provider}", content=body, headers=headers)


async def test_a_webhook_starts_collect(receiver: ModuleType, tmp_path: Path) -> None:
    deployment = UUID(str(await (await collect.ato_deployment("told-by-webhook")).aapply()))
    await create_automation("batch-ended.yaml", tmp_path, deployment)

    async def tell() -> None:
        assert (await send(receiver, "openai", secret=b"a secret of a webhook")).status_code == 204

    assert await emit_until_it_fires(tell, deployment) == {}


async def test_a_webhook_with_a_wrong_signature_is_refused(receiver: ModuleType) -> None:
    reply = await send(receiver, "openai", secret=b"a guess")
    assert (reply.status_code, "signature" in reply.text) == (400, True)
    assert (await send(receiver, "gemini", secret=b"a guess")).status_code == 404


def test_the_notification_of_failures_names_all_flows() -> None:
    trigger = yaml.safe_load((FOLDER / "automations" / "failed.yaml").read_text())["trigger"]
    named = set(trigger["match_related"]["prefect.resource.name"])
    assert named == {each.flow_name for each in deployments()} | {"wait-for"}


@pytest.mark.parametrize("name", ["crashed.yaml", "failed.yaml"])
async def test_the_server_takes_the_file(name: str, tmp_path: Path) -> None:
    await create_automation(name, tmp_path)
