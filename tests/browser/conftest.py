"""A Prefect server with its UI, all flows served, a provider on loopback, and a browser."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any, TypeVar

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, sync_playwright

from pollux_flows.simulator import Simulator, serve

T = TypeVar("T")

SHOTS = Path(os.environ.get("BROWSER_SHOTS", "browser-shots")).absolute()
"""The folder that screenshots are written to."""

HAS_FAILED = pytest.StashKey[bool]()
"""Whether a test has failed, so that its last page is saved as a screenshot."""


@dataclass
class World:
    """The Prefect server with its UI, the provider of its runs, and their files."""

    origin: str
    provider_url: str
    simulator: Simulator
    environment: dict[str, str]
    folder: Path
    """A folder that runs may read from and write to."""

    def request(self, path: str, **body: Any) -> Any:
        """Return the server's reply to a request, a POST where there is a body."""
        url = f"{self.origin}/api{path}"
        reply = httpx.post(url, json=body) if body else httpx.get(url)
        return reply.raise_for_status().json()

    def find_newest_run(self, flow: str) -> dict[str, Any]:
        """Return the run of this flow that was created last."""
        runs = self.request("/flow_runs/filter", flows={"name": {"any_": [flow]}}, limit=50)
        return max(runs, key=lambda run: str(run["created"]))

    def wait_for_state(self, flow: str, state: str, within_s: float = 120) -> dict[str, Any]:
        """Return the newest run of this flow once it is in this state."""

        def find_run_in_state() -> dict[str, Any] | None:
            run = self.find_newest_run(flow)
            return run if run["state"]["name"] == state else None

        return wait_until(find_run_in_state, f"{flow} is {state}", within_s)

    def start_run(self, flow: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Start a run of the deployment of this flow, and return it."""
        deployment = self.request(f"/deployments/name/{flow}/{flow}")["id"]
        run: dict[str, Any] = self.request(f"/deployments/{deployment}/create_flow_run", parameters=parameters)
        return run

    def find_provider(self, kind: str) -> dict[str, Any]:
        """Return a reference to the saved provider of this kind, for the parameters of a run; save it if need be."""
        if kind == "gemini":
            saving = (
                "import sys; from pollux_flows.blocks import PolluxProvider; PolluxProvider(provider='gemini', "
                "model='gemini-2.5-flash-lite', api_key='k', base_url=sys.argv[1]).save('gemini', overwrite=True)"
            )
            command = [sys.executable, "-c", saving, self.provider_url.replace("/openai/v1", "/gemini")]
            subprocess.run(command, env=self.environment, check=True)
        document = self.request(f"/block_types/slug/pollux-provider/block_documents/name/{kind}")
        return {"$ref": {"block_document_id": document["id"]}}

    def wait_for_page(self, run: dict[str, Any]) -> str:
        """Return the path of the page with the answers of a run, once it is published."""

        def find_page() -> str | None:
            artifacts = self.request("/artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}}, limit=20)
            pages = [each for each in artifacts if each["type"] == "markdown" and each["key"] != "pollux-submit"]
            newest = max(pages, key=lambda each: str(each["created"]), default=None)
            return newest and f"/artifacts/artifact/{newest['id']}"

        return wait_until(find_page, f"{run['name']} has a page")


def wait_until(find: Callable[[], T | None], condition: str, within_s: float = 60) -> T:
    """Return the first result of `find` that is not None."""
    deadline = time.monotonic() + within_s
    while (found := find()) is None:
        assert time.monotonic() < deadline, f"not within {within_s} s: {condition}"
        time.sleep(0.3)
    return found


class Screen:
    """A browser window at the UI."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self._origin = origin

    def open(self, path: str) -> None:
        """Open a page of the UI, and wait until it is there."""
        self.page.goto(f"{self._origin}{path}", wait_until="networkidle")

    def save_screenshot(self, name: str, part: Locator | None = None) -> None:
        """Save a screenshot of the page in its full height, or of a part of it."""
        self.page.wait_for_timeout(500)  # until the last transition has ended
        height = self.page.evaluate("Math.max(...[...document.querySelectorAll('*')].map(each => each.scrollHeight))")
        self.page.set_viewport_size({"width": 1300, "height": min(max(900, height), 4000)})
        SHOTS.mkdir(parents=True, exist_ok=True)
        (part or self.page).screenshot(path=SHOTS / f"{name}.png")
        self.page.set_viewport_size({"width": 1300, "height": 900})

    def find_field(self, title: str) -> Locator:
        """Return the field of a form with exactly this title."""
        label = self.page.locator(".schema-form-property__label").filter(
            has_text=re.compile(rf"^{re.escape(title)}( \(Optional\))?$")
        )
        return self.page.locator(".schema-form-property").filter(has=label).last

    def fill(self, title: str, text: str) -> None:
        self.find_field(title).locator("textarea").last.fill(text)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).last.click()

    def pick(self, control: Locator, option: str) -> None:
        """Pick an option of a dropdown."""
        control.focus()
        self.page.keyboard.press("ArrowDown")
        self.page.locator(".p-select-option", has_text=option).first.click()

    def wait_for_text(self, text: str) -> None:
        """Wait until the page shows a text."""
        self.page.get_by_text(text).first.wait_for()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, tables = tmp_path_factory.mktemp("browser"), tmp_path_factory.mktemp("tables")
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    origin = f"http://127.0.0.1:{port}"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "POLLUX_"))
    } | {
        "PREFECT_HOME": str(folder / "prefect"),
        "POLLUX_HOME": str(folder / "pollux"),
        "POLLUX_ALLOW_PATHS": str(tables),
        "PREFECT_API_URL": f"{origin}/api",
        "PREFECT_UI_API_URL": f"{origin}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "DO_NOT_TRACK": "1",
    }
    simulator = Simulator()
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str) -> None:
        log = (folder / f"{name}.log").open("w")
        started.append(
            subprocess.Popen(
                [str(Path(sys.executable).parent / command[0]), *command[1:]],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )

    def is_deployed() -> bool | None:
        return True if len(httpx.post(f"{origin}/api/deployments/filter", json={}).json()) >= 14 else None

    def is_up() -> bool | None:
        try:
            return httpx.get(f"{origin}/api/health").is_success or None
        except httpx.TransportError:
            return None

    with serve(simulator) as simulated:
        try:
            start("server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
            wait_until(is_up, "the server answers", 90)
            start("serve", "pollux-flows", "serve", "--collect-every", "10s")
            wait_until(is_deployed, "all flows are served", 90)
            yield World(origin, simulator.base_url("openai", origin=simulated), simulator, environment, tables)
        finally:
            for process in reversed(started):
                process.send_signal(signal.SIGINT)
                process.wait(30)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield chromium
        chromium.close()


def repeat_while_busy(route: Route) -> None:
    """Send a request again if the server answers 503, as it does on SQLite when two writes meet.

    The UI would only show an error, and a person would press the button again. A connection that the server has just
    closed is opened again, as a browser does.
    """
    reply = route.fetch(max_retries=3)
    for _ in range(5):
        if reply.status != 503:
            break
        reply = route.fetch(max_retries=3)
    route.fulfill(response=reply)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[HAS_FAILED] = item.stash.get(HAS_FAILED, False) or report.failed
    return report


@pytest.fixture
def screen(browser: Browser, world: World, request: pytest.FixtureRequest) -> Iterator[Screen]:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(20_000)
    page.route("**/api/**", repeat_while_busy)
    screen = Screen(page, world.origin)
    yield screen
    if request.node.stash[HAS_FAILED]:
        screen.save_screenshot(f"failure-{request.node.name}")
    page.unroute_all(behavior="ignoreErrors")
    page.close()
