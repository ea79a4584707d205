"""Versions of packages that do not work together, although their metadata allows it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version


class _Conflict(NamedTuple):
    versions: Mapping[str, str]
    """The version specifier of each package."""
    consequence: str
    remedy: str


_FIRST_THAT_SCHEDULES: Final = "3.9.1"
_CONFLICTS: Final = (
    _Conflict(
        {"prefect": f"<{_FIRST_THAT_SCHEDULES}", "sqlalchemy": ">=2.1"},
        "a server of these never starts a scheduled run",
        f"Install prefect>={_FIRST_THAT_SCHEDULES}",
    ),
    _Conflict(
        {"prefect": "<3.9", "fastapi": ">=0.151"},
        "a server of these does not start",
        f"Install prefect>={_FIRST_THAT_SCHEDULES}",
    ),
)


def find_installed() -> dict[str, str]:
    """Return the installed versions of the packages that are known not to work together."""
    found = {}
    for name in {name for conflict in _CONFLICTS for name in conflict.versions}:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a client without a server has no database packages
            continue
    return found


def find_conflicts(versions: Mapping[str, str]) -> list[str]:
    """Return a sentence for each set of these versions that does not work together."""
    return [
        f"{' with '.join(f'{name} {versions[name]}' for name in conflict.versions)}: {conflict.consequence}. "
        f"{conflict.remedy} where the server runs."
        for conflict in _CONFLICTS
        if all(_is_within(versions.get(name), bounds) for name, bounds in conflict.versions.items())
    ]


def find_server_problem(prefect: str) -> str | None:
    """Return the possible problem of a server with this version of Prefect; its other packages are unknown here."""
    if _is_within(prefect, f"<{_FIRST_THAT_SCHEDULES}"):
        return (
            f"Under SQLAlchemy 2.1, Prefect {prefect} never starts a scheduled run. "
            f"Update the server to {_FIRST_THAT_SCHEDULES} or later."
        )
    return None


def _is_within(found: str | None, bounds: str) -> bool:
    try:
        return found is not None and SpecifierSet(bounds).contains(Version(found), prereleases=True)
    except InvalidVersion:
        return False
