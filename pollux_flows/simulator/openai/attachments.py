"""The attachments of Responses requests: documents, images, and references to stored files.

The service checks a stored file by the extension of its name, not by its bytes or its type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pollux_flows.simulator.media import IMAGES, data_url_type, extension, is_base64, is_web_url, url_extension
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.simulator.wire import BadRequest, Call, Refusal

# In the order of the error messages.
_IMAGE_EXTENSIONS = ".jpeg, .jpg, .png, .gif, .webp"
_DOCUMENT_EXTENSIONS = (
    ".art, .bat, .brf, .c, .cls, .cpp, .cs, .css, .csv, .diff, .doc, .docx, .dot, .eml, .es, .go, .h, .hs, .htm, "
    ".html, .hwp, .hwpx, .ics, .ifb, .java, .js, .json, .jsx, .keynote, .ksh, .ltx, .mail, .markdown, .md, .mht, "
    ".mhtml, .mjs, .nws, .odt, .pages, .patch, .pdf, .php, .pl, .pm, .pot, .ppa, .pps, .ppt, .pptx, .py, .rb, .rst, "
    ".rtf, .scala, .sh, .shtml, .sql, .srt, .sty, .svg, .tex, .text, .ts, .tsv, .txt, .vcf, .vtt, .xla, .xlb, .xlc, "
    ".xls, .xlsx, .xml, .yaml, .yml"
)
_DOCUMENT_TYPES = re.compile(
    r"text/|application/(pdf|json|xml|yaml|csv|rtf|javascript|typescript|graphql|msword|sql|"
    r"x-(yaml|tex|latex|bibtex|javascript|sh|python|subrip)$|vnd\.(openxmlformats|ms-|oasis\.opendocument|apple)|"
    r"[\w.-]+\+(json|xml)$)"
)
_SOURCES = ("file_id", "file_url", "file_data")


def check(call: Call) -> None:
    """Refuse attachments that the model cannot read; collect the stored files in `call.files`."""
    for part, at in _parts(call.body.get("input")):
        if part["type"] == "input_file":
            _check_file(call, part, at)
        elif part["type"] == "input_image":
            _check_image(call, part, at)


def _parts(items: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Iterate over the parts of messages and tool outputs, with their paths."""
    for place, item in enumerate(items if isinstance(items, list) else []):
        for name in ("content", "output"):
            parts = item.get(name)
            for index, part in enumerate(parts if isinstance(parts, list) else []):
                yield part, f"input[{place}].{name}[{index}]"


def _check_file(call: Call, part: dict[str, Any], at: str) -> None:
    sources = [name for name in _SOURCES if part.get(name)]
    if len(sources) > 1:
        raise BadRequest(
            f"Mutually exclusive parameters: '{at}'. Ensure you are only providing one of: "
            f"{' or '.join(repr(name) for name in sources)}.",
            param=at,
            code="mutually_exclusive_parameters",
        )
    if not sources:
        raise _missing(f"{at}.file_id", at)
    match sources[0]:
        case "file_id":
            file = _stored(call, part["file_id"], at)
            _check_extension(extension(file.filename), _DOCUMENT_EXTENSIONS, "context stuffing file")
        case "file_url":
            if not is_web_url(part["file_url"]):
                raise _no_url(f"{at}.file_url")
            # An address without an extension may have any type.
            if found := url_extension(part["file_url"]):
                _check_extension(found, _DOCUMENT_EXTENSIONS, "context stuffing file")
        case _:
            _check_file_data(part, at)


def _check_file_data(part: dict[str, Any], at: str) -> None:
    kind = data_url_type(part["file_data"])
    if kind is None or not _DOCUMENT_TYPES.match(kind):
        raise BadRequest(
            f"Invalid '{at}.file_data'. Expected a base64-encoded data URL with an application/pdf MIME type "
            f"(e.g. 'data:application/pdf;base64,aGVsbG8='), but got unsupported MIME type '{kind}'.",
            param=f"{at}.file_data",
            code="invalid_value",
        )
    _check_base64(part["file_data"], f"{at}.file_data")
    if "filename" not in part:
        raise _missing(f"{at}.filename", f"{at}.filename")


def _check_image(call: Call, part: dict[str, Any], at: str) -> None:
    url = part.get("image_url")
    if part.get("file_id"):
        if url:
            raise BadRequest(
                f"Mutually exclusive parameters: '{at}'. Ensure you are only providing one of: 'file_id' or "
                "'image_url'.",
                param=at,
                code="mutually_exclusive_parameters",
            )
        _check_extension(extension(_stored(call, part["file_id"], at).filename), _IMAGE_EXTENSIONS, "image")
        return
    if not url:
        raise _missing(f"{at}.image_url", at)
    if url.startswith("data:"):
        if data_url_type(url) not in IMAGES:
            raise BadRequest(
                "You uploaded an unsupported image. Please make sure your image has of one the following formats: "
                "['png', 'jpeg', 'gif', 'webp'].",
                param=f"{at}.image_url",
                code="invalid_image_format",
            )
        _check_base64(url, f"{at}.image_url")
    elif not is_web_url(url):
        raise _no_url(f"{at}.image_url")


def _stored(call: Call, file_id: str, at: str) -> StoredFile:
    call.files[file_id] = file = find_file(call, file_id, at)
    return file


def find_file(call: Call, file_id: str, param: str) -> StoredFile:
    """Return an account's file; refuse with 404, for this parameter, if it does not exist."""
    file = call.simulator.file_store.find("openai", file_id, call.account)
    if file is None:
        raise Refusal(404, f"No such File object: {file_id}", param=param)
    return file


def _check_extension(found: str, supported: str, kind: str) -> None:
    if found not in supported.split(", "):
        raise BadRequest(
            f"Invalid input: Expected {kind} type to be a supported format: {supported} but got {found or 'none'}.",
            param="input",
        )


def _check_base64(url: str, at: str) -> None:
    if not is_base64(url.partition(",")[2]):
        raise BadRequest(
            f"Invalid '{at}'. Expected a base64-encoded data URL, but got a value that cannot be decoded.",
            param=at,
            code="invalid_value",
        )


def _no_url(at: str) -> Refusal:
    return BadRequest(
        f"Invalid '{at}'. Expected a valid URL, but got a value with an invalid format.", param=at, code="invalid_value"
    )


def _missing(what: str, at: str) -> Refusal:
    return BadRequest(f"Missing required parameter: '{what}'.", param=at, code="missing_required_parameter")
