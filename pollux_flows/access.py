"""Access: which files, modules and addresses a run may reach.

A program may access everything that its user may. A run of a deployment is different: the people who start it choose
its parameters, and often have no account on the machine. The flows therefore apply `Restrictions` to such a run, which
are checked before a file is opened or written, or a module is imported. They are stored in a context variable, which
threads must copy.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePath
from typing import Final

from pollux_flows.address import is_path, local_path, protocol, redact_address, redact_location
from pollux_flows.errors import ConfigurationError, SourceError

PATHS: Final = "POLLUX_ALLOW_PATHS"
HOSTS: Final = "POLLUX_ALLOW_HOSTS"
SCHEMAS: Final = "POLLUX_ALLOW_SCHEMAS"
TOOLS: Final = "POLLUX_ALLOW_TOOLS"
PROTOCOLS: Final = "POLLUX_ALLOW_PROTOCOLS"

# Other protocols of fsspec run commands, or follow an address that a file contains.
_PROTOCOLS: Final = frozenset(
    {"file", "memory", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "sftp", "ssh", "github"}
)
# The address of these names a host; the others go to their cloud.
_WITH_HOSTS: Final = {"http", "https", "sftp", "ssh"}
_SYSTEM: Final = ("/proc", "/sys", "/dev")
_BARE_PROTOCOL: Final = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Restrictions:
    """The files and modules that the parameters of a run may reach, besides those that `environment` allows."""

    folders: Sequence[str] = ()
    """Folders to read from and to write to."""
    private: Sequence[str] = ()
    """Folders that stay inaccessible, even within an allowed one."""
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    # Values that the deployment itself names: its operator chose them, not the person who starts a run.
    sources: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    schemas: frozenset[str] = frozenset()
    tools: frozenset[str] = frozenset()

    def trusts_output(self, output: str) -> bool:
        """Return whether the deployment itself names this output."""
        return _output_place(output) in {_output_place(each) for each in self.outputs}

    def allow_line(self, variable: str, value: str) -> str:
        """Return the setting that allows `value` in addition to its current values."""
        separator = os.pathsep if variable == PATHS else ","
        return f"{variable}={separator.join(filter(None, [self.environment.get(variable), value]))}"

    def named_paths(self) -> list[str]:
        """Return the entries of POLLUX_ALLOW_PATHS; one may be an address, such as s3://bucket/answers."""
        separator = rf"{re.escape(os.pathsep)}(?!//)"
        return [each for each in re.split(separator, self.environment.get(PATHS, "")) if each.strip()]

    def why_closed(self, path: str) -> str | None:
        """Return None for an accessible path, otherwise the path to add to POLLUX_ALLOW_PATHS."""
        named = [os.path.realpath(each) for each in self.named_paths() if is_path(each)]
        folders = [each for each in map(os.path.realpath, self.folders) if each not in {os.sep, *self._private()}]
        around = [each for each in [*named, *folders] if _is_within(path, each)]
        parent = os.path.dirname(path)  # noqa: PTH120 (paths are compared as text)
        inside = path if parent == os.sep or PurePath(path).name.startswith(".") else parent
        if not around:
            return next((each for each in _SYSTEM if _is_within(path, each)), inside)
        for closed in self._private():
            if _is_within(path, closed) and not any(_is_within(each, closed) for each in around):
                return closed if closed in _SYSTEM else inside
        hidden = any(part.startswith(".") for part in PurePath(path).relative_to(max(around, key=len)).parts)
        return inside if hidden else None

    def _private(self) -> list[str]:
        return [*_SYSTEM, *map(os.path.realpath, self.private)]


_restrictions: Final[ContextVar[Restrictions | None]] = ContextVar("pollux_flows_limits", default=None)
_postponed: Final[ContextVar[bool]] = ContextVar("pollux_flows_postponed_schemas", default=False)


