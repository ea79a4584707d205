"""Tests of the automations in deployments/: the server accepts each file, and each automation fires."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from uuid import UUID

import httpx
import pytest
import yaml
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.cli.automation import create
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from pollux_flows import APIError
from pollux_flows.blocks import PolluxProvider
from pollux_flows.deployments import deployments
from pollux_flows.flows import acollect, arealtime, asubmit, collect
from pollux_flows.simulator import Fault, Simulator
from tests.prefect.jobs import no_jobs_are_left

pytestmark = pytest.mark.usefixtures(no_jobs_are_left.__name__)
T = TypeVar("T")
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
    with pytest.raises(SystemExit) as caught:
        await create(from_file=str(file))
    assert caught.value.code == 0


async def emit_until_it_fires(emit: Callable[[], Awaitable[None]], find: Callable[[], Awaitable[T | None]]) -> T:
    """Emit an event until its automation has left something to find, and return that.

    The server on SQLite does not say when it has read a new automation: an event may come before that.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        await emit()
        for _ in range(10):
            if (found := await find()) is not None:
                return found
            await asyncio.sleep(0.2)
    raise AssertionError("The automation has not fired.")


async def read_parameters(deployment: UUID) -> dict[str, Any] | None:
    """Return the parameters of a run of the deployment, which is then deleted; None if it has no run."""
    only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    async with get_client() as client:
        runs = await client.read_flow_runs(deployment_filter=only)
        if not runs:
            return None
        await client.delete_deployment(deployment)
    return dict(runs[0].parameters)


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

    assert await emit_until_it_fires(collect_a_job, partial(read_parameters, deployment)) in [
        {"job": job} for job in jobs
    ]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the web app of deployments/webhooks.py."""
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", SECRET)
    spec = util.spec_from_file_location("webhooks", FOLDER / "webhooks.py")
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def send_webhook(receiver: ModuleType, provider: str, *, secret: bytes) -> httpx.Response:
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
    deployment = UUID(str(await (await collect.ato_deployment("collect-by-webhook")).aapply()))
    await create_automation("batch-ended.yaml", tmp_path, deployment)

    async def call_webhook() -> None:
        assert (await send_webhook(receiver, "openai", secret=b"a secret of a webhook")).status_code == 204

    assert await emit_until_it_fires(call_webhook, partial(read_parameters, deployment)) == {}


async def test_a_webhook_with_a_wrong_signature_is_refused(receiver: ModuleType) -> None:
    reply = await send_webhook(receiver, "openai", secret=b"a guess")
    assert (reply.status_code, "signature" in reply.text) == (400, True)
    assert (await send_webhook(receiver, "gemini", secret=b"a guess")).status_code == 404


def test_the_notification_of_failures_names_all_flows() -> None:
    trigger = yaml.safe_load((FOLDER / "automations" / "failed.yaml").read_text())["trigger"]
    named = set(trigger["match_related"]["prefect.resource.name"])
    assert named == {each.flow_name for each in deployments()} | {"wait-for"}


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Return the address of a chat's webhook on loopback, and the messages that it receives."""
    messages: list[dict[str, str]] = []

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", messages
        server.shutdown()


async def test_a_failed_run_sends_a_notification(
    inbox: tuple[str, list[dict[str, str]]], provider: PolluxProvider, simulator: Simulator, tmp_path: Path
) -> None:
    """The message names the run and its error; it has no link, because this server does not know its own address."""
    address, messages = inbox
    chat = CustomWebhookNotificationBlock(
        name="chat", url=address, json_data={"title": "{{subject}}", "text": "{{body}}"}
    )
    await create_automation("failed.yaml", tmp_path, await chat.asave("chat", overwrite=True))
    simulator.fail(Fault(status=400, message="no such tool"), times=None)

    async def fail_a_run() -> None:
        with pytest.raises(APIError):
            await arealtime("Why?", provider)

    async def find_message() -> dict[str, str] | None:
        return messages[0] if messages else None

    message = await emit_until_it_fires(fail_a_run, find_message)
    assert message["title"] == "Why? · realtime · gpt-4.1-mini: Failed"
    assert "no such tool" in message["text"]
    assert "None" not in message["text"]


async def test_the_server_accepts_the_automation_for_crashed_runs(tmp_path: Path) -> None:
    await create_automation("crashed.yaml", tmp_path)
