"""Gemini's Files API: resumable uploads, names, and processing."""

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors, types

from pollux_flows.simulator import Fault, Simulator

from .conftest import Clock
from .uploaders import Gemini

START = "/gemini/upload/v1/files"
MIB = 1024 * 1024
VIDEO = {"mime_type": "video/mp4"}


@pytest.fixture
async def sdk(sim: Simulator, origin: str) -> AsyncIterator[genai.Client]:
    async with AsyncExitStack() as stack:
        yield (await Gemini.open(sim.base_url("gemini", origin), stack)).sdk


async def upload(sdk: genai.Client, content: bytes, **config: Any) -> types.File:
    settings = types.UploadFileConfig.model_validate({"mime_type": "application/pdf", **config})
    return await sdk.aio.files.upload(file=io.BytesIO(content), config=settings)


async def ask(sdk: genai.Client, file: types.File) -> types.GenerateContentResponse:
    return await sdk.aio.models.generate_content(model="gemini-2.5-flash", contents=[file, "four"])


async def test_a_large_file_is_uploaded_in_chunks(sdk: genai.Client, sim: Simulator) -> None:
    """Chunks have 8 MiB each, and the hash covers all of them."""
    content = bytes(range(256)) * (MIB // 256) * 20 + b"end"
    file = await upload(sdk, content, display_name="large")
    assert [entry.operation for entry in sim.requests] == ["file.create", *["file.upload_chunk"] * 3]
    assert [entry.body["size"] for entry in sim.requests[1:]] == [8 * MIB, 8 * MIB, 4 * MIB + 3]
    digest = hashlib.sha256(content)
    assert (sim.files[0].size, sim.files[0].sha256) == (len(content), digest.hexdigest())
    assert file.sha256_hash == base64.b64encode(digest.digest()).decode()
    assert (file.size_bytes, file.display_name, file.state) == (len(content), "large", types.FileState.ACTIVE)


async def test_the_sync_sdk_client_can_upload(sim: Simulator, origin: str) -> None:
    """The SDK's sync client has its own code for uploads."""
    options = types.HttpOptions(base_url=sim.base_url("gemini", origin), api_version="v1beta")
    client = genai.Client(api_key="k", vertexai=False, http_options=options)
    file = client.files.upload(file=io.BytesIO(b"%PDF"), config={"mime_type": "application/pdf"})
    assert file.uri is not None
    assert file.uri.endswith(f"/v1beta/{file.name}")
    client.close()


async def test_a_chosen_name_must_be_free(sdk: genai.Client, sim: Simulator) -> None:
    """A chosen name is refused with 409 while a file of that name exists."""
    assert (await upload(sdk, b"%PDF", name="run-abc")).name == "files/run-abc"
    with pytest.raises(errors.ClientError) as caught:
        await upload(sdk, b"%PDF", name="run-abc")
    assert (caught.value.code, caught.value.status) == (409, "ALREADY_EXISTS")
    await sdk.aio.files.delete(name="files/run-abc")
    await upload(sdk, b"other", name="run-abc")
    assert [(file.state, file.size) for file in sim.files] == [("deleted", 4), ("active", 5)]


async def test_a_name_is_taken_when_an_upload_ends(http: httpx.AsyncClient, sim: Simulator) -> None:
    """Of two uploads that started with one name, the first to end gets it."""
    first, second = [await start_upload(http, name="files/mine") for _ in range(2)]
    assert (await send_chunk(http, first, b"%PDF")).status_code == 200
    assert (await send_chunk(http, second, b"%PDF")).status_code == 409
    assert len(sim.files) == 1


@pytest.mark.parametrize("name", ["Run", "a_b", "-a", "a-", "a" * 41, "a/b", "a.b"])
async def test_an_invalid_name_is_refused(name: str, sdk: genai.Client) -> None:
    """A name has at most 40 lowercase letters, digits and dashes, with no dash at its ends."""
    with pytest.raises(errors.ClientError, match="Name may only contain") as caught:
        await upload(sdk, b"%PDF", name=name)
    assert caught.value.code == 400


async def test_a_file_cannot_be_used_until_it_is_processed(sdk: genai.Client, sim: Simulator, clock: Clock) -> None:
    """A file is in processing for `processing_s` of simulated time, and active after that."""
    sim.processing_s = 30
    file = await upload(sdk, b"mp4", **VIDEO)
    assert file.state == types.FileState.PROCESSING
    assert sim.files[0].state == "processing"
    with pytest.raises(errors.ClientError, match="not in an ACTIVE state") as caught:
        await ask(sdk, file)
    assert (caught.value.code, caught.value.status) == (400, "FAILED_PRECONDITION")
    clock.now += 30
    assert (await sdk.aio.files.get(name=str(file.name))).state == types.FileState.ACTIVE
    assert (await ask(sdk, file)).text


@pytest.mark.parametrize("operation", ["file.create", "file.upload_chunk"])
async def test_processing_can_fail(operation: str, sdk: genai.Client, sim: Simulator, clock: Clock) -> None:
    """A file can be uploaded, fail to be processed, and be refused in requests."""
    sim.processing_s = 30
    sim.fail(Fault(kind="processing_failed"), operation=operation)
    file = await upload(sdk, b"mp4", **VIDEO)
    assert file.state == types.FileState.PROCESSING
    clock.now += 30
    found = await sdk.aio.files.get(name=str(file.name))
    assert found.state == types.FileState.FAILED
    assert found.error is not None
    assert found.error.message
    with pytest.raises(errors.ClientError, match="not in an ACTIVE state"):
        await ask(sdk, file)


async def test_an_uploaded_file_cannot_be_downloaded(sdk: genai.Client) -> None:
    """Only generated files, such as the results of batches, can be downloaded."""
    file = await upload(sdk, b"%PDF")
    with pytest.raises(errors.ClientError, match="Only generated files"):
        await sdk.aio.files.download(file=str(file.name))


async def test_the_content_of_batch_input_is_stored(sdk: genai.Client, sim: Simulator) -> None:
    """Content of JSONL files is stored at any size, since batches read it; other large content is not."""
    lines = b'{"key": "r0"}\n' * 100_000
    await upload(sdk, lines, mime_type="jsonl")
    await upload(sdk, lines, mime_type="text/plain")
    stored, dropped = sim.files
    assert stored.content() == lines
    with pytest.raises(LookupError):
        dropped.content()


HEADERS = {
    "x-goog-upload-protocol": "resumable",
    "x-goog-upload-command": "start",
    "x-goog-upload-header-content-length": "4",
    "x-goog-upload-header-content-type": "application/pdf",
}


async def start_upload(http: httpx.AsyncClient, size: int = 4, **file: Any) -> str:
    headers = HEADERS | {"x-goog-upload-header-content-length": str(size)}
    answer = await http.post(START, json={"file": file}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-goog-upload-url"]


async def send_chunk(
    http: httpx.AsyncClient, url: str, content: bytes = b"", command: str = "upload, finalize", offset: int = 0
) -> httpx.Response:
    headers = {"x-goog-upload-command": command, "x-goog-upload-offset": str(offset), "x-goog-api-key": ""}
    return await http.post(url, content=content, headers=headers)


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"x-goog-upload-protocol": "multipart"}, {}, "resumable"),
        ({"x-goog-upload-command": "upload"}, {}, "start"),
        ({"x-goog-upload-header-content-length": ""}, {}, "Content-Length"),
        ({"x-goog-upload-header-content-length": "0"}, {}, "greater than zero"),
        ({"x-goog-upload-header-content-type": ""}, {}, "Invalid MIME type"),
        ({"x-goog-upload-header-content-type": "pdf"}, {}, "Invalid MIME type"),
        ({}, {"file": {"mimeType": "image/png"}}, "differ"),
        ({}, {"file": {"sizeBytes": 5}}, "differ"),
        ({}, {"file": {"size_bytes": "4", "colour": "red"}}, "colour"),
        ({}, {"file": {"display_name": "x" * 513}}, "512 characters"),
        ({}, {"file": 3}, "an object"),
        ({}, [], "an object"),
    ],
)
async def test_an_invalid_upload_does_not_start(
    headers: dict[str, str], body: Any, words: str, http: httpx.AsyncClient
) -> None:
    """An upload with invalid headers or metadata is refused before any content is sent."""
    answer = await http.post(START, json=body, headers=HEADERS | headers)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ((b"%PDF", "upload, finalize", 1), "Offset"),
        ((b"%PDF1", "upload, finalize", 0), "More bytes"),
        ((b"%PD", "upload, finalize", 0), "4 were announced"),
        ((b"%PD", "upload", 0), "must be a multiple"),
        ((b"", "finalize", 0), "4 were announced"),
        ((b"%PDF", "eat", 0), "Invalid X-Goog-Upload-Command"),
    ],
)
async def test_an_invalid_chunk_is_refused(
    sent: tuple[bytes, str, int], words: str, http: httpx.AsyncClient, sim: Simulator
) -> None:
    """A refused chunk is not part of the file, and the upload can be continued."""
    url = await start_upload(http)
    answer = await send_chunk(http, url, *sent)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]
    assert sim.files == []
    received = int((await send_chunk(http, url, command="query")).headers["x-goog-upload-size-received"])
    assert (await send_chunk(http, url, b"%PDF"[received:], offset=received)).status_code == 200


