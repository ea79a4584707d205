"""MIME types: formats with the same first bytes are distinguished by name or by their content."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows import ConfigurationError, Source, run
from pollux_flows.files import mime
from pollux_flows.simulator import Simulator
from tests.loopback import MakeConfig

OPENXML = "application/vnd.openxmlformats-officedocument."
DOCX, XLSX, PPTX = (
    f"{OPENXML}{kind}" for kind in ("wordprocessingml.document", "spreadsheetml.sheet", "presentationml.presentation")
)


class Pipe(io.RawIOBase):
    """A stream without seeking, so that zipfile writes sizes after each entry."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        self.data += bytes(data)
        return len(data)


def make_zip(*entries: str | tuple[str, bytes], piped: bool = False) -> bytes:
    """Return a ZIP with these entries in order, with sample content for entries that have none."""
    buffer = Pipe() if piped else io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            name, content = entry if isinstance(entry, tuple) else (entry, entry.encode() * 100)
            stored = zipfile.ZIP_STORED if name == "mimetype" or content.startswith(b"PK") else None
            archive.writestr(name, content, stored)
    return buffer.data if isinstance(buffer, Pipe) else buffer.getvalue()


def make_ole2(*streams: str, sector: int = 512, before: int = 0) -> bytes:
    """Return an OLE2 file with these streams in its root, whose directory follows so many sectors."""
    header = struct.pack("<8s16xHHHHH6xIII", mime._OLE2, 0x3E, 3, 0xFFFE, sector.bit_length() - 1, 6, 0, 1, before)
    directory = b""
    for name, kind in [("Root Entry", 5), *((stream, 2) for stream in streams)]:
        encoded = (name + "\0").encode("utf-16-le")
        directory += struct.pack("<64sHB61x", encoded, len(encoded), kind)
    return header.ljust(sector, b"\0") + b"\1" * sector * before + directory


def detect_type(name: str, data: bytes) -> str:
    return mime.mime_type(name, data[: mime.HEAD])


WORD = make_zip("[Content_Types].xml", "_rels/.rels", "word/document.xml")
EXCEL = make_zip("docProps/app.xml", "xl/theme/theme1.xml", "xl/workbook.xml", "_rels/.rels", "[Content_Types].xml")
SLIDES = make_zip("[Content_Types].xml", "_rels/.rels", "ppt/presentation.xml", piped=True)
BOOK = make_zip(("mimetype", b"application/epub+zip"), "META-INF/container.xml", "word/1.xhtml")
ODT = make_zip(("mimetype", b"application/vnd.oasis.opendocument.text"), "content.xml")
PLAIN = make_zip("a.txt", "word/b.txt")
NESTED = make_zip("notes.txt", ("letter.docx", WORD))
DOC = make_ole2("1Table", "WordDocument", "\5SummaryInformation")
XLS = make_ole2("Workbook", "\5SummaryInformation")
PPT = make_ole2("PowerPoint Document", "Pictures", "Current User", before=300)
MSG = make_ole2("__properties_version1.0", sector=4096)


@pytest.mark.parametrize(
    ("data", "mime_type"),
    [
        (WORD, DOCX),
        (EXCEL, XLSX),
        (SLIDES, PPTX),
        (BOOK, "application/epub+zip"),
        (ODT, "application/vnd.oasis.opendocument.text"),
        (PLAIN, "application/zip"),
        (NESTED, "application/zip"),
        (make_zip(("mimetype", b"nonsense \xff")), "application/zip"),
        (DOC, "application/msword"),
        (XLS, "application/vnd.ms-excel"),
        (make_ole2("Book"), "application/vnd.ms-excel"),
        (PPT, "application/vnd.ms-powerpoint"),
        (MSG, "application/vnd.ms-outlook"),
        (make_ole2("Whatever"), "application/x-ole-storage"),
    ],
)
@pytest.mark.parametrize("name", ["download", "report.bin", "report.pdf", "https://h/download?id=1"])
def test_the_content_decides_where_the_name_has_no_matching_type(name: str, data: bytes, mime_type: str) -> None:
    assert detect_type(name, data) == mime_type


