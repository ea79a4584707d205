"""Attachments: the files and media that each provider accepts, refuses, and counts as tokens."""

from typing import Any

import httpx
import pytest

from pollux_flows.simulator import Simulator
from pollux_flows.simulator.tokens import of_attachment, of_base64, of_file, of_url

from .clients import KEY_HEADERS
from .conftest import Clock

PNG = "data:image/png;base64,AAAA"
PDF = "data:application/pdf;base64,AAAA"


def test_a_file_costs_the_same_tokens_by_any_transport() -> None:
    """Text costs a token per 4 bytes; other files 258 per 32 KiB, with a limit; the transport does not matter."""
    assert of_file("text/plain", 4001) == 1001
    assert of_file("application/pdf", 40_000) == 516
    assert of_base64("A" * 4000, "text/csv") == of_url("data:text/csv;base64," + "A" * 4000) == 750
    assert of_base64("QUE=", "text/plain") == 1
    assert of_url("https://e.x/a.txt") == 258
    assert of_attachment(10**12) == 256 * 258


class AttachmentSender:
    """Sends a request with one attachment over plain HTTP, so that invalid ones can be sent too."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def openai(self, part: Any) -> httpx.Response:
        items = [{"role": "user", "content": [part, {"type": "input_text", "text": "four"}]}]
        return await self.http.post("/openai/v1/responses", json={"model": "gpt-4.1", "input": items})

    async def anthropic(self, block: Any) -> httpx.Response:
        messages = [{"role": "user", "content": [block, {"type": "text", "text": "four"}]}]
        body = {"model": "claude-haiku-4-5", "max_tokens": 99, "messages": messages}
        return await self.http.post("/anthropic/v1/messages", json=body)

    async def gemini(self, part: Any, **more: Any) -> httpx.Response:
        body = {"contents": [{"role": "user", "parts": [part, {"text": "four"}]}], **more}
        return await self.http.post("/gemini/v1/models/gemini-2.5-flash:generateContent", json=body)

    async def openrouter(self, part: Any, model: str = "openai/gpt-4.1-mini", **more: Any) -> httpx.Response:
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "four"}]}]
        body = {"model": model, "messages": messages, **more}
        return await self.http.post("/openrouter/api/v1/chat/completions", json=body)

    async def local(self, content: Any) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        return await self.http.post("/local/v1/chat/completions", json=body)

    async def upload(self, provider: str, name: str, mime_type: str, content: bytes = b"content") -> str:
        """Upload a file; return its id, or for Gemini its URI."""
        if provider == "gemini":
            headers = {
                "x-goog-upload-protocol": "resumable",
                "x-goog-upload-command": "start",
                "x-goog-upload-header-content-length": str(len(content)),
                "x-goog-upload-header-content-type": mime_type,
            }
            start = await self.http.post("/gemini/upload/v1/files", json={}, headers=headers)
            headers = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}
            end = await self.http.post(start.headers["x-goog-upload-url"], content=content, headers=headers)
            return str(end.json()["file"]["uri"])
        fields = {"purpose": "user_data"} if provider == "openai" else {}
        answer = await self.http.post(f"/{provider}/v1/files", data=fields, files={"file": (name, content, mime_type)})
        return str(answer.json()["id"])


@pytest.fixture
def sender(http: httpx.AsyncClient) -> AttachmentSender:
    return AttachmentSender(http)


# --- OpenAI


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_file", "file_url": "https://e.x/a.pdf"},
        {"type": "input_file", "file_url": "https://e.x/paper?id=1"},
        {"type": "input_file", "filename": "a.pdf", "file_data": PDF},
        {"type": "input_file", "filename": "a.docx", "file_data": "data:application/vnd.openxmlformats-officedocument"
         ".wordprocessingml.document;base64,AAAA"},
        {"type": "input_file", "filename": "a.md", "file_data": "data:text/markdown;base64,AAAA"},
        {"type": "input_image", "image_url": PNG},
        {"type": "input_image", "image_url": "https://e.x/a"},
    ],
)  # fmt: skip
async def test_openai_accepts_an_attachment(part: Any, sender: AttachmentSender) -> None:
    """OpenAI accepts documents and images, by URL or inline."""
    answer = await sender.openai(part)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "input_file", "file_url": "https://e.x/a.mp3"}, "context stuffing file type"),
        ({"type": "input_file", "file_url": "https://e.x/a.mp4?x=1.pdf"}, "but got .mp4"),
        ({"type": "input_file", "file_url": "gs://bucket/a.pdf"}, "Expected a valid URL"),
        ({"type": "input_file", "file_url": "https://"}, "Expected a valid URL"),
        ({"type": "input_file", "filename": "a.mp3", "file_data": "data:audio/mpeg;base64,AAAA"}, "audio/mpeg"),
        ({"type": "input_file", "filename": "a.mp4", "file_data": "data:video/mp4;base64,AAAA"}, "video/mp4"),
        ({"type": "input_file", "filename": "a", "file_data": "data:application/octet-stream;base64,AAAA"}, "octet"),
        ({"type": "input_file", "filename": "a.pdf", "file_data": "AAAA"}, "base64-encoded data URL"),
        ({"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,A?A"}, "decoded"),
        ({"type": "input_file", "file_data": PDF}, "filename"),
        ({"type": "input_file"}, "file_id"),
        ({"type": "input_file", "file_id": "file-1", "file_url": "https://e.x/a.pdf"}, "Mutually exclusive"),
        ({"type": "input_image", "file_id": "file-1", "image_url": PNG}, "Mutually exclusive"),
        ({"type": "input_image", "image_url": "data:image/png;base64,?"}, "decoded"),
        ({"type": "input_image", "image_url": PDF}, "unsupported image"),
    ],
)
async def test_openai_refuses_an_attachment(part: Any, words: str, sender: AttachmentSender) -> None:
    """OpenAI refuses audio, video, invalid URLs and invalid data."""
    answer = await sender.openai(part)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("input_file", "a.mp3", "but got .mp3"),
        ("input_file", "a.MP4", "but got .mp4"),
        ("input_file", "a.png", "but got .png"),
        ("input_file", "a", "but got none"),
        ("input_file", "a.pdf", None),
        ("input_file", "a.PDF", None),
        ("input_file", "a.xlsx", None),
        ("input_image", "a.pdf", "Expected image type to be a supported format: .jpeg"),
        ("input_image", "a.svg", "but got .svg"),
        ("input_image", "a.JPG", None),
    ],
)
async def test_openai_checks_a_file_by_its_extension(
    kind: str, name: str, words: str | None, sender: AttachmentSender
) -> None:
    """OpenAI checks the extension of a file's name, not the MIME type of its upload."""
    answer = await sender.openai({"type": kind, "file_id": await sender.upload("openai", name, "application/pdf")})
    if words is None:
        assert answer.status_code == 200, answer.text
    else:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
        assert words in answer.json()["error"]["message"]


