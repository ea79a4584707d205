"""File systems: find the fsspec file system of an address, without its cached listings."""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.address import protocol

# Keeps its cached listings: each takes one of the 60 requests that an hour has there.
_LISTED_ONCE: Final = {"github"}


def find_file_system(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path on it.

    Cached listings are discarded: in a long-lived process they lack files that others have written since, and have the
    earlier versions of files that were replaced.
    """
    import fsspec

    files, path = fsspec.core.url_to_fs(address)
    if protocol(address) not in _LISTED_ONCE:
        files.invalidate_cache()
    return files, path
