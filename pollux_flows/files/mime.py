"""MIME types: detects the type of a file by its content, and by its name where the content is ambiguous."""

from __future__ import annotations

import codecs
import mimetypes
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Final

from pollux_flows.address import file_name

# This many bytes of a file are nearly always enough to detect its type.
HEAD: Final = 1 << 18
_MAGIC: Final = 8192

_TEXT_LIKE: Final = {
    "application/csv", "application/json", "application/xml", "application/yaml", "application/x-yaml",
    "application/x-tex", "application/x-latex", "application/x-bibtex", "application/javascript",
    "application/x-javascript", "application/toml", "application/sql",
}  # fmt: skip
_OTHER_NAMES: Final = {"audio/wave": "audio/wav", "audio/x-wav": "audio/wav", "image/jpg": "image/jpeg"}

_OPENXML: Final = "application/vnd.openxmlformats-officedocument."
_OPENDOCUMENT: Final = "application/vnd.oasis.opendocument."
# Python takes these from a list on the machine, which many containers lack.
_ENDINGS: Final = {
    ".docx": f"{_OPENXML}wordprocessingml.document",
    ".xlsx": f"{_OPENXML}spreadsheetml.sheet",
    ".pptx": f"{_OPENXML}presentationml.presentation",
    ".odt": f"{_OPENDOCUMENT}text",
    ".ods": f"{_OPENDOCUMENT}spreadsheet",
    ".odp": f"{_OPENDOCUMENT}presentation",
    ".epub": "application/epub+zip",
    ".msg": "application/vnd.ms-outlook",
    ".jsonl": "application/jsonl",
}

_KNOWN: Final = mimetypes.MimeTypes(filenames=())  # without this machine's own list

# Types with the same magic number, which are told apart by the file name or, without one, by the content.
_ZIP: Final = b"PK\x03\x04"
_IN_ZIP: Final = {"word/": _ENDINGS[".docx"], "xl/": _ENDINGS[".xlsx"], "ppt/": _ENDINGS[".pptx"]}
_OFFICE: Final = ("[Content_Types].xml", "_rels/", "docProps/")
_MIME_TYPE: Final = re.compile(rb"[\w.+-]{1,50}/[\w.+-]{1,100}", re.ASCII)
_DOCUMENTS: Final = (b"%PDF-", b"{\\rtf")  # these look like text
_OLE2: Final = bytes.fromhex("d0cf11e0a1b11ae1")
_IN_OLE2: Final = {
    "WordDocument": "application/msword",
    "Workbook": "application/vnd.ms-excel",
    "Book": "application/vnd.ms-excel",
    "PowerPoint Document": "application/vnd.ms-powerpoint",
    "VisioDocument": "application/vnd.visio",
    "__properties_version1.0": "application/vnd.ms-outlook",
}


def is_text_like(mime_type: str) -> bool:
    """Return whether content of this type can be read as text."""
    return mime_type.startswith("text/") or mime_type in _TEXT_LIKE or mime_type.endswith(("+json", "+xml"))


def mime_type(name: str, head: bytes) -> str:
    """Return the MIME type of a file by its content. The name decides between the possible types."""
    named = named_type(name)
    if head.startswith(_ZIP):
        return named if named and _is_zip(named) else _in_zip(head)
    if head.startswith(_OLE2):
        return named if named and named in _IN_OLE2.values() else _in_ole2(head)
    if _is_text(head[:_MAGIC]):
        # Text has no reliable magic numbers, so a name of a text type decides. But SVG, GeoJSON and other types with a
        # + are sent as plain text, as few providers accept their own types.
        return named if named and is_text_like(named) and "+" not in named else "text/plain"
    if named and is_text_like(named) and not head.startswith(_DOCUMENTS):
        # In text of another encoding two letters may look like a magic number. A file with zero bytes is not text.
        if b"\0" not in head:
            return named if "+" not in named else "text/plain"
        named = None
    possible = _possible(head[:_MAGIC])
    if named in possible:
        return str(named)
    return possible[0] if possible else named or "application/octet-stream"


def named_type(name: str) -> str | None:
    """Return the MIME type of a file's name, regardless of the machine's own list, or None."""
    last = file_name(name)
    named, packed = _KNOWN.guess_type(last)
    return _ENDINGS.get(PurePath(last).suffix.lower()) or ("" if packed else (named or "").lower()) or None


def choose_extension(name: str, mime_type: str) -> str:
    """Return the file extension of the name if it matches the MIME type, otherwise one that does."""
    if named_type(name) == mime_type:
        return PurePath(file_name(name)).suffix
    known = next((each for each, type_ in _ENDINGS.items() if type_ == mime_type), None)
    return known or _KNOWN.guess_extension(mime_type) or ""


def _possible(head: bytes) -> list[str]:
    import puremagic

    try:
        found = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return []
    return [_OTHER_NAMES.get(match.mime_type, match.mime_type) for match in found if match.mime_type]


def _is_text(head: bytes) -> bool:
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    if (b"\0" in head and encoding == "utf-8") or head.startswith(_DOCUMENTS):
        return False
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)  # accepts an incomplete character at the end
    except UnicodeDecodeError:
        return False
    return True


def _is_zip(named: str) -> bool:
    return (
        named.startswith((_OPENXML, _OPENDOCUMENT))
        or named.endswith(("zip", ".macroenabled.12"))
        or named in {"application/java-archive", "application/vnd.android.package-archive"}
    )


def _in_zip(head: bytes) -> str:
    """Return the type of a zip: by the entry `mimetype` of EPUB and OpenDocument, or by the folders of Office."""
    office, kind = False, ""
    for entry, content in _entries(head):
        if entry == "mimetype" and _MIME_TYPE.fullmatch(content):
            return content.decode()
        office = office or entry.startswith(_OFFICE)
        kind = kind or next((_IN_ZIP[folder] for folder in _IN_ZIP if entry.startswith(folder)), "")
        if office and kind:
            return kind
    return "application/zip"


def _entries(head: bytes) -> Iterator[tuple[str, bytes]]:
    """Iterate over the entries in the first bytes of a zip: their names and stored (still compressed) bytes."""
    at = 0
    while head[at : at + 4] == _ZIP:
        flags, size, named = _number(head, at + 6, 2), _number(head, at + 18, 4), _number(head, at + 26, 2)
        start = at + 30 + named + _number(head, at + 28, 2)
        end = start + size
        if flags & 8 and not size:  # written as a stream: the size follows the content
            end = head.find(_ZIP, start)
        yield head[at + 30 : at + 30 + named].decode(errors="replace"), head[start:end]
        at = end if end >= start else len(head)


def _in_ole2(head: bytes) -> str:
    """Return the type of an OLE2 file, by a stream that only one type has."""
    named = (type_ for stream, type_ in _IN_OLE2.items() if f"{stream}\0\0".encode("utf-16-le") in head)
    return next(named, "application/x-ole-storage")


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