async def test_openai_checks_files_in_tool_outputs(sender: AttachmentSender, http: httpx.AsyncClient) -> None:
    """A tool output may refer to a file, which must exist."""
    file_id = await sender.upload("openai", "a.pdf", "application/pdf", bytes(100))
    for used_id, status in ((file_id, 200), ("file-unknown", 404)):
        items: list[Any] = [
            {"role": "user", "content": "four"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file", "file_id": used_id}]},
        ]
        answer = await http.post("/openai/v1/responses", json={"model": "gpt-4.1", "input": items})
        assert answer.status_code == status, answer.text


# --- Anthropic


def document(**source: str) -> dict[str, Any]:
    return {"type": "document", "source": source}


def image(**source: str) -> dict[str, Any]:
    return {"type": "image", "source": source}


@pytest.mark.parametrize(
    "block",
    [
        document(type="url", url="https://e.x/a.pdf"),
        document(type="base64", media_type="application/pdf", data="AAAA"),
        document(type="text", media_type="text/plain", data="four"),
        image(type="url", url="https://e.x/a.png"),
        image(type="base64", media_type="image/webp", data="AAAA"),
    ],
)
async def test_anthropic_accepts_an_attachment(block: Any, sender: AttachmentSender) -> None:
    """Anthropic accepts PDF, plain text and images, by URL or inline."""
    answer = await sender.anthropic(block)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (document(type="url", url="http://e.x/a.pdf"), "Only HTTPS URLs"),
        (image(type="url", url="gs://bucket/a.png"), "Only HTTPS URLs"),
        (document(type="base64", media_type="application/pdf", data="?"), "Invalid base64"),
        (document(type="base64", media_type="text/plain", data="AAAA"), "application/pdf"),
        (document(type="text", media_type="text/markdown", data="x"), "text/plain"),
        (image(type="base64", media_type="image/tiff", data="AAAA"), "image/jpeg"),
    ],
)
async def test_anthropic_refuses_an_attachment(block: Any, words: str, sender: AttachmentSender) -> None:
    """Anthropic refuses other URL schemes, invalid base64 and unsupported types."""
    answer = await sender.anthropic(block)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "mime_type", "words"),
    [
        ("document", "application/pdf", None),
        ("document", "text/plain", None),
        ("document", "text/plain; charset=utf-8", None),
        ("document", "text/markdown", "Only PDF and plaintext documents are supported"),
        ("document", "application/octet-stream", "Unsupported document file format: application/octet-stream"),
        ("document", "image/png", "Only PDF and plaintext documents are supported"),
        ("image", "image/gif", None),
        ("image", "image/svg+xml", "JPEG, PNG, GIF, and WebP"),
        ("image", "application/pdf", "JPEG, PNG, GIF, and WebP"),
        ("image", "video/mp4", "JPEG, PNG, GIF, and WebP"),
    ],
)
async def test_anthropic_checks_a_file_by_its_mime_type(
    kind: str, mime_type: str, words: str | None, sender: AttachmentSender
) -> None:
    """Anthropic checks the MIME type of the upload, not the file's name."""
    file_id = await sender.upload("anthropic", "a.pdf", mime_type)
    answer = await sender.anthropic({"type": kind, "source": {"type": "file", "file_id": file_id}})
    assert answer.status_code == (200 if words is None else 400), answer.text
    assert words is None or words in answer.json()["error"]["message"]


