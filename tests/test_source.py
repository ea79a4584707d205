"""Source: what to look at."""

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
def test_text_goes_as_it_stands(text: str) -> None:
    """Any text, empty text too; its size is that of its UTF-8."""
    source = Source.from_text(text)
    assert source.text == text
    assert source.mime_type == "text/plain"
    assert source.size_bytes == len(text.encode())


def test_text_is_called_by_its_beginning() -> None:
    """So that a person recognises it; or as one likes."""
    assert Source.from_text("word " * 100).identifier == ("word " * 100)[:50]
    assert Source.from_text("word", identifier="my notes").identifier == "my notes"


@given(json_values)
def test_json_goes_as_the_text_of_its_value(value: Any) -> None:
    """Whatever JSON can say, read back, is what was given."""
    source = Source.from_json(value)
    assert json.loads(str(source.text)) == value
    assert source.mime_type == "application/json"
    assert source.identifier == "json-data"


def test_json_keeps_its_order_and_its_letters() -> None:
    """The model reads what a person would: no escapes, no sorting."""
    assert Source.from_json({"straße": "größer", "a": 1}).text == '{"straße": "größer", "a": 1}'


def test_a_pydantic_model_is_json_too() -> None:
    """As its own dump says it."""
    assert Source.from_json(Order(item="pen", count=2)).text == '{"item": "pen", "count": 2}'


@pytest.mark.parametrize("text", [None, 1, b"text", ["text"], object()])
def test_text_is_a_string(text: Any) -> None:
    """Bytes have an encoding that only the caller knows."""
    with expect_error(SourceError, "from_text takes a string", type(text).__name__):
        Source.from_text(text)


@not_json
def test_json_is_no_more_than_json(value: Any) -> None:
    """What JSON does not have is refused, at any depth, with what it does have."""
    with expect_error(SourceError, "cannot become JSON", "Pass dicts, lists, strings, finite numbers"):
        Source.from_json(value)
    with expect_error(SourceError, "cannot become JSON"):
        Source.from_json({"deep": [value]})


def test_a_model_that_is_no_json_is_refused_in_words() -> None:
    """Pydantic's own error stays inside."""
    with expect_error(SourceError, "This Unsayable cannot become JSON"):
        Source.from_json(Unsayable())


def test_half_a_character_is_refused() -> None:
    """It could be put into no request; said here, in words, not as a codec error later."""
    with expect_error(SourceError, "text", "half a character"):
        Source.from_text("\ud800")
    with expect_error(SourceError, "identifier", "half a character"):
        Source.from_text("x", identifier="\ud800")


# --- Files --------------------------------------------------------------------------------------------------


def test_a_file_is_named_and_not_read(tmp_path: Path) -> None:
    """Its type follows from its name, its size from the disk."""
    (tmp_path / "report.pdf").write_bytes(b"%PDF")
    source = Source.from_file(tmp_path / "report.pdf")
    assert (source.mime_type, source.size_bytes) == ("application/pdf", 4)
    assert source.uri == str(tmp_path / "report.pdf")
    assert source.text is None


def test_a_file_of_unknown_kind_can_be_told(tmp_path: Path) -> None:
    """Without being told it is just bytes."""
    (tmp_path / "data").touch()
    assert Source.from_file(tmp_path / "data").mime_type == "application/octet-stream"
    assert Source.from_file(str(tmp_path / "data"), mime_type="text/csv").mime_type == "text/csv"


@pytest.mark.parametrize("path", ["missing.txt", "a\0b", "\ud800", "name" * 1000, "missing/"])
def test_a_file_that_is_not_there_is_refused(path: str) -> None:
    """Whichever way it is not there."""
    with expect_error(SourceError, "There is no file", "Check the path"):
        Source.from_file(path)


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_folder_is_no_file(path: str) -> None:
    """Its files are, one by one."""
    with expect_error(SourceError, "is a directory"):
        Source.from_file(path)


@pytest.mark.parametrize("path", [None, 1, b"path", [], object()])
def test_a_path_is_a_path(path: Any) -> None:
    """Not an open file, not bytes."""
    with expect_error(SourceError, "from_file takes a path", type(path).__name__):
        Source.from_file(path)


@pytest.mark.parametrize("mime_type", ["pdf", "/", "text/", "text plain/x", 5, b"text/csv"])
def test_a_mime_type_looks_like_one(mime_type: Any, tmp_path: Path) -> None:
    """`pdf` is a suffix."""
    (tmp_path / "data").touch()
    with expect_error(SourceError, "mime" if isinstance(mime_type, bytes | int) else "MIME type", ""):
        Source.from_file(tmp_path / "data", mime_type=mime_type)


# --- Addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["https://example.com/a.pdf", "http://h", "gs://bucket/a.mp4", "urn:x"])
def test_a_uri_is_fetched_by_the_provider(uri: str) -> None:
    """Any scheme: which ones work is the provider's business."""
    source = Source.from_uri(uri)
    assert source.uri == source.identifier == uri
    assert source.mime_type == "application/octet-stream"


def test_space_around_an_address_is_forgiven() -> None:
    """As it comes out of a form."""
    assert Source.from_uri(" https://h/a.pdf\n").uri == "https://h/a.pdf"