async def test_a_repeated_chunk_counts_once(http: httpx.AsyncClient, sim: Simulator) -> None:
    """A chunk that is sent again while its first attempt is still in progress is stored once."""
    url = await start_upload(http)
    sim.fail(Fault(kind="slow", delay_s=0.3), operation="file.upload_chunk")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await send_chunk(http, url, b"%PDF")
    assert (await send_chunk(http, url, b"%PDF")).status_code == 200
    await asyncio.sleep(0.3)
    assert [(file.size, file.content()) for file in sim.files] == [(4, b"%PDF")]


async def test_a_client_can_query_and_resume_an_upload(http: httpx.AsyncClient, sim: Simulator) -> None:
    """`query` returns the received bytes, and the upload continues from there."""
    content = bytes(8 * MIB) + b"rest"
    url = await start_upload(http, len(content))
    sim.fail(Fault(status=503), operation="file.upload_chunk")
    assert (await send_chunk(http, url, content[: 8 * MIB], "upload")).status_code == 503
    queried = await send_chunk(http, url, command="query")
    assert (queried.headers["x-goog-upload-status"], queried.headers["x-goog-upload-size-received"]) == ("active", "0")
    assert (await send_chunk(http, url, content[: 8 * MIB], "upload")).headers["x-goog-upload-status"] == "active"
    assert (await send_chunk(http, url, command="query")).headers["x-goog-upload-size-received"] == str(8 * MIB)
    answer = await send_chunk(http, url, b"rest", offset=8 * MIB)
    assert answer.headers["x-goog-upload-status"] == "final"
    assert sim.files[0].sha256 == hashlib.sha256(content).hexdigest()


