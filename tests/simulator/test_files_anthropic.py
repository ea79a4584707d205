"""What Anthropic's Files API does in its own way."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types.file_expired_error import FileExpiredError
from anthropic.types.file_not_downloadable_error import FileNotDownloadableError

from pollux_flows.simulator import Simulator

from .conftest import Time
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
async def test_anthropic_refuses_a_form(
    fields: dict[str, str], words: str, http: httpx.AsyncClient, sim: Simulator
) -> None:
    """And names the field that is wrong."""
    answer = await http.post(FILES, data=fields, files={"file": PDF})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert words in answer.json()["error"]["message"]
    assert sim.files == []


async def test_a_form_without_a_file_is_refused(http: httpx.AsyncClient) -> None:
    """There is nothing to store."""
    answer = await http.post(FILES, files={"expires_in_seconds": (None, "3600")})
    assert answer.json()["error"]["message"] == "file: Field required"


async def test_a_version_is_needed(http: httpx.AsyncClient) -> None:
    """As with everything at Anthropic; a beta header is not."""
    del http.headers["anthropic-version"]
    for attempt in (http.post(FILES, files={"file": PDF}), http.get(FILES), http.delete(FILES + "/file_1")):
        answer = await attempt
        assert (answer.status_code, "anthropic-version" in answer.text) == (400, True)


async def test_the_beta_names_still_work(sdk: anthropic.AsyncAnthropic) -> None:
    """They lead to the same files."""
    file = await sdk.beta.files.upload(file=PDF, betas=["files-api-2025-04-14"])
    assert (await sdk.files.retrieve_metadata(file.id)).filename == "a.pdf"


async def test_without_an_expiry_a_file_stays(sdk: anthropic.AsyncAnthropic, clock: Time) -> None:
    """For ever."""
    file = await sdk.files.upload(file=PDF)
    clock.now += 10**8
    assert (await sdk.files.retrieve_metadata(file.id)).expires_at is None


async def test_an_expired_file_is_told_from_one_that_never_was(sdk: anthropic.AsyncAnthropic, clock: Time) -> None:
    """By the code in the error's details."""
    file = await sdk.files.upload(file=PDF, expires_in_seconds=3600)
    clock.now += 3600
    with pytest.raises(FileExpiredError):
        await sdk.files.download(file.id)
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await sdk.files.retrieve_metadata("file_nobodys")
    assert unknown.value.error_code is None


async def test_no_upload_can_be_downloaded(sdk: anthropic.AsyncAnthropic) -> None:
    """`downloadable: false` means it."""
    file = await sdk.files.upload(file=PDF)
    assert file.downloadable is False
    with pytest.raises(FileNotDownloadableError):
        await sdk.files.download(file.id)


async def test_files_can_be_listed_by_id(sdk: anthropic.AsyncAnthropic) -> None:
    """What is not there is left out."""
    ids = [(await sdk.files.upload(file=PDF)).id for _ in range(3)]
    listed = await sdk.files.list(ids=[ids[0], "file_nobodys", ids[2]])
    assert ([file.id for file in listed.data], listed.next_page) == ([ids[2], ids[0]], None)


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"page": "page_x"}, {"ids[]": "a", "limit": 3}]
)
async def test_a_list_that_makes_no_sense_is_refused(query: dict[str, Any], http: httpx.AsyncClient) -> None:
    """Not answered with whatever comes to mind."""
    assert (await http.get(FILES, params=query)).status_code == 400
    many = {"ids[]": [f"file_{number}" for number in range(101)]}
    assert (await http.get(FILES, params=many)).status_code == 400


@pytest.mark.parametrize(
    ("given", "mime_type", "stored"),
    [
        ("docs/2026/a.pdf", "application/pdf", "a.pdf"),
        ("docs\\a.pdf", "application/pdf", "a.pdf"),
        ("docs/", "application/pdf", "unnamed.pdf"),
        ("", "application/x-unheard-of", "unnamed"),
    ],
)
async def test_of_a_path_the_last_part_is_kept(
    given: str, mime_type: str, stored: str, http: httpx.AsyncClient, sim: Simulator
) -> None:
    """A file without a name gets one."""
    disposition = f'Content-Disposition: form-data; name="file"; filename="{given}"'
    body = f"--x\r\n{disposition}\r\nContent-Type: {mime_type}\r\n\r\n%PDF\r\n--x--\r\n"
    answer = await http.post(FILES, content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == sim.files[0].filename == stored


@pytest.mark.parametrize("name", ["a:b.pdf", "a?.pdf", "a" * 256])
async def test_a_name_with_forbidden_characters_is_refused(name: str, http: httpx.AsyncClient) -> None:
    """Or one that is too long."""
    answer = await http.post(FILES, files={"file": (name, b"%PDF")})
    assert (answer.status_code, "Invalid filename" in answer.text) == (400, True)


async def test_a_type_that_nobody_said_is_guessed(http: httpx.AsyncClient, sim: Simulator) -> None:
    """From the name."""
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\npng\r\n--x--\r\n'
    await http.post(FILES, content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert sim.files[0].mime_type == "image/png"
