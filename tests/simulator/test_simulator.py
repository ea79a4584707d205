"""The simulator as an application: its log, keys, control endpoints and servers."""

import asyncio
import subprocess
import sys
import threading
from typing import Any

import httpx
import httpx2
import openai
import pytest

from pollux_flows.simulator import Fault, Simulator, in_process, serve

from .clients import KEY, KEY_HEADERS, Client

BODY = {"model": "local-model", "messages": [{"role": "user", "content": "Hello?"}]}
URL = "/local/v1/chat/completions"


def open_in_process(simulator: Simulator) -> httpx.AsyncClient:
    """Open a client of the simulator without a socket."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=simulator.app), base_url="http://simulator")


async def test_the_log_has_every_request(client: Client, sim: Simulator, provider: str) -> None:
    """The log is in order of arrival, with bodies, statuses and times."""
    await client.ask("first")
    await client.ask("second")
    first, second = sim.requests
    assert (first.provider, first.operation, first.method, first.status) == (provider, "generate", "POST", 200)
    assert "first" in str(first.body)
    assert "second" in str(second.body)
    assert first.answered_at is not None
    assert first.received_at < first.answered_at < second.received_at


async def test_the_log_has_no_keys(client: Client, sim: Simulator) -> None:
    """Logged headers do not include those with keys."""
    await client.ask("Hello?")
    (entry,) = sim.requests
    assert "user-agent" in entry.headers
    assert KEY not in repr(entry)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/openai/v1/responses", 401, "invalid_request_error"),
        ("/anthropic/v1/messages", 401, "authentication_error"),
        ("/gemini/v1/models/gemini-2.5-flash:generateContent", 403, "PERMISSION_DENIED"),
        ("/openrouter/api/v1/chat/completions", 401, "No auth credentials"),
    ],
)
async def test_a_request_without_a_key_is_refused(path: str, status: int, code: str, http: httpx.AsyncClient) -> None:
    """Each provider requires its own authentication header."""
    for name in KEY_HEADERS:
        del http.headers[name]
    answer = await http.post(path, json={})
    assert (answer.status_code, code in answer.text) == (status, True)


async def test_a_local_server_needs_no_key(http: httpx.AsyncClient) -> None:
    del http.headers["authorization"]
    assert (await http.post(URL, json=BODY)).status_code == 200


@pytest.mark.parametrize("prefix", ["/openai/v1", "/anthropic/v1", "/gemini/v1", "/openrouter/api/v1", "/local/v1"])
async def test_an_unknown_path_is_refused_in_the_providers_words(prefix: str, http: httpx.AsyncClient) -> None:
    """An unknown path, or a known one with another method, is 404 with an error body."""
    for answer in (await http.get(f"{prefix}/nowhere"), await http.delete(f"{prefix}/responses")):
        assert answer.status_code == 404
        assert "error" in answer.json()


async def test_invalid_json_is_refused(http: httpx.AsyncClient) -> None:
    """A body that is not a JSON object is refused with 400."""
    for body in (b"{", b"", b"[]", b'"text"', b"null"):
        for path in ("/openai/v1/responses", "/anthropic/v1/messages", URL):
            answer = await http.post(path, content=body)
            assert answer.status_code == 400, (path, body, answer.text)
            assert "error" in answer.json()


@pytest.mark.parametrize("header", ["x-request-id", "x-ratelimit-remaining-requests", "x-ratelimit-reset-tokens"])
async def test_openai_sends_its_headers(header: str, http: httpx.AsyncClient) -> None:
    """Every response, also an error, has a request id and rate limits."""
    for body in ({"model": "gpt-4.1", "input": "x"}, {}):
        assert (await http.post("/openai/v1/responses", json=body)).headers[header]


@pytest.mark.parametrize("header", ["request-id", "anthropic-ratelimit-requests-remaining"])
async def test_anthropic_sends_its_headers(header: str, http: httpx.AsyncClient) -> None:
    """Every response, also an error, has a request id and rate limits."""
    request_body = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    for body in (request_body, {}):
        assert (await http.post("/anthropic/v1/messages", json=body)).headers[header]


async def test_another_process_can_queue_faults(http: httpx.AsyncClient) -> None:
    """The control endpoint takes the arguments of `Fault` and `Simulator.fail` as one JSON object."""
    queued = {"status": 429, "retry_after": 2, "times": 1, "provider": "local", "contains": "Hello"}
    assert (await http.post("/_simulator/faults", json=queued)).status_code == 201
    assert [(await http.post(URL, json=BODY)).status_code for _ in range(2)] == [429, 200]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 200},
        {"kind": "x"},
        {"colour": "red"},
        {"status": 500, "times": 0},
        {"status": "x"},
        {"status": 500, "headers": {"a": 1}},
        [],
        3,
    ],
)
async def test_the_control_endpoint_refuses_an_invalid_fault(fault: Any, http: httpx.AsyncClient) -> None:
    """An invalid fault is refused with an error text."""
    answer = await http.post("/_simulator/faults", json=fault)
    assert (answer.status_code, bool(answer.json()["error"])) == (400, True)


async def test_another_process_can_read_the_log_and_reset(http: httpx.AsyncClient) -> None:
    """The control endpoints return the log of `sim.requests`, and reset the simulator."""
    await http.post(URL, json=BODY)
    (entry,) = (await http.get("/_simulator/requests")).json()["requests"]
    assert (entry["operation"], entry["status"], entry["body"]) == ("generate", 200, BODY)
    await http.post("/_simulator/reset")
    assert (await http.get("/_simulator/requests")).json() == {"requests": []}


async def test_in_process_use_needs_no_socket() -> None:
    """The ASGI application answers behind an ASGITransport of httpx and of httpx2."""
    simulator = Simulator()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=simulator.app)) as transport:
        sdk = openai.AsyncOpenAI(
            api_key="k", base_url=simulator.base_url("openai", "http://simulator"), max_retries=0, http_client=transport
        )
        response = await sdk.responses.create(model="gpt-4.1", input="Hello?")
    async with open_in_process(simulator) as http:
        answer = await http.post(URL, json=BODY)
    assert response.output_text == answer.json()["choices"][0]["message"]["content"] == "Simulated answer to: Hello?"


@pytest.mark.parametrize("kind", ["drop", "drop_after", "cut"])
async def test_an_in_process_drop_is_a_network_error(kind: str) -> None:
    """Each HTTP library raises its own error of a closed socket, although there is none."""
    simulator = Simulator()
    simulator.fail(Fault(kind=kind), times=None)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=simulator.app)) as transport:
        sdk = openai.AsyncOpenAI(
            api_key="k", base_url=simulator.base_url("openai", "http://simulator"), max_retries=0, http_client=transport
        )
        with pytest.raises(openai.APIConnectionError):
            await sdk.responses.create(model="gpt-4.1", input="Hello?")
        with pytest.raises(httpx2.RemoteProtocolError):
            await transport.post(f"http://simulator{URL}", json=BODY)
    async with open_in_process(simulator) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(URL, json=BODY)
    assert {entry.status for entry in simulator.requests} == {None if kind == "drop" else 200}


async def test_an_in_process_hang_ends_with_the_callers_timeout() -> None:
    """An ASGITransport has no timeout, so the caller sets one."""
    simulator = Simulator()
    simulator.fail(Fault(kind="hang"))
    async with open_in_process(simulator) as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await http.post(URL, json=BODY)


def test_there_is_one_in_process_simulator() -> None:
    """All threads of a process get the same simulator."""
    found: list[Simulator] = []
    threads = [threading.Thread(target=lambda: found.append(in_process())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(simulator) for simulator in found}) == 1


def test_one_simulator_answers_many_event_loops() -> None:
    """The simulator holds nothing that belongs to one event loop."""
    simulator = Simulator()

    async def ask() -> int:
        async with open_in_process(simulator) as http:
            return (await http.post(URL, json=BODY)).status_code

    assert [asyncio.run(ask()) for _ in range(3)] == [200, 200, 200]


def test_the_length_of_the_log_can_be_limited() -> None:
    """`keep_requests` limits the log, since a worker's simulator lives as long as the worker."""
    simulator = Simulator(keep_requests=2)

    async def ask_three_times() -> None:
        async with open_in_process(simulator) as http:
            for _ in range(3):
                await http.post(URL, json=BODY)

    asyncio.run(ask_three_times())
    assert len(simulator.requests) == 2


