"""Types of content, derived from names, MIME types and URLs."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import posixpath
import re
from urllib.parse import urlsplit

IMAGES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)[^,]*;base64,")


def data_url_type(url: str) -> str | None:
    """Return the MIME type of a base64 data URL; None for anything else."""
    match = _DATA_URL.match(url)
    return match.group(1).lower() if match else None


def is_base64(data: str) -> bool:
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def is_web_url(url: str, *schemes: str) -> bool:
    """Return whether a URL has one of these schemes (http or https by default) and a host."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in (schemes or ("http", "https")) and bool(parts.hostname)


def extension(name: str) -> str:
    """Return the extension of a file's name, such as `.pdf`; empty when it has none."""
    return posixpath.splitext(name)[1].lower()


def url_extension(url: str) -> str:
    return extension(urlsplit(url).path)


def guess_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"