async def test_anthropic_checks_files_in_tool_results(sender: AttachmentSender, http: httpx.AsyncClient) -> None:
    """A tool result may refer to a file, which must exist."""
    file_id = await sender.upload("anthropic", "a.pdf", "application/pdf")
    for used_id, status in ((file_id, 200), ("file_unknown", 404)):
        result = [{"type": "document", "source": {"type": "file", "file_id": used_id}}]
        messages: list[Any] = [
            {"role": "user", "content": "four"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": result}]},
        ]
        tools = [{"name": "f", "input_schema": {"type": "object"}}]
        body = {"model": "claude-haiku-4-5", "max_tokens": 99, "messages": messages, "tools": tools}
        answer = await http.post("/anthropic/v1/messages", json=body)
        assert answer.status_code == status, answer.text


# --- Gemini


def file_data(uri: str, mime_type: str = "application/pdf", **settings: Any) -> dict[str, Any]:
    part: dict[str, Any] = {"fileData": {"fileUri": uri, "mimeType": mime_type}}
    return part | ({"videoMetadata": settings} if settings else {})


YOUTUBE = "https://www.youtube.com/watch?v=x"


@pytest.mark.parametrize(
    "part",
    [
        file_data("https://e.x/a.pdf"),
        file_data("gs://bucket/a.pdf"),
        file_data(YOUTUBE, "video/mp4", startOffset="1.5s", endOffset="20s", fps=24),
        {"fileData": {"fileUri": "https://youtu.be/x"}, "videoMetadata": {"fps": 0.1}},
        {"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}, "video_metadata": {"start_offset": "0s"}},
        {"inlineData": {"mimeType": "audio/mpeg", "data": "AP8="}},
        {"inlineData": {"mimeType": "text/plain", "data": "_-AA"}},
    ],
)
async def test_gemini_accepts_an_attachment(part: Any, sender: AttachmentSender) -> None:
    """Gemini accepts documents, audio and video, inline or by URL, and the settings of videos."""
    answer = await sender.gemini(part)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (file_data("files/abc"), "Invalid or unsupported file uri"),
        (file_data("s3://bucket/a.pdf"), "Invalid or unsupported file uri"),
        (file_data("https://e.x/a.bin", "application/octet-stream"), "Unsupported MIME type: application/octet-stream"),
        (file_data("https://e.x/a.zip", "application/zip"), "Unsupported MIME type"),
        ({"inlineData": {"mimeType": "application/msword", "data": "AAAA"}}, "Unsupported MIME type"),
        ({"inlineData": {"mimeType": "", "data": "AAAA"}}, "mime_type"),
        ({"inlineData": {"mimeType": "image/png", "data": "?"}}, "Base64 decoding failed"),
        (file_data("https://e.x/a.pdf", startOffset="1s"), "may only be set on a video"),
        ({"text": "x", "videoMetadata": {"fps": 1}}, "may only be set on a video"),
        (file_data(YOUTUBE, "video/mp4", fps=0), "(0.0, 24.0]"),
        (file_data(YOUTUBE, "video/mp4", fps=24.1), "(0.0, 24.0]"),
        (file_data(YOUTUBE, "video/mp4", startOffset="10"), "start_offset"),
        (file_data(YOUTUBE, "video/mp4", endOffset="-1s"), "end_offset"),
        (file_data(YOUTUBE, "video/mp4", startOffset="10s", endOffset="10s"), "before end_offset"),
    ],
)
async def test_gemini_refuses_an_attachment(part: Any, words: str, sender: AttachmentSender) -> None:
    """Gemini refuses types that no model reads, invalid URIs and invalid video settings."""
    answer = await sender.gemini(part)
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert words in answer.json()["error"]["message"]