@pytest.mark.parametrize(
    ("name", "data", "mime_type"),
    [
        ("letter.docx", WORD, DOCX),
        ("TABLE.XLSX", PLAIN, XLSX),
        ("talk.pptx", b"PK\3\4", PPTX),
        ("novel.epub", PLAIN, "application/epub+zip"),
        ("report #3?.xls", DOC, "application/vnd.ms-excel"),
        ("talk.ppt", DOC, "application/vnd.ms-powerpoint"),
        ("letter.doc", XLS, "application/msword"),
        ("https://h/table.xls?sig=a.doc", DOC, "application/vnd.ms-excel"),
        ("all.zip", WORD, "application/zip"),
    ],
)
def test_the_name_decides_among_formats_with_equal_first_bytes(name: str, data: bytes, mime_type: str) -> None:
    """The suffix decides in upper and lower case, and independently of this machine's list of types."""
    assert detect_type(name, data) == mime_type


@pytest.mark.parametrize(
    ("name", "data", "mime_type"), [("new.xls", EXCEL, XLSX), ("old.docx", DOC, "application/msword")]
)
def test_a_name_of_another_format_family_is_ignored(name: str, data: bytes, mime_type: str) -> None:
    assert detect_type(name, data) == mime_type


@given(st.binary(max_size=400), st.sampled_from([mime._OLE2, b"PK\3\4", b""]))
def test_random_bytes_have_a_mime_type(data: bytes, start: bytes) -> None:
    assert "/" in detect_type("download", start + data)


@given(st.data())
def test_a_damaged_file_has_a_mime_type(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from([WORD, EXCEL, SLIDES, BOOK, DOC, XLS, MSG])))
    for at in data.draw(st.lists(st.integers(4, len(damaged) - 1), max_size=5)):
        damaged[at] = data.draw(st.integers(0, 255))
    assert "/" in detect_type("download", bytes(damaged))


def test_an_ole2_directory_beyond_the_read_head_leaves_the_name_to_decide() -> None:
    data = make_ole2("PowerPoint Document", "Pictures", before=3000)
    assert detect_type("talk", data) == "application/x-ole-storage"
    assert detect_type("talk.ppt", data) == "application/vnd.ms-powerpoint"


@pytest.mark.parametrize(
    ("name", "text", "mime_type"),
    [
        ("run.sh", "#!/bin/sh\necho", None),
        ("data.yaml", "a: 1", None),
        ("map.geojson", "{}", "text/plain"),
        ("drawing.svg", "<svg/>", "text/plain"),
        ("page.html", "<p>", "text/html"),
        ("data.json", "{}", "application/json"),
        ("table.csv", "a,b", "text/csv"),
        ("film.ts", "export const a = 1", None),
        ("utf-16.txt", "Grüße", "text/plain"),
    ],
)
def test_a_text_file_has_a_type_that_counts_as_text(name: str, text: str, mime_type: str | None) -> None:
    """This machine may map the suffix to a type that does not count as text."""
    detected = detect_type(name, text.encode("utf-16" if "16" in name else "utf-8"))
    assert mime.is_text_like(detected)
    assert detected == mime_type or mime_type is None


async def test_a_script_is_sent_as_text(tmp_path: Path, config: MakeConfig, sim: Simulator) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho hello")
    await run("What does it do?", source=Source.from_file(tmp_path / "run.sh"), config=config("openai"))
    assert len(sim.requests) == 1


async def test_a_mime_type_set_by_the_caller_is_normalised_to_lower_case(
    tmp_path: Path, config: MakeConfig, sim: Simulator
) -> None:
    """`Application/PDF` is a PDF, in the checks and on the wire."""
    (tmp_path / "report").write_bytes(b"%PDF-1.7\n")
    source = Source.from_file(tmp_path / "report", mime_type="Application/PDF")
    await run("What is it?", source=source, config=config("anthropic"))
    assert [file.mime_type for file in sim.files] == ["application/pdf"]


async def test_an_unknown_ole2_file_is_refused(tmp_path: Path, config: MakeConfig) -> None:
    """Such a file must not be sent as a Word document."""
    (tmp_path / "download").write_bytes(make_ole2("Whatever"))
    with pytest.raises(ConfigurationError, match="accepts no application/x-ole-storage file"):
        await run("What is it?", source=Source.from_file(tmp_path / "download"), config=config("openai"))


def test_text_in_another_encoding_has_the_type_of_its_name() -> None:
    """Its first letters may look like a signature: `BM` begins a bitmap as well."""
    head = "BMW;Größe;Müll\n".encode("cp1252") * 20
    assert mime.mime_type("plants.csv", head) == "text/csv"


def test_a_file_with_zero_bytes_is_not_text() -> None:
    assert mime.mime_type("report.txt", bytes(range(256)) * 4) != "text/plain"


def test_a_compressed_file_does_not_have_the_type_of_its_content() -> None:
    """The name `data.csv.br` has both suffixes."""
    assert mime.named_type("data.csv.br") is None
