"""MIME types: kinds that begin alike are told apart, by name or by what is inside."""

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
    """Nobody can go back in it, so a ZIP's sizes stand behind its entries."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        self.data += bytes(data)
        return len(data)


def zipped(*entries: str | tuple[str, bytes], piped: bool = False) -> bytes:
    """A ZIP with these entries, in this order; with some content where none is given."""
    buffer = Pipe() if piped else io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            name, content = entry if isinstance(entry, tuple) else (entry, entry.encode() * 100)
            stored = zipfile.ZIP_STORED if name == "mimetype" or content.startswith(b"PK") else None
            archive.writestr(name, content, stored)
    return buffer.data if isinstance(buffer, Pipe) else buffer.getvalue()


def ole2(*streams: str, sector: int = 512, before: int = 0) -> bytes:
    """An OLE2 file with these streams in its root, whose directory comes after so many sectors."""
    header = struct.pack("<8s16xHHHHH6xIII", mime._OLE2, 0x3E, 3, 0xFFFE, sector.bit_length() - 1, 6, 0, 1, before)
    directory = b""
    for name, kind in [("Root Entry", 5), *((stream, 2) for stream in streams)]:
        encoded = (name + "\0").encode("utf-16-le")
        directory += struct.pack("<64sHB61x", encoded, len(encoded), kind)
    return header.ljust(sector, b"\0") + b"\1" * sector * before + directory


def kind(name: str, data: bytes) -> str:
    return mime.mime_type(name, data[: mime.HEAD])


WORD = zipped("[Content_Types].xml", "_rels/.rels", "word/document.xml")
EXCEL = zipped("docProps/app.xml", "xl/theme/theme1.xml", "xl/workbook.xml", "_rels/.rels", "[Content_Types].xml")
SLIDES = zipped("[Content_Types].xml", "_rels/.rels", "ppt/presentation.xml", piped=True)
BOOK = zipped(("mimetype", b"application/epub+zip"), "META-INF/container.xml", "word/1.xhtml")
ODT = zipped(("mimetype", b"application/vnd.oasis.opendocument.text"), "content.xml")
PLAIN = zipped("a.txt", "word/b.txt")
NESTED = zipped("notes.txt", ("letter.docx", WORD))
DOC = ole2("1Table", "WordDocument", "\5SummaryInformation")
XLS = ole2("Workbook", "\5SummaryInformation")
PPT = ole2("PowerPoint Document", "Pictures", "Current User", before=300)
MSG = ole2("__properties_version1.0", sector=4096)


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
        (zipped(("mimetype", b"nonsense \xff")), "application/zip"),
        (DOC, "application/msword"),
        (XLS, "application/vnd.ms-excel"),
        (ole2("Book"), "application/vnd.ms-excel"),
        (PPT, "application/vnd.ms-powerpoint"),
        (MSG, "application/vnd.ms-outlook"),
        (ole2("Whatever"), "application/x-ole-storage"),
    ],
)
@pytest.mark.parametrize("name", ["download", "report.bin", "report.pdf", "https://h/download?id=1"])
def test_what_is_inside_says_what_it_is_where_the_name_says_nothing(name: str, data: bytes, mime_type: str) -> None:
    """Or says something that it cannot be."""
    assert kind(name, data) == mime_type


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
def test_the_name_decides_among_kinds_that_begin_alike(name: str, data: bytes, mime_type: str) -> None:
    """In any case, and whatever list of types this machine has."""
    assert kind(name, data) == mime_type


@pytest.mark.parametrize(
    ("name", "data", "mime_type"), [("new.xls", EXCEL, XLSX), ("old.docx", DOC, "application/msword")]
)
def test_a_name_of_another_family_is_not_believed(name: str, data: bytes, mime_type: str) -> None:
    """Somebody renamed it."""
    assert kind(name, data) == mime_type


@given(st.binary(max_size=400), st.sampled_from([mime._OLE2, b"PK\3\4", b""]))
def test_garbage_is_some_kind_of_file(data: bytes, start: bytes) -> None:
    """Whatever stands where sizes and places should."""
    assert "/" in kind("download", start + data)


@given(st.data())
def test_a_damaged_file_is_some_kind_of_file(data: st.DataObject) -> None:
    """The same for what looks right at first."""
    whole = bytearray(data.draw(st.sampled_from([WORD, EXCEL, SLIDES, BOOK, DOC, XLS, MSG])))
    for at in data.draw(st.lists(st.integers(4, len(whole) - 1), max_size=5)):
        whole[at] = data.draw(st.integers(0, 255))
    assert "/" in kind("download", bytes(whole))


def test_a_directory_at_the_end_of_a_long_file_is_not_looked_up() -> None:
    """There, the name decides."""
    data = ole2("PowerPoint Document", "Pictures", before=3000)
    assert kind("talk", data) == "application/x-ole-storage"
    assert kind("talk.ppt", data) == "application/vnd.ms-powerpoint"


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
def test_text_is_of_a_kind_that_can_be_read_as_text(name: str, text: str, mime_type: str | None) -> None:
    """Whichever kind of text this machine takes the name for."""
    found = kind(name, text.encode("utf-16" if "16" in name else "utf-8"))
    assert mime.is_text_like(found)
    assert found == mime_type or mime_type is None


async def test_a_script_is_sent_as_text(tmp_path: Path, config: MakeConfig, sim: Simulator) -> None:
    """Not refused as an application nobody knows."""
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho hello")
    await run("What does it do?", source=Source.from_file(tmp_path / "run.sh"), config=config("openai"))
    assert len(sim.requests) == 1


async def test_a_stated_type_is_compared_in_any_case(tmp_path: Path, config: MakeConfig, sim: Simulator) -> None:
    """`Application/PDF` is a PDF, to the gate and on the wire."""
    (tmp_path / "report").write_bytes(b"%PDF-1.7\n")
    source = Source.from_file(tmp_path / "report", mime_type="Application/PDF")
    await run("What is it?", source=source, config=config("anthropic"))
    assert [file.mime_type for file in sim.files] == ["application/pdf"]


async def test_a_container_of_unknown_kind_is_refused_with_the_way_out(tmp_path: Path, config: MakeConfig) -> None:
    """Rather than sent as a Word document."""
    (tmp_path / "download").write_bytes(ole2("Whatever"))
    with pytest.raises(ConfigurationError, match="accepts no application/x-ole-storage file"):
        await run("What is it?", source=Source.from_file(tmp_path / "download"), config=config("openai"))


def test_text_in_another_encoding_is_what_its_name_says() -> None:
    """Two letters of it may look like magic: `BM` begins a bitmap as well."""
    head = "BMW;Größe;Müll\n".encode("cp1252") * 20
    assert mime.mime_type("plants.csv", head) == "text/csv"


def test_what_holds_zeros_is_no_text() -> None:
    """Whatever it is called."""
    assert mime.mime_type("report.txt", bytes(range(256)) * 4) != "text/plain"


def test_what_is_packed_is_not_what_is_inside() -> None:
    """Its name says both."""
    assert mime.named_type("data.csv.br") is None
