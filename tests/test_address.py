"""Addresses: what they may say in secret is refused or left out, wherever they are shown."""

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


def all_said(error: BaseException | None) -> str:
    """All that a log could show of it, causes and contexts too."""
    said = ""
    while error is not None:
        said += f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or error.__context__
    return said


# Each holds the secret where somebody might put one.
WITH_CREDENTIALS = [
    "https://user:hunter2@example.com/a.pdf",
    " https://user:hunter2@example.com/a.pdf",
    "HTTPS://hunter2@example.com/a.pdf",
    "s3://AKIA:hunter2@bucket/a.pdf",
    "s3://AKIA:hunter2/A+b@bucket/a.pdf",  # as AWS makes them
    "s3://AKIA:hunter2?x#y@bucket/a.pdf",
    "https:/user:hunter2@example.com/a.pdf",  # pathlib was here
    "simplecache::https://user:hunter2@example.com/a.pdf",
    "https://user:hunter2@[::1",
    "https://user:hunter2@h\n/a.pdf",
    "abfss://user:hunter2@account.dfs.core.windows.net/a.pdf",
]
NOT_EVEN_AN_ADDRESS = ["user:hunter2@example.com/a.pdf", "//user:hunter2@example.com/a.pdf", "ht\ntps://u:hunter2@h/a"]


@pytest.mark.parametrize("address", WITH_CREDENTIALS)
def test_credentials_in_an_address_are_refused_unseen(address: str) -> None:
    """However it is made, and before anything else about it is said."""
    makers: list[Any] = [Source.from_file, Source.from_uri, Source.from_youtube, Source.from_arxiv]
    makers += [lambda uri, kind=kind: Source(source_type=kind, uri=uri) for kind in ("file", "uri", "arxiv")]
    for make in makers:
        with pytest.raises(SourceError) as caught:
            make(address)
        assert "hunter2" not in all_said(caught.value)


@pytest.mark.parametrize("address", NOT_EVEN_AN_ADDRESS)
def test_credentials_in_half_an_address_are_not_repeated(address: str) -> None:
    """Whatever else is wrong with it."""
    for make in (Source.from_file, Source.from_uri, Source.from_youtube, Source.from_arxiv):
        with pytest.raises(SourceError) as caught:
            make(address)
        assert "hunter2" not in all_said(caught.value)


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
def test_not_every_at_sign_is_a_password(address: str) -> None:
    """In a path it is a letter; in Azure's addresses the container stands before it."""
    assert Source.from_file(address).identifier == address


def test_a_path_may_hold_what_an_address_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are called all kinds of things."""
    monkeypatch.chdir(tmp_path)
    for name in ("me@work.pdf", "what? #3.pdf", "C:me@work.pdf"):
        Path(name).touch()
        assert Source.from_file(name).uri == name
    assert Source.from_file("what? #3.pdf").identifier == "what? #3.pdf"


@pytest.mark.parametrize(
    "make",
    [Source.from_file, Source.from_uri, lambda uri: Source(source_type="uri", uri=uri, identifier=uri)],
)
def test_a_signed_address_is_used_whole_and_shown_without_its_query(make: Any) -> None:
    """What reads it needs the signature; nobody else does."""
    source = make(SIGNED)
    assert source.uri == SIGNED
    assert source.identifier == "https://bucket.example.com/march.pdf"
    assert "hunter2" not in repr(source)


@pytest.mark.parametrize("address", ["example.com/a.pdf?token=hunter2", "http://?sig=hunter2", "x?https://h?a=hunter2"])
def test_a_refusal_of_an_address_shows_no_query(address: str) -> None:
    """Even where it is not a complete address."""
    for make in (Source.from_uri, Source.from_youtube, Source.from_arxiv):
        with pytest.raises(SourceError) as caught:
            make(address)
        assert "hunter2" not in all_said(caught.value)
    with pytest.raises(SourceError) as caught:
        Source.from_arxiv("https://example.com/abs/1?sig=hunter2")
    assert "hunter2" not in all_said(caught.value)


def test_videos_can_be_told_apart() -> None:
    """YouTube's ids stand in the query, and are no secret."""
    video = Source.from_youtube("https://www.youtube.com/watch?list=x&v=9hE5-98ZeCg&t=3&si=hunter2#x")
    assert video.identifier == "https://www.youtube.com/watch?v=9hE5-98ZeCg"


def test_addresses_in_what_others_write_are_shown_the_same_way() -> None:
    """A file system, or a provider, repeats what it was given."""
    said = f"404, message='Not Found', url='{SIGNED}' (see s3://k:hunter2@b/x)"
    assert redact_text(said) == "404, message='Not Found', url='https://bucket.example.com/march.pdf' (see s3://…@b/x)"


@given(st.text(alphabet="ab:/@?#[]. \n", max_size=20), st.sampled_from(["https://", "s3://", "", "//"]))
def test_whatever_is_shown_has_no_query_and_no_password(text: str, start: str) -> None:
    """Nothing between a colon and an @ before the path, and nothing after a question mark."""
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
def test_a_file_is_called_by_the_last_part_of_where_it_is(name: str, last: str) -> None:
    """Of a path all of it, of a web address nothing from its query."""
    assert file_name(name) == last


def test_a_stated_type_is_known_in_any_case() -> None:
    """Case means nothing in a MIME type, and everything that compares it writes it small."""
    assert Source.from_uri("https://h/a", mime_type="Application/PDF").mime_type == "application/pdf"
    assert Source.from_uri("https://h/a", mime_type="Text/CSV; charset=UTF-8").mime_type == "text/csv; charset=UTF-8"


@pytest.mark.parametrize(
    "piece", ["x", "x://", "a::bb://c:d", "https://", "://a:", ":", "/", "@", "a.b-c+", "h://u:p?"]
)
def test_a_giant_text_is_looked_through_in_no_time(piece: str) -> None:
    """A server may answer megabytes of anything, and its words are shown."""
    giant = piece * (2_000_000 // len(piece))
    started = time.monotonic()
    redact_text(giant)
    assert time.monotonic() - started < 5
