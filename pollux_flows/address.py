"""Addresses: how they are parsed and checked, and how they are shown without credentials."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from pollux_flows.errors import SourceError

_ARXIV_ID: Final = re.compile(r"(\d{4}\.\d{4,5}|[a-z][a-z.-]*(\.[A-Z]{2})?/\d{7})(v\d+)?", re.ASCII)
_CREDENTIALS: Final = re.compile(
    r"""
    (?: ^ \s* | (?<=::) )                               # fsspec chains addresses with ::
    (?! (?: abfs | wasb ) s? :// [^/:@]+ @ )            # there a container stands before the @
    (?P<kept> [A-Za-z][\w+.-]+ :/{1,2} )                # one slash is what pathlib leaves of two
    (?: [^/?#]* @                                       # user:password@
      | [^/?#:@\[]* : (?! \d* (?: [/?#] | $ ) ) .{0,512} @ )  # a password with a slash in it: what follows : is no port
    """,
    re.VERBOSE,
)
_CREDENTIALS_ALONE: Final = re.compile(r"^(?P<kept>)\s*(//[^/?#]*|[^/\\?#:]*:[^/\\?#]*)@")
_CREDENTIALS_IN_RUINS: Final = re.compile(r"^(?P<kept>[^?#]*://)[^/?#:]*:[^/?#]*@")
_CHAINED: Final = re.compile(r"::(?=[A-Za-z][\w+.-]+://)")
# Begins at the start of a word: trying every letter would take far too long in a text of megabytes.
_ADDRESS_IN_TEXT: Final = re.compile(r"(?<![\w+.-])[\w+.-]+://[^\s\"'<>]+")
_LONGEST_SHOWN: Final = 2048
_VIDEO: Final = re.compile(r"https?://(?:\w+\.)?youtube\.com/watch\?(?:[^#]*&)?(v=[\w-]+)")


def redact_address(address: str) -> str:
    """Return the address without user, password, query and fragment, so that it can be stored, logged and shown."""
    bare = re.split(r"[?#]", _without_credentials(address), maxsplit=1)[0]
    video = _VIDEO.match(address)  # otherwise all videos would look the same
    return f"{bare}?{video[1]}" if video else bare


def redact_location(name: str) -> str:
    """Return an address without password and query, or a path, in which ? and # may occur."""
    return _without_credentials(name) if is_path(name) else redact_address(name)


def redact_text(text: str) -> str:
    """Return a text with each address in it redacted."""
    return _ADDRESS_IN_TEXT.sub(lambda found: redact_address(found[0][:_LONGEST_SHOWN]), text)


def is_path(name: str) -> bool:
    """Return whether this is the path of a file on this machine. A path may start with a drive letter."""
    return protocol(name) == "file"


def protocol(name: str) -> str:
    """Return the protocol of an address, and `file` for a path."""
    before, separator, _ = name.partition("://")
    if not separator or len(before) <= 1 or "/" in before or before.lower() == "local":
        return "file"
    return before.lower()


def local_path(name: str) -> str:
    """Return the path on this machine."""
    before, separator, path = name.partition("://")
    match before.lower() if separator else "":
        case "file":
            return unquote(path)
        case "local":
            return path
        case _:
            return name


def file_name(name: str) -> str:
    """Return the last part of a path or an address; of a chain, that of the innermost file."""
    if is_path(name):
        return PurePath(local_path(name)).name
    link = next(link for link in _CHAINED.split(name) if "://" in link)
    path = re.split(r"[?#]", link, maxsplit=1)[0] if is_web(link) else link
    return unquote(path.rstrip("/").rpartition("/")[2])


def is_web(address: str) -> bool:
    parts = _parts(address)
    return parts.scheme in {"http", "https"} and parts.netloc != ""


def check_fetchable(address: str, *, web: bool) -> None:
    """Refuse an address that cannot be fetched."""
    scheme = _parts(address).scheme
    is_complete = is_web(address) if web or scheme in {"http", "https"} else scheme != ""
    # urlsplit() ignores line breaks; a client that fetches the address would not.
    if not is_complete or not address.isprintable():
        raise SourceError(
            f"{redact_address(address)!r} is not a complete address.",
            hint="Write it with its scheme, such as 'https://example.com/a.pdf'.",
        )


def check_no_credentials(address: str, *, path: bool = False) -> None:
    """Refuse an address that contains credentials, as addresses are stored and logged. The error does not quote it."""
    patterns = [_CREDENTIALS, _CREDENTIALS_IN_RUINS] + ([] if path else [_CREDENTIALS_ALONE])
    if any(pattern.search(address) for pattern in patterns):
        raise SourceError(
            "The address holds a user name or a password.",
            hint="Sign in with the environment's own credentials, or download the file first.",
        )


def arxiv_pdf(ref: Any) -> str:
    """Return the address of an arXiv paper's PDF."""
    if not isinstance(ref, str):
        raise SourceError(
            f"from_arxiv takes a string, not {type(ref).__name__}.", hint="Pass a paper's id, such as '1706.03762'."
        )
    name = ref.strip()
    check_no_credentials(name)
    if name.startswith(("http://", "https://")):
        address = _parts(name)
        folder, _, name = address.path.lstrip("/").partition("/")
        if address.hostname not in {"arxiv.org", "www.arxiv.org"} or folder not in {"abs", "pdf"}:
            raise SourceError(
                f"{redact_address(ref)!r} is not an arXiv abstract or PDF.",
                hint="Write an id such as '2301.07041', or its /abs/ or /pdf/ address.",
            )
    name = name.removesuffix(".pdf")
    if not _ARXIV_ID.fullmatch(name):
        raise SourceError(
            f"{redact_address(ref)!r} is not an arXiv id.",
            hint="Write an id such as '2301.07041' or 'cs/0112017'.",
        )
    return f"https://arxiv.org/pdf/{name}.pdf"


def _without_credentials(address: str) -> str:
    for pattern in (_CREDENTIALS, _CREDENTIALS_ALONE, _CREDENTIALS_IN_RUINS):
        address = pattern.sub(r"\g<kept>…@", address)
    return address


def _parts(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