async def test_gemini_checks_the_mime_type_when_a_file_is_used(sender: AttachmentSender) -> None:
    """Gemini stores files of any type, refuses unreadable ones when used, and takes video settings with videos."""
    video = await sender.upload("gemini", "a", "video/mp4")
    office = await sender.upload(
        "gemini", "a", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    )
    assert (await sender.gemini(file_data(video, "video/mp4", fps=2))).status_code == 200
    assert (await sender.gemini({"fileData": {"fileUri": video}})).status_code == 200
    answer = await sender.gemini(file_data(office))
    assert (answer.status_code, "Unsupported MIME type" in answer.text) == (400, True)


async def test_gemini_finds_a_file_by_both_addresses(sender: AttachmentSender, origin: str) -> None:
    """A file is found by its URI at Google's address and at the simulator's, in both API versions."""
    uri = await sender.upload("gemini", "a.pdf", "application/pdf")
    own = uri.replace("https://generativelanguage.googleapis.com/v1/", f"{origin}/gemini/v1beta/")
    for known in (uri, own):
        assert (await sender.gemini(file_data(known))).status_code == 200
    assert (await sender.gemini(file_data(uri + "x"))).status_code == 403


async def test_a_cache_can_hold_a_file(sender: AttachmentSender, http: httpx.AsyncClient, clock: Clock) -> None:
    """A cache counts a file by its size; the file must exist when the cache is created."""
    uri = await sender.upload("gemini", "a.pdf", "application/pdf", bytes(40_000))
    body = {"model": "models/gemini-2.5-flash", "contents": [{"parts": [file_data(uri)]}]}
    created = await http.post("/gemini/v1/cachedContents", json=body)
    assert created.json()["usageMetadata"]["totalTokenCount"] == 2 * 258
    clock.now += 48 * 3600
    assert (await http.post("/gemini/v1/cachedContents", json=body)).status_code == 403


async def test_gemini_fetches_urls_in_the_prompt(sender: AttachmentSender) -> None:
    """With the URL context tool, URLs in the prompt are fetched, and counted apart from the prompt."""
    text = {"text": "Compare https://e.x/a (old) with https://e.x/b, and https://e.x/a again"}
    without_tool = (await sender.gemini(text)).json()
    assert "urlContextMetadata" not in without_tool["candidates"][0]
    with_tool = (await sender.gemini(text, tools=[{"urlContext": {}}])).json()
    urls = [entry["retrievedUrl"] for entry in with_tool["candidates"][0]["urlContextMetadata"]["urlMetadata"]]
    assert urls == ["https://e.x/a", "https://e.x/b"]
    usage = with_tool["usageMetadata"]
    assert usage["toolUsePromptTokenCount"] == 2 * 258
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + 516 + usage["candidatesTokenCount"]
    many = {"text": " ".join(f"https://e.x/{number}" for number in range(21))}
    assert (await sender.gemini(many, tools=[{"url_context": {}}])).status_code == 400


# --- OpenRouter and local

MAVERICK = "meta-llama/llama-4-maverick"
LLAMA = "meta-llama/llama-3.3-70b-instruct"