async def test_an_upload_can_be_cancelled(http: httpx.AsyncClient, sim: Simulator) -> None:
    """Chunks to a cancelled or unknown upload are refused with 404."""
    url = await start_upload(http)
    assert (await send_chunk(http, url, command="cancel")).headers["x-goog-upload-status"] == "cancelled"
    for gone in (url, START + "?upload_id=unknown"):
        answer = await send_chunk(http, gone, b"%PDF")
        assert (answer.status_code, answer.headers["x-goog-upload-status"]) == (404, "final")
    assert sim.files == []


async def test_a_finished_upload_takes_no_more_chunks(http: httpx.AsyncClient, sim: Simulator) -> None:
    """A chunk that repeats the last one is refused with 404, and the file is stored once."""
    url = await start_upload(http)
    assert (await send_chunk(http, url, b"%PDF")).status_code == 200
    assert (await send_chunk(http, url, b"%PDF")).status_code == 404
    assert len(sim.files) == 1


async def test_a_fault_can_remove_the_upload_status(http: httpx.AsyncClient, sim: Simulator) -> None:
    """A fault can clear the status header, without which the SDK would sleep and try again."""
    url = await start_upload(http)
    sim.fail(Fault(status=503), operation="file.upload_chunk")
    sim.fail(Fault(status=503, headers={"x-goog-upload-status": ""}), operation="file.upload_chunk")
    statuses = [(await send_chunk(http, url, b"%PDF")).headers["x-goog-upload-status"] for _ in range(3)]
    assert statuses == ["final", "", "final"]
    assert len(sim.files) == 1


@pytest.mark.parametrize("query", [{"pageSize": 101}, {"pageSize": "x"}, {"pageToken": "x"}])
async def test_an_invalid_list_query_is_refused(query: dict[str, Any], http: httpx.AsyncClient) -> None:
    assert (await http.get("/gemini/v1/files", params=query)).status_code == 400


async def test_an_in_process_upload_needs_no_socket() -> None:
    """The upload URL leads back to the simulator in this process."""
    simulator = Simulator()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=simulator.app), base_url="http://simulator") as http:
        http.headers["x-goog-api-key"] = "k"
        url = await start_upload(http)
        assert url.startswith("http://simulator/gemini/upload/v1/files?upload_id=")
        assert (await send_chunk(http, url, b"%PDF")).status_code == 200
    assert simulator.files[0].content() == b"%PDF"
