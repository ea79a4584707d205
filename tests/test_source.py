"""Source: texts, files and addresses that a prompt is about."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from pollux_flows import Source, SourceError
from pollux_flows.source import VideoSettings
from tests.documents import check_json_round_trip, expect_error, json_values, not_json, sources

PAPER = "https://arxiv.org/pdf/2301.07041.pdf"


class Order(BaseModel):
    item: str
    count: int


class Unsayable(BaseModel):
    raw: bytes = b"\xff"


# --- Text and JSON ------------------------------------------------------------------------------------------


@given(st.text())
def test_a_text_source_has_the_unchanged_text(text: str) -> None:
    """The text may be empty; its size is that of its UTF-8."""
    source = Source.from_text(text)
    assert source.text == text
    assert source.mime_type == "text/plain"
    assert source.size_bytes == len(text.encode())


def test_the_identifier_of_a_text_is_its_beginning_by_default() -> None:
    assert Source.from_text("word " * 100).identifier == ("word " * 100)[:50]
    assert Source.from_text("word", identifier="my notes").identifier == "my notes"


@given(json_values)
def test_a_json_source_has_the_json_text_of_its_value(value: Any) -> None:
    """Parsing the text returns an equal value."""
    source = Source.from_json(value)
    assert json.loads(str(source.text)) == value
    assert source.mime_type == "application/json"
    assert source.identifier == "json-data"


def test_json_is_written_without_escapes_and_without_sorting() -> None:
    """The model reads the letters and the order of the original."""
    assert Source.from_json({"straße": "größer", "a": 1}).text == '{"straße": "größer", "a": 1}'


def test_a_json_source_may_be_a_pydantic_model() -> None:
    """The text is that of its own dump."""
    assert Source.from_json(Order(item="pen", count=2)).text == '{"item": "pen", "count": 2}'


@pytest.mark.parametrize("text", [None, 1, b"text", ["text"], object()])
def test_a_text_that_is_no_string_is_refused(text: Any) -> None:
    """Bytes are refused because their encoding is unknown."""
    with expect_error(SourceError, "from_text takes a string", type(text).__name__):
        Source.from_text(text)


@not_json
def test_a_value_that_json_does_not_have_is_refused_at_any_depth(value: Any) -> None:
    """The hint lists the types of JSON."""
    with expect_error(SourceError, "cannot become JSON", "Pass dicts, lists, strings, finite numbers"):
        Source.from_json(value)
    with expect_error(SourceError, "cannot become JSON"):
        Source.from_json({"deep": [value]})


def test_a_pydantic_model_that_cannot_become_json_is_refused() -> None:
    """The error is a SourceError, not one of Pydantic."""
    with expect_error(SourceError, "This Unsayable cannot become JSON"):
        Source.from_json(Unsayable())


def test_a_lone_surrogate_in_a_text_is_refused() -> None:
    """A lone surrogate cannot be encoded in a request, which would otherwise be a codec error later."""
    with expect_error(SourceError, "text", "half a character"):
        Source.from_text("\ud800")
    with expect_error(SourceError, "identifier", "half a character"):
        Source.from_text("x", identifier="\ud800")


# --- Files --------------------------------------------------------------------------------------------------


def test_a_file_source_has_type_and_size_without_reading_the_file(tmp_path: Path) -> None:
    """The type follows from the name, and the size from the disk."""
    (tmp_path / "report.pdf").write_bytes(b"%PDF")
    source = Source.from_file(tmp_path / "report.pdf")
    assert (source.mime_type, source.size_bytes) == ("application/pdf", 4)
    assert source.uri == str(tmp_path / "report.pdf")
    assert source.text is None


def test_the_type_of_a_file_with_an_unknown_suffix_can_be_passed(tmp_path: Path) -> None:
    """Without a type, the file is application/octet-stream."""
    (tmp_path / "data").touch()
    assert Source.from_file(tmp_path / "data").mime_type == "application/octet-stream"
    assert Source.from_file(str(tmp_path / "data"), mime_type="text/csv").mime_type == "text/csv"


@pytest.mark.parametrize("path", ["missing.txt", "a\0b", "\ud800", "name" * 1000, "missing/"])
def test_a_missing_file_is_refused(path: str) -> None:
    """Invalid paths count as missing files."""
    with expect_error(SourceError, "There is no file", "Check the path"):
        Source.from_file(path)


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_folder_instead_of_a_file_is_refused(path: str) -> None:
    with expect_error(SourceError, "is a directory"):
        Source.from_file(path)


@pytest.mark.parametrize("path", [None, 1, b"path", [], object()])
def test_a_path_of_another_type_is_refused(path: Any) -> None:
    """An open file and bytes are refused as well."""
    with expect_error(SourceError, "from_file takes a path", type(path).__name__):
        Source.from_file(path)


@pytest.mark.parametrize("mime_type", ["pdf", "/", "text/", "text plain/x", 5, b"text/csv"])
def test_an_invalid_mime_type_is_refused(mime_type: Any, tmp_path: Path) -> None:
    """A suffix such as `pdf` is not a MIME type."""
    (tmp_path / "data").touch()
    with expect_error(SourceError, "mime" if isinstance(mime_type, bytes | int) else "MIME type", ""):
        Source.from_file(tmp_path / "data", mime_type=mime_type)


# --- Addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["https://example.com/a.pdf", "http://h", "gs://bucket/a.mp4", "urn:x"])
def test_a_uri_of_any_scheme_is_accepted(uri: str) -> None:
    """The provider fetches the address, and decides which schemes it supports."""
    source = Source.from_uri(uri)
    assert source.uri == source.identifier == uri
    assert source.mime_type == "application/octet-stream"


def test_space_around_an_address_is_stripped() -> None:
    """Forms may add space or a line break."""
    assert Source.from_uri(" https://h/a.pdf\n").uri == "https://h/a.pdf"


@pytest.mark.parametrize("uri", ["example.com/a.pdf", "//h/a", "http://", "http://[::1", "a\0b", "http://h\n/a"])
def test_an_incomplete_uri_is_refused(uri: str) -> None:
    """The error shows a valid example."""
    with expect_error(SourceError, "not a complete address", "https://example.com/a.pdf"):
        Source.from_uri(uri)


@pytest.mark.parametrize("uri", ["", " ", None, 1, b"https://h", [], object()])
def test_a_blank_address_and_one_of_another_type_are_refused(uri: Any) -> None:
    """This holds for each constructor."""
    with expect_error(SourceError, "needs a uri"):
        Source.from_uri(uri)
    with expect_error(SourceError, "needs a uri"):
        Source.from_youtube(uri)


def test_a_youtube_source_is_a_video_with_a_complete_address() -> None:
    """The video is not looked up."""
    source = Source.from_youtube("https://www.youtube.com/watch?v=x")
    assert (source.source_type, source.mime_type) == ("youtube", "video/mp4")
    with expect_error(SourceError, "not a complete address"):
        Source.from_youtube("watch?v=x")


@pytest.mark.parametrize(
    "ref",
    [
        "2301.07041",
        " 2301.07041 ",
        "2301.07041.pdf",
        "https://arxiv.org/abs/2301.07041",
        "http://www.arxiv.org/pdf/2301.07041",
        "https://arxiv.org/pdf/2301.07041.pdf?download=1#page=2",
    ],
)
def test_every_spelling_of_a_paper_is_the_same_paper(ref: str) -> None:
    """The id, the address of the abstract and that of the PDF lead to the same source."""
    source = Source.from_arxiv(ref)
    assert source.uri == source.identifier == PAPER
    assert source.mime_type == "application/pdf"


@pytest.mark.parametrize("ref", ["2301.07041v2", "cs/0112017", "math.GT/0309136", "hep-th/9901001v1"])
def test_versions_and_old_ids_of_papers_are_accepted(ref: str) -> None:
    """The id is used unchanged."""
    assert Source.from_arxiv(ref).uri == f"https://arxiv.org/pdf/{ref}.pdf"


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "2301",
        "2301.٠٧٠٤١",
        "https://arxiv.org/html/2301.07041",
        "https://example.com/abs/2301.07041",
        "https://arxiv.org.evil.com/abs/2301.07041",
        "http://[::1",
        "../../etc/passwd",
        None,
        2301.07041,
        b"2301.07041",
    ],
)
def test_an_invalid_arxiv_reference_is_refused(ref: Any) -> None:
    """Other pages, other hosts and values of other types are refused."""
    with expect_error(SourceError, "arXiv" if isinstance(ref, str) else "from_arxiv takes a string"):
        Source.from_arxiv(ref)


# --- Hints for Gemini ---------------------------------------------------------------------------------------


def test_video_settings_are_set_on_a_copy_of_the_source() -> None:
    """The original source stays unchanged."""
    original = Source.from_youtube("https://youtu.be/x")
    part = original.with_gemini_video_settings(start_offset="10s", end_offset="15.5s", fps=1)
    assert part.gemini_video == VideoSettings(start_offset="10s", end_offset="15.5s", fps=1.0)
    assert original.gemini_video is None
    assert part != original
    assert len({original, part}) == 2


def test_new_video_settings_replace_the_old_ones() -> None:
    """Unset fields of the new settings are not filled from the old ones."""
    part = Source.from_youtube("https://youtu.be/x").with_gemini_video_settings(start_offset="10s")
    assert part.with_gemini_video_settings(fps=2.0).gemini_video == VideoSettings(fps=2.0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fps": 0},
        {"fps": -1},
        {"fps": 25},
        {"fps": True},
        {"fps": "fast"},
        {"fps": float("nan")},
        {"start_offset": ""},
        {"start_offset": " "},
        {"start_offset": "10"},
        {"start_offset": "1m"},
        {"start_offset": "-1s"},
        {"start_offset": "٣s"},
        {"start_offset": 10},
        {"end_offset": "9" * 400 + "s"},
        {"start_offset": "5s", "end_offset": "5s"},
        {"start_offset": "5s", "end_offset": "4.9s"},
    ],
)
def test_invalid_video_settings_are_refused(settings: Any) -> None:
    """Examples are empty settings, invalid numbers or durations, and an end before the start."""
    with pytest.raises(SourceError):
        Source.from_youtube("https://youtu.be/x").with_gemini_video_settings(**settings)


def test_video_settings_are_refused_for_other_sources() -> None:
    """A source is a video if it is from YouTube or has the MIME type of one."""
    assert Source.from_uri("gs://b/v", mime_type="video/webm").with_gemini_video_settings(fps=1).gemini_video
    with expect_error(SourceError, "not a video"):
        Source.from_text("a story").with_gemini_video_settings(fps=1)
    with expect_error(SourceError, "not a video"):
        Source.from_uri("https://h/a.pdf", mime_type="application/pdf").with_gemini_video_settings(fps=1)


def test_the_url_context_of_gemini_is_set_on_a_copy_of_a_web_address() -> None:
    """Only a web address from from_uri is accepted."""
    page = Source.from_uri("https://example.com")
    assert page.with_gemini_url_context().gemini_url_context is True
    assert page.gemini_url_context is False
    for other in (Source.from_uri("gs://b/v"), Source.from_text("https://h"), Source.from_youtube("https://h")):
        with expect_error(SourceError, "http or https"):
            other.with_gemini_url_context()


# --- Sources as documents -----------------------------------------------------------------------------------


@given(sources)
def test_a_source_comes_back_equal_from_json_pickles_and_copies(source: Source) -> None:
    check_json_round_trip(source)
    for back in (pickle.loads(pickle.dumps(source)), copy.deepcopy(source), source.model_copy()):  # noqa: S301 (our own)
        assert back == source


@given(st.text(), st.text())
def test_text_sources_are_equal_exactly_if_their_texts_are(one: str, other: str) -> None:
    """Equal sources have equal hashes."""
    assert (Source.from_text(one) == Source.from_text(other)) == (one == other)
    assert len({Source.from_text(one), Source.from_text(one)}) == 1


def test_fields_that_a_form_leaves_out_are_filled() -> None:
    """Type and content are sufficient in a form or a file."""
    assert Source.model_validate({"source_type": "text", "text": "hi"}) == Source.from_text("hi")
    assert Source.model_validate({"source_type": "arxiv", "uri": "2301.07041"}) == Source.from_arxiv("2301.07041")
    assert Source.model_validate({"source_type": "uri", "uri": "https://h/a.png"}).mime_type == "image/png"


@pytest.mark.parametrize(
    "data",
    [
        {},
        None,
        "text",
        {"text": "x"},
        {"source_type": "text"},
        {"source_type": "text", "text": None},
        {"source_type": "text", "text": 1},
        {"source_type": "json", "text": "{not json"},
        {"source_type": "json", "text": "NaN"},
        {"source_type": "uri"},
        {"source_type": "uri", "uri": "example.com"},
        {"source_type": "file", "uri": " "},
        {"source_type": "picture", "uri": "https://h"},
        {"source_type": [], "text": "x"},
        {"source_type": {}, "text": "x"},
        {"source_type": "text", "text": "x", "uri": "https://h"},
        {"source_type": "uri", "text": "x", "uri": "https://h"},
        {"source_type": "text", "text": "x", "colour": "red"},
        {"source_type": "text", "text": "x", "identifier": 0},
        {"source_type": "text", "text": "x", "mime_type": "none"},
        {"source_type": "text", "text": "x", "gemini_url_context": True},
        {"source_type": "text", "text": "x", "gemini_url_context": "yes"},
        {"source_type": "text", "text": "x", "gemini_video": {"fps": 1}},
        {"source_type": "youtube", "uri": "https://h", "gemini_video": {}},
        {"source_type": "youtube", "uri": "https://h", "gemini_video": {"fps": 99}},
        {"source_type": "youtube", "uri": "https://h", "gemini_video": 5},
        {"source_type": "file", "uri": "a", "size_bytes": -1},
        {"source_type": "file", "uri": "a", "size_bytes": "1"},
        {"source_type": "file", "uri": "a", "size_bytes": 10**400},
    ],
)
def test_invalid_data_of_a_source_is_refused(data: Any) -> None:
    """The rules of the constructors also hold for data from a file or a form."""
    with pytest.raises(SourceError):
        Source.model_validate(data)
    if isinstance(data, dict):
        with pytest.raises(SourceError):
            Source(**data)
        with pytest.raises(SourceError):
            Source.model_validate_json(json.dumps(data))


def test_the_size_of_a_text_is_computed_and_not_read_from_json() -> None:
    """The size in old or edited JSON may be wrong."""
    assert Source(source_type="text", text="four", size_bytes=99).size_bytes == 4


def test_a_source_is_immutable_and_copies_with_changes_are_validated() -> None:
    """Saved answers are found by the identity of their sources."""
    source = Source.from_text("hi")
    with expect_error(SourceError, "cannot be changed", "model_copy"):
        source.text = "ho"  # type: ignore[misc]
    assert source.model_copy(update={"text": "longer"}).size_bytes == 6
    with expect_error(SourceError, "text"):
        source.model_copy(update={"text": 5})
    with expect_error(SourceError, "has no uri"):
        source.model_copy(update={"uri": "https://h"})