@pytest.mark.parametrize("uri", ["example.com/a.pdf", "//h/a", "http://", "http://[::1", "a\0b", "http://h\n/a"])
def test_a_uri_that_is_none_is_refused(uri: str) -> None:
    """With an example of one that is."""
    with expect_error(SourceError, "not a complete address", "https://example.com/a.pdf"):
        Source.from_uri(uri)


@pytest.mark.parametrize("uri", ["", " ", None, 1, b"https://h", [], object()])
def test_an_address_is_a_string_with_something_in_it(uri: Any) -> None:
    """Whichever way one is made."""
    with expect_error(SourceError, "needs a uri"):
        Source.from_uri(uri)
    with expect_error(SourceError, "needs a uri"):
        Source.from_youtube(uri)


def test_a_youtube_video_is_a_video() -> None:
    """It is not looked up; but it has to be an address."""
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
    """An id, the abstract, the PDF: one address, one identity."""
    source = Source.from_arxiv(ref)
    assert source.uri == source.identifier == PAPER
    assert source.mime_type == "application/pdf"


@pytest.mark.parametrize("ref", ["2301.07041v2", "cs/0112017", "math.GT/0309136", "hep-th/9901001v1"])
def test_versions_and_old_ids_are_papers_too(ref: str) -> None:
    """They are kept as they are."""
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
def test_what_is_no_paper_is_refused(ref: Any) -> None:
    """Other pages, other hosts, other things."""
    with expect_error(SourceError, "arXiv" if isinstance(ref, str) else "from_arxiv takes a string"):
        Source.from_arxiv(ref)


# --- Gemini's hints -----------------------------------------------------------------------------------------


def test_gemini_can_look_at_a_part_of_a_video() -> None:
    """The settings go on a copy; the original stays whole."""
    whole = Source.from_youtube("https://youtu.be/x")
    part = whole.with_gemini_video_settings(start_offset="10s", end_offset="15.5s", fps=1)
    assert part.gemini_video == VideoSettings(start_offset="10s", end_offset="15.5s", fps=1.0)
    assert whole.gemini_video is None
    assert part != whole
    assert len({whole, part}) == 2


def test_new_settings_take_the_place_of_old_ones() -> None:
    """They do not add up."""
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
def test_video_settings_make_sense_or_are_refused(settings: Any) -> None:
    """Nothing to set, no number, no duration, an end before the start."""
    with pytest.raises(SourceError):
        Source.from_youtube("https://youtu.be/x").with_gemini_video_settings(**settings)


def test_only_videos_have_video_settings() -> None:
    """By YouTube, or by their type."""
    assert Source.from_uri("gs://b/v", mime_type="video/webm").with_gemini_video_settings(fps=1).gemini_video
    with expect_error(SourceError, "not a video"):
        Source.from_text("a story").with_gemini_video_settings(fps=1)
    with expect_error(SourceError, "not a video"):
        Source.from_uri("https://h/a.pdf", mime_type="application/pdf").with_gemini_video_settings(fps=1)


def test_gemini_can_open_an_address_itself() -> None:
    """One of the web, made by from_uri; again on a copy."""
    page = Source.from_uri("https://example.com")
    assert page.with_gemini_url_context().gemini_url_context is True
    assert page.gemini_url_context is False
    for other in (Source.from_uri("gs://b/v"), Source.from_text("https://h"), Source.from_youtube("https://h")):
        with expect_error(SourceError, "http or https"):
            other.with_gemini_url_context()


# --- A document ---------------------------------------------------------------------------------------------


@given(sources)
def test_a_source_goes_through_json(source: Source) -> None:
    """Whatever made it; and it is no less in a pickle or a copy."""
    check_json_round_trip(source)
    for back in (pickle.loads(pickle.dumps(source)), copy.deepcopy(source), source.model_copy()):  # noqa: S301 (our own)
        assert back == source


@given(st.text(), st.text())
def test_sources_are_equal_when_they_say_the_same(one: str, other: str) -> None:
    """And then one is as good as the other in a set or as a key."""
    assert (Source.from_text(one) == Source.from_text(other)) == (one == other)
    assert len({Source.from_text(one), Source.from_text(one)}) == 1


def test_what_a_form_leaves_out_is_filled() -> None:
    """Type and content are enough, as the UI or a hand-written file gives them."""
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
def test_what_is_no_source_is_refused_in_words(data: Any) -> None:
    """The rules of the constructors hold for what is written by hand, too."""
    with pytest.raises(SourceError):
        Source.model_validate(data)
    if isinstance(data, dict):
        with pytest.raises(SourceError):
            Source(**data)
        with pytest.raises(SourceError):
            Source.model_validate_json(json.dumps(data))


def test_the_size_of_text_is_counted_not_believed() -> None:
    """What stands in old or edited JSON does not matter."""
    assert Source(source_type="text", text="four", size_bytes=99).size_bytes == 4


def test_a_source_never_changes() -> None:
    """Its identity is the name of answers; a copy with changes is another source, and checked."""
    source = Source.from_text("hi")
    with expect_error(SourceError, "cannot be changed", "model_copy"):
        source.text = "ho"  # type: ignore[misc]
    assert source.model_copy(update={"text": "longer"}).size_bytes == 6
    with expect_error(SourceError, "text"):
        source.model_copy(update={"text": 5})
    with expect_error(SourceError, "has no uri"):
        source.model_copy(update={"uri": "https://h"})
