"""Anthropic's Files API: behaviour that other providers do not share."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types.file_expired_error import FileExpiredError
from anthropic.types.file_not_downloadable_error import FileNotDownloadableError

from pollux_flows.simulator import Simulator

from .conftest import Clock
from .uploaders import Anthropic

FILES = "/anthropic/v1/files"
PDF = ("a.pdf", b"%PDF", "application/pdf")


@pytest.fixture
async def sdk(sim: Simulator, origin: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with AsyncExitStack() as stack:
        yield (await Anthropic.open(sim.base_url("anthropic", origin), stack)).sdk


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"expires_in_seconds": "3599"}, "greater than or equal to 3600"),
        ({"expires_in_seconds": "7776001"}, "less than or equal to 7776000"),
        ({"expires_in_seconds": "soon"}, "valid integer"),
        ({"expires_in_seconds": ""}, "valid integer"),
        ({"purpose": "user_data"}, "purpose: Extra inputs are not permitted"),
    ],
)
async def test_anthropic_refuses_an_upload_form(
    fields: dict[str, str], words: str, http: httpx.AsyncClient, sim: Simulator
) -> None:
    """An invalid upload form is refused with the name of the field."""
    answer = await http.post(FILES, data=fields, files={"file": PDF})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert words in answer.json()["error"]["message"]
    assert sim.files == []


async def test_a_form_without_a_file_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post(FILES, files={"expires_in_seconds": (None, "3600")})
    assert answer.json()["error"]["message"] == "file: Field required"


async def test_file_endpoints_require_the_version_header(http: httpx.AsyncClient) -> None:
    """File endpoints need the version header, but no beta header."""
    del http.headers["anthropic-version"]
    for attempt in (http.post(FILES, files={"file": PDF}), http.get(FILES), http.delete(FILES + "/file_1")):
        answer = await attempt
        assert (answer.status_code, "anthropic-version" in answer.text) == (400, True)


async def test_beta_methods_reach_the_same_files(sdk: anthropic.AsyncAnthropic) -> None:
    """Files that the SDK's beta methods upload can be fetched with its stable methods."""
    file = await sdk.beta.files.upload(file=PDF, betas=["files-api-2025-04-14"])
    assert (await sdk.files.retrieve_metadata(file.id)).filename == "a.pdf"


async def test_a_file_without_an_expiry_never_expires(sdk: anthropic.AsyncAnthropic, clock: Clock) -> None:
    file = await sdk.files.upload(file=PDF)
    clock.now += 10**8
    assert (await sdk.files.retrieve_metadata(file.id)).expires_at is None


async def test_an_expired_file_has_its_own_error_code(sdk: anthropic.AsyncAnthropic, clock: Clock) -> None:
    """The error of an expired file has a code that the error of an unknown file does not have."""
    file = await sdk.files.upload(file=PDF, expires_in_seconds=3600)
    clock.now += 3600
    with pytest.raises(FileExpiredError):
        await sdk.files.download(file.id)
    with pytest.raises(anthropic.NotFoundError) as caught:
        await sdk.files.retrieve_metadata("file_unknown")
    assert caught.value.error_code is None


async def test_an_uploaded_file_cannot_be_downloaded(sdk: anthropic.AsyncAnthropic) -> None:
    """An uploaded file has `downloadable: false`, and its download is refused."""
    file = await sdk.files.upload(file=PDF)
    assert file.downloadable is False
    with pytest.raises(FileNotDownloadableError):
        await sdk.files.download(file.id)


async def test_files_can_be_listed_by_id(sdk: anthropic.AsyncAnthropic) -> None:
    """A list by ids leaves out ids that are not found."""
    ids = [(await sdk.files.upload(file=PDF)).id for _ in range(3)]
    listed = await sdk.files.list(ids=[ids[0], "file_unknown", ids[2]])
    assert ([file.id for file in listed.data], listed.next_page) == ([ids[2], ids[0]], None)


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"page": "page_x"}, {"ids[]": "a", "limit": 3}]
)
async def test_an_invalid_list_query_is_refused(query: dict[str, Any], http: httpx.AsyncClient) -> None:
    assert (await http.get(FILES, params=query)).status_code == 400
    many = {"ids[]": [f"file_{number}" for number in range(101)]}
    assert (await http.get(FILES, params=many)).status_code == 400


@pytest.mark.parametrize(
    ("sent", "mime_type", "stored"),
    [
        ("docs/2026/a.pdf", "application/pdf", "a.pdf"),
        ("docs\\a.pdf", "application/pdf", "a.pdf"),
        ("docs/", "application/pdf", "unnamed.pdf"),
        ("", "application/x-unheard-of", "unnamed"),
    ],
)
async def test_a_filename_is_the_last_part_of_its_path(
    sent: str, mime_type: str, stored: str, http: httpx.AsyncClient, sim: Simulator
) -> None:
    """The stored name is the last part of a path; a file without a name gets one."""
    disposition = f'Content-Disposition: form-data; name="file"; filename="{sent}"'
    body = f"--x\r\n{disposition}\r\nContent-Type: {mime_type}\r\n\r\n%PDF\r\n--x--\r\n"
    answer = await http.post(FILES, content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == sim.files[0].filename == stored


@pytest.mark.parametrize("name", ["a:b.pdf", "a?.pdf", "a" * 256])
async def test_a_name_with_forbidden_characters_is_refused(name: str, http: httpx.AsyncClient) -> None:
    """A name with forbidden characters, or too many characters, is refused."""
    answer = await http.post(FILES, files={"file": (name, b"%PDF")})
    assert (answer.status_code, "Invalid filename" in answer.text) == (400, True)


async def test_a_missing_mime_type_is_guessed_from_the_name(http: httpx.AsyncClient, sim: Simulator) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\npng\r\n--x--\r\n'
    await http.post(FILES, content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert sim.files[0].mime_type == "image/png"