@contextmanager
def apply_restrictions(restrictions: Restrictions | None) -> Iterator[None]:
    """Apply these restrictions inside the block."""
    token = _restrictions.set(restrictions)
    try:
        yield
    finally:
        _restrictions.reset(token)


def current_restrictions() -> Restrictions | None:
    """Return the restrictions of the current run; None if it has none."""
    return _restrictions.get()


@contextmanager
def postponed_schemas() -> Iterator[None]:
    """Import no `response_schema` inside the block, while the run, and so its restrictions, are not known yet."""
    token = _postponed.set(True)
    try:
        yield
    finally:
        _postponed.reset(token)


def are_schemas_postponed() -> bool:
    """Return whether importing a `response_schema` is postponed."""
    return _postponed.get()


# --- Addresses ----------------------------------------------------------------------------------------------


def check_protocols(address: str) -> None:
    """Refuse an address with a protocol that is not allowed, in any part of a chain."""
    restrictions = current_restrictions()
    environment = os.environ if restrictions is None else restrictions.environment
    more = environment.get(PROTOCOLS, "")
    allowed = _PROTOCOLS | {each.lower() for each in re.split(r"[\s,]+", more) if each}
    for part in address.split("::"):
        if (name := _protocol_of(part)) not in allowed:
            line = f"{PROTOCOLS}={','.join(filter(None, [more, name]))}"
            raise SourceError(
                f"{redact_location(address)!r} uses the protocol {name!r}, which is not allowed here.",
                hint=f"If you trust this protocol with everything that this machine can access, set this where the "
                f"flow runs: {line}",
            )


def _protocol_of(part: str) -> str:
    """Return the protocol of one part of a chain, as fsspec reads it."""
    if part.startswith("data:"):
        return "data"
    if "://" not in part and _BARE_PROTOCOL.fullmatch(part):
        return "file" if part == "local" else part
    return protocol(part)


def check_source(name: str) -> None:
    """Refuse a file that this run may not read."""
    if not is_path(name):
        check_protocols(name)
    restrictions = current_restrictions()
    if restrictions is None or name in restrictions.sources:
        return
    if is_path(name):
        _check_path(restrictions, name, os.path.realpath(local_path(name)))
        return
    parts = name.split("::")
    for part in parts:
        kind = _protocol_of(part)
        if kind == "file" and part not in {"file", "local"}:
            _check_path(restrictions, name, os.path.realpath(local_path(part)))
        # A plain web address is checked at each of its redirects, when it is opened.
        if kind in _WITH_HOSTS and (len(parts) > 1 or kind not in {"http", "https"}):
            _check_host_is_named(restrictions, name, part)


def check_opened(name: str, descriptor: int) -> None:
    """Refuse an open local file whose real path this run may not read."""
    restrictions = current_restrictions()
    if restrictions is None or name in restrictions.sources:
        return
    real = os.path.realpath(local_path(name))
    with suppress(OSError):  # a link may have changed since the file was opened
        real = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 (the same)
    _check_path(restrictions, name, real)


def _check_path(restrictions: Restrictions, name: str, real: str) -> None:
    if (wanted := restrictions.why_closed(real)) is not None:
        raise SourceError(
            f"{redact_location(name)!r} may not be read by a run of this deployment.",
            hint="Put the file into the folder that the flow is served from, or allow it. To allow it, set this where "
            f"the flow runs: {restrictions.allow_line(PATHS, wanted)}",
        )


def _check_host_is_named(restrictions: Restrictions, name: str, part: str) -> None:
    host = re.split(r"[/?#]", part.partition("://")[2], maxsplit=1)[0].rpartition("@")[2].partition(":")[0].lower()
    if host not in re.split(r"[\s,]+", restrictions.environment.get(HOSTS, "").lower()):
        raise SourceError(
            f"{redact_location(name)!r} may not be read by a run of this deployment: its host is not allowed.",
            hint=f"To allow it, set this where the flow runs: {restrictions.allow_line(HOSTS, host)}",
        )