def image_url(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def pdf(data: str | None, **more: Any) -> dict[str, Any]:
    return {"type": "file", "file": {"filename": "a.pdf", **({"file_data": data} if data else {}), **more}}


def pdf_engine(engine: str) -> dict[str, Any]:
    return {"plugins": [{"id": "file-parser", "pdf": {"engine": engine}}]}


@pytest.mark.parametrize(
    ("part", "model", "status", "words"),
    [
        (image_url(PNG), MAVERICK, 200, ""),
        (image_url("https://e.x/a.png"), MAVERICK, 200, ""),
        (image_url(PNG), LLAMA, 404, "No endpoints found that support image input"),
        (image_url("data:image/tiff;base64,AAAA"), MAVERICK, 400, "Unsupported type"),
        (image_url("data:image/png;base64,?"), MAVERICK, 400, "Invalid data URL"),
        (image_url("gs://bucket/a.png"), MAVERICK, 400, "Invalid URL"),
        (pdf(PDF), LLAMA, 200, ""),
        (pdf("https://e.x/a.pdf"), LLAMA, 200, ""),
        (pdf(None), LLAMA, 400, "file_data"),
        (pdf(None, file_id="file-1"), LLAMA, 400, "file_data"),
        (pdf("data:text/plain;base64,AAAA"), LLAMA, 400, "Unsupported type"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}, MAVERICK, 404, "audio input"),
        (
            {"type": "input_audio", "input_audio": {"data": "?", "format": "mp3"}},
            "google/gemini-2.5-flash-lite",
            400,
            "base64",
        ),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, MAVERICK, 404, "video input"),
    ],
)
async def test_openrouter_checks_attachments(
    part: Any, model: str, status: int, words: str, sender: AttachmentSender
) -> None:
    """OpenRouter checks attachments against its catalogue and for invalid data; it has no stored files."""
    answer = await sender.openrouter(part, model)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text


@pytest.mark.parametrize(
    ("model", "more", "is_parsed"),
    [
        ("openai/gpt-4.1-mini", {}, False),
        ("openai/gpt-4.1-mini", pdf_engine("native"), False),
        ("openai/gpt-4.1-mini", pdf_engine("cloudflare-ai"), True),
        (LLAMA, {}, True),
    ],
)
async def test_openrouter_returns_the_text_of_parsed_files(
    model: str, more: dict[str, Any], is_parsed: bool, sender: AttachmentSender
) -> None:
    """OpenRouter returns annotations to send back instead of the PDF, unless the model itself reads files."""
    message = (await sender.openrouter(pdf(PDF), model, **more)).json()["choices"][0]["message"]
    assert [note["file"]["name"] for note in message.get("annotations", [])] == ["a.pdf"] * is_parsed


async def test_openrouter_checks_the_engine_of_the_file_parser(sender: AttachmentSender) -> None:
    """A model without file input has no native engine, and unknown engines are refused."""
    assert (await sender.openrouter(pdf(PDF), LLAMA, **pdf_engine("native"))).status_code == 404
    assert (await sender.openrouter(pdf(PDF), LLAMA, **pdf_engine("magic"))).status_code == 400


@pytest.mark.parametrize("part", [image_url(PNG), pdf(PDF)])
async def test_a_local_model_accepts_text_only(part: Any, sender: AttachmentSender) -> None:
    """A local model accepts a string or text parts, and refuses other parts."""
    assert (await sender.local("four")).status_code == 200
    assert (await sender.local([{"type": "text", "text": "four"}])).status_code == 200
    answer = await sender.local([part])
    assert (answer.status_code, "not supported" in answer.json()["error"]) == (400, True)


async def test_a_file_cannot_be_used_by_another_account(sender: AttachmentSender, sim: Simulator, origin: str) -> None:
    """A request with another account's file id is refused."""
    uploaded = {
        name: await sender.upload(name, "a.pdf", "application/pdf") for name in ("openai", "anthropic", "gemini")
    }
    headers = KEY_HEADERS | {"authorization": "Bearer another", "x-goog-api-key": "another"}
    async with httpx.AsyncClient(base_url=origin, headers=headers) as http:
        other = AttachmentSender(http)
        answers = [
            await other.openai({"type": "input_file", "file_id": uploaded["openai"]}),
            await other.anthropic(document(type="file", file_id=uploaded["anthropic"])),
            await other.gemini(file_data(uploaded["gemini"])),
        ]
    assert [answer.status_code for answer in answers] == [404, 404, 403]
    assert answers[1].json()["error"]["type"] == "not_found_error"
    assert answers[2].json()["error"]["status"] == "PERMISSION_DENIED"
    assert all(file.is_there for file in sim.files)
