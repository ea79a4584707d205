"""File system: that of an address, by fsspec, without the listings that it has remembered."""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.address import protocol

# An hour there has 60 requests, and each listing takes one.
_LISTED_ONCE: Final = {"github"}


def find_file_system(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path on it.

    A remembered listing is forgotten: in a process that lives long, it lacks files that others have written since, and
    has the earlier versions of those that they have replaced.
    """
    import fsspec

    files, path = fsspec.core.url_to_fs(address)
    if protocol(address) not in _LISTED_ONCE:
        files.invalidate_cache()
    return files, path
