"""Addresses: credentials in them are refused, and secrets in their queries are never shown."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows import Source, SourceError
from pollux_flows.address import file_name, is_path, redact_address, redact_location, redact_text

SIGNED = "https://bucket.example.com/march.pdf?X-Amz-Credential=AKIA&X-Amz-Signature=hunter2"


def collect_text(error: BaseException | None) -> str:
    """Return all text that a log could show of an error, including causes and contexts."""
    text = ""
    while error is not None:
        text += f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or error.__context__
    return text


# Each address holds the secret in a place where people put credentials.
WITH_CREDENTIALS = [
    "https://user:hunter2@example.com/a.pdf",
    " https://user:hunter2@example.com/a.pdf",
    "HTTPS://hunter2@example.com/a.pdf",
    "s3://AKIA:hunter2@bucket/a.pdf",
    "s3://AKIA:hunter2/A+b@bucket/a.pdf",  # as in keys of AWS
    "s3://AKIA:hunter2?x#y@bucket/a.pdf",
    "https:/user:hunter2@example.com/a.pdf",  # pathlib makes one slash of two
    "simplecache::https://user:hunter2@example.com/a.pdf",
    "https://user:hunter2@[::1",
    "https://user:hunter2@h\n/a.pdf",
    "abfss://user:hunter2@account.dfs.core.windows.net/a.pdf",
]
INCOMPLETE_ADDRESSES = ["user:hunter2@example.com/a.pdf", "//user:hunter2@example.com/a.pdf", "ht\ntps://u:hunter2@h/a"]


@pytest.mark.parametrize("address", WITH_CREDENTIALS)
def test_credentials_in_an_address_are_refused_and_not_shown(address: str) -> None:
    """Each constructor of a Source refuses credentials, and no error shows the secret."""
    makers: list[Any] = [Source.from_file, Source.from_uri, Source.from_youtube, Source.from_arxiv]
    makers += [lambda uri, kind=kind: Source(source_type=kind, uri=uri) for kind in ("file", "uri", "arxiv")]
    for make in makers:
        with pytest.raises(SourceError) as caught:
            make(address)
        assert "hunter2" not in collect_text(caught.value)


@pytest.mark.parametrize("address", INCOMPLETE_ADDRESSES)
def test_errors_about_an_incomplete_address_do_not_show_credentials(address: str) -> None:
    for make in (Source.from_file, Source.from_uri, Source.from_youtube, Source.from_arxiv):
        with pytest.raises(SourceError) as caught:
            make(address)
        assert "hunter2" not in collect_text(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "https://medium.com/@someone/a:b@c",
        "https://example.com:8080/a@b.pdf",
        "https://[::1]:8080/a@b.pdf",
        "s3://bucket/a:b@c.pdf",
        "gs://bucket/a@b.pdf",
        "abfss://container@account.dfs.core.windows.net/a.pdf",
        "file:///me@work.pdf",
        "memory:///me@work.pdf",
    ],
)
def test_an_at_sign_in_a_path_or_container_is_accepted(address: str) -> None:
    """An at sign may be part of a path, and in addresses of Azure it follows the container."""
    assert Source.from_file(address).identifier == address


def test_a_local_path_may_hold_characters_that_an_address_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("me@work.pdf", "what? #3.pdf", "C:me@work.pdf"):
        Path(name).touch()
        assert Source.from_file(name).uri == name
    assert Source.from_file("what? #3.pdf").identifier == "what? #3.pdf"


@pytest.mark.parametrize(
    "make",
    [Source.from_file, Source.from_uri, lambda uri: Source(source_type="uri", uri=uri, identifier=uri)],
)
def test_a_signed_address_is_used_with_its_query_and_shown_without_it(make: Any) -> None:
    """Only the reader of the file needs the signature."""
    source = make(SIGNED)
    assert source.uri == SIGNED
    assert source.identifier == "https://bucket.example.com/march.pdf"
    assert "hunter2" not in repr(source)


@pytest.mark.parametrize("address", ["example.com/a.pdf?token=hunter2", "http://?sig=hunter2", "x?https://h?a=hunter2"])
def test_errors_about_an_address_do_not_show_its_query(address: str) -> None:
    """This holds for incomplete addresses as well."""
    for make in (Source.from_uri, Source.from_youtube, Source.from_arxiv):
        with pytest.raises(SourceError) as caught:
            make(address)
        assert "hunter2" not in collect_text(caught.value)
    with pytest.raises(SourceError) as caught:
        Source.from_arxiv("https://example.com/abs/1?sig=hunter2")
    assert "hunter2" not in collect_text(caught.value)


def test_the_shown_address_of_a_video_has_its_id() -> None:
    """The id of a YouTube video is part of the query, and is not secret."""
    video = Source.from_youtube("https://www.youtube.com/watch?list=x&v=9hE5-98ZeCg&t=3&si=hunter2#x")
    assert video.identifier == "https://www.youtube.com/watch?v=9hE5-98ZeCg"


def test_addresses_in_a_foreign_text_are_shown_without_secrets() -> None:
    """Errors of file systems and providers repeat the addresses that they got."""
    text = f"404, message='Not Found', url='{SIGNED}' (see s3://k:hunter2@b/x)"
    assert redact_text(text) == "404, message='Not Found', url='https://bucket.example.com/march.pdf' (see s3://…@b/x)"


@given(st.text(alphabet="ab:/@?#[]. \n", max_size=20), st.sampled_from(["https://", "s3://", "", "//"]))
def test_a_shown_address_has_no_query_and_no_password(text: str, start: str) -> None:
    """Neither text between a colon and an @ nor text after a question mark is shown."""
    secret = "hunter2"
    for address in (f"{start}{text}?{secret}", f"{start}u:{secret}@{text}"):
        assert secret not in redact_address(address)
    if not is_path(f"{start}x"):
        assert secret not in redact_location(f"{start}{text}?{secret}")


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("reports/report #3?.xls", "report #3?.xls"),
        ("https://h/a%20b.pdf?x=/c.png#d", "a b.pdf"),
        ("s3://bucket/what?.xls", "what?.xls"),
        ("memory://[draft].pdf", "[draft].pdf"),
        ("file:///tmp/a%20b.pdf", "a b.pdf"),
        ("zip://inner.csv::https://h/outer.zip", "inner.csv"),
        ("simplecache::https://h/outer.zip?sig=1", "outer.zip"),
        ("https://h/folder/", "folder"),
    ],
)
def test_the_name_of_a_file_is_the_last_part_of_its_address(name: str, last: str) -> None:
    """A local name may contain a question mark; the query of a web address is not part of the name."""
    assert file_name(name) == last


def test_the_case_of_a_mime_type_does_not_matter() -> None:
    """A type is stored in lower case, because it is compared in lower case."""
    assert Source.from_uri("https://h/a", mime_type="Application/PDF").mime_type == "application/pdf"
    assert Source.from_uri("https://h/a", mime_type="Text/CSV; charset=UTF-8").mime_type == "text/csv; charset=UTF-8"


@pytest.mark.parametrize(
    "piece", ["x", "x://", "a::bb://c:d", "https://", "://a:", ":", "/", "@", "a.b-c+", "h://u:p?"]
)
def test_addresses_in_a_text_of_two_megabytes_are_found_within_seconds(piece: str) -> None:
    """A server may reply with megabytes of any text, which is shown in an error."""
    text = piece * (2_000_000 // len(piece))
    started = time.monotonic()
    redact_text(text)
    assert time.monotonic() - started < 5