# --- Outputs ------------------------------------------------------------------------------------------------


def guards_output(output: str | None) -> bool:
    """Return whether this output was chosen by the person who started a restricted run."""
    restrictions = current_restrictions()
    return output is not None and restrictions is not None and not restrictions.trusts_output(output)


def check_output(output: str, path: str | None) -> None:
    """Refuse an output that this run may not write; `path` is its real path if it is on this machine."""
    restrictions = current_restrictions()
    if restrictions is None or restrictions.trusts_output(output):
        return
    wanted = restrictions.why_closed(path) if path is not None else _why_closed_elsewhere(restrictions, output)
    if wanted is not None:
        raise ConfigurationError(
            f"output {redact_address(output)!r} may not be written by a run of this deployment.",
            hint="Write into the folder that the flow is served from, or allow it. To allow it, set this where the "
            f"flow runs: {restrictions.allow_line(PATHS, wanted)}",
        )


def _why_closed_elsewhere(restrictions: Restrictions, output: str) -> str | None:
    named = [each.rstrip("/") for each in restrictions.named_paths() if not is_path(each)]
    climbs = ".." in output.split("/")
    if not climbs and any(output == each or output.startswith(f"{each}/") for each in named):
        return None
    return output.rpartition("/")[0]


def _output_place(output: str) -> str:
    """Return a canonical spelling of an output, so that two can be compared."""
    if not is_path(output):
        return output.rstrip("/")
    return os.path.abspath(os.path.expanduser(local_path(output)))  # noqa: PTH100, PTH111 (compared as text)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip(os.sep)}{os.sep}")


# --- Schemas and tools --------------------------------------------------------------------------------------


def check_schema(name: str) -> None:
    """Refuse a `response_schema` whose module this run may not import."""
    restrictions = current_restrictions()
    if restrictions is None or name in restrictions.schemas:
        return
    module = name.partition(":")[0]
    if named := [each for each in re.split(r"[\s,]+", restrictions.environment.get(SCHEMAS, "")) if each]:
        refused = not any(module == each or module.startswith(f"{each}.") for each in named)
        why = f"{SCHEMAS} does not name it"
    else:
        package = module.partition(".")[0]
        is_standard = package in sys.stdlib_module_names
        refused = is_standard or not _is_installed(package)
        why = "it is part of Python itself" if is_standard else "it is not part of an installed package"
    if refused:
        raise ConfigurationError(
            f"response_schema {name!r} may not be imported by a run of this deployment: {why}.",
            hint="Pass the JSON Schema itself, or allow the module. To allow it, set this where the flow runs: "
            f"{restrictions.allow_line(SCHEMAS, module)}",
        )


def check_tool(name: str, defined_in: str | None = None) -> None:
    """Refuse a tool that this run may not import and let the model call; `defined_in` is its module, once imported.

    Functions of installed packages are not allowed, unlike schemas, as some of them can run any command.
    """
    restrictions = current_restrictions()
    if restrictions is None or name in restrictions.tools:
        return
    module = defined_in or name.partition(":")[0]
    named = [each for each in re.split(r"[\s,]+", restrictions.environment.get(TOOLS, "")) if each]
    if not any(each in {name, module} or module.startswith(f"{each}.") for each in named):
        raise ConfigurationError(
            f"The tool {name!r} may not be called by a run of this deployment: {TOOLS} does not name it.",
            hint="Name it in the deployment itself, or allow it. To allow it, set this where the flow runs: "
            f"{restrictions.allow_line(TOOLS, name)}",
        )


@cache
def _is_installed(package: str) -> bool:
    """Return whether a distribution installed the package, without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    places |= {site.getusersitepackages()} if site.ENABLE_USER_SITE else set()
    found = [spec.origin, *(spec.submodule_search_locations or ())]
    if any(_is_within(os.path.realpath(each), os.path.realpath(place)) for each in found if each for place in places):
        return True
    # An editable package lies elsewhere, and has a distribution of the same name.
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