def test_a_server_stops_while_a_request_hangs() -> None:
    """Leaving `serve` closes open connections at once."""
    simulator = Simulator()
    simulator.fail(Fault(kind="hang"))
    has_failed = threading.Event()

    def ask(origin: str) -> None:
        try:
            httpx.post(origin + URL, json=BODY, timeout=30)
        except httpx.RemoteProtocolError:
            has_failed.set()

    with serve(simulator) as origin:
        thread = threading.Thread(target=ask, args=(origin,))
        thread.start()
        while not (simulator.requests and simulator.requests[0].fault == "hang"):
            threading.Event().wait(0.005)
    thread.join(5)
    assert has_failed.is_set()
    with pytest.raises(httpx.ConnectError):
        httpx.post(origin + URL, json=BODY)


def test_a_port_in_use_is_an_error() -> None:
    with serve(Simulator()) as origin:
        port = int(origin.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), serve(Simulator(), port=port):
            pass


def test_latency_applies_to_refused_requests_too() -> None:
    simulator = Simulator(latency_s=0.05)

    async def ask() -> None:
        async with open_in_process(simulator) as http:
            await http.post(URL, json=BODY)

    asyncio.run(ask())
    (entry,) = simulator.requests
    assert entry.answered_at is not None
    assert entry.answered_at - entry.received_at >= 0.05


def test_an_unknown_provider_has_no_base_url() -> None:
    with pytest.raises(KeyError):
        Simulator.base_url("openia", "http://x")


def test_importing_the_simulator_is_cheap() -> None:
    """Importing the simulator loads neither Prefect, a provider's SDK nor the server."""
    heavy = ("prefect", "openai", "anthropic", "google.genai", "uvicorn", "jsonschema", "pydantic")
    code = f"import sys, pollux_flows.simulator; sys.exit(any(m in sys.modules for m in {heavy!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
