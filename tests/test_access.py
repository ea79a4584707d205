"""Access: the protocols that fsspec may use, and the files, hosts and modules that a restricted run may reach."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import BaseModel

from pollux_flows import ConfigurationError, Options, Source, SourceError
from pollux_flows.access import Restrictions, apply_restrictions, check_opened, check_schema, check_source, check_tool
from pollux_flows.files.content import examine
from pollux_flows.output import resolve_output


class Unlisted(BaseModel):
    name: str


# --- Protocols ----------------------------------------------------------------------------------------------

REFUSED = [
    ("reference://manifest.json", "reference"),
    ("REFERENCE://manifest.json", "reference"),
    ("ftp://example.com/a.pdf", "ftp"),
    ("data:text/plain,hello", "data"),
    ("simplecache::s3://bucket/a.pdf", "simplecache"),
    ("zip://a.pdf::s3://bucket/a.zip", "zip"),
    ("s3://a::reference://manifest.json", "reference"),
    ("filecache::reference::file:///a.json", "filecache"),
    ("dir::memory://a", "dir"),
    ("git://main/a.pdf", "git"),
]


@pytest.mark.parametrize(("address", "protocol"), [each for each in REFUSED if "://" in each[0]])
def test_a_source_with_an_unlisted_protocol_is_refused(address: str, protocol: str) -> None:
    """Each part of a chain is checked, and the error names the setting that allows the protocol."""
    with pytest.raises(SourceError, match=f"protocol '{protocol}'") as caught:
        asyncio.run(examine([Source.from_file(address)]))
    assert str(caught.value).endswith(f"POLLUX_ALLOW_PROTOCOLS={protocol}")


@pytest.mark.parametrize(("address", "protocol"), REFUSED)
def test_an_output_with_an_unlisted_protocol_is_refused(address: str, protocol: str) -> None:
    with pytest.raises(ConfigurationError, match=f"protocol '{protocol}'"):
        resolve_output(address)


@pytest.mark.parametrize("address", ["memory://a.jsonl", "file:///tmp/a.jsonl", "/tmp/a.jsonl", "a.jsonl"])  # noqa: S108
def test_an_output_may_be_a_local_file_or_in_memory(address: str) -> None:
    assert resolve_output(address)


def test_pollux_allow_protocols_allows_more_protocols(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The setting must name the protocol of each part; the error repeats those that are set already."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    address = f"simplecache::zip://a.txt::file://{tmp_path}/a.zip"
    monkeypatch.setenv("POLLUX_ALLOW_PROTOCOLS", "zip")
    with pytest.raises(SourceError, match=r"POLLUX_ALLOW_PROTOCOLS=zip,simplecache$"):
        asyncio.run(examine([Source.from_file(address)]))
    monkeypatch.setenv("POLLUX_ALLOW_PROTOCOLS", "zip, simplecache")
    assert asyncio.run(examine([Source.from_file(address)]))[0].size_bytes == 5


# --- Restrictions -------------------------------------------------------------------------------------------------


def restrict_to(folder: Path | str, paths: str = "", **more: str) -> Restrictions:
    environment = {"POLLUX_ALLOW_PATHS": paths} | {f"POLLUX_ALLOW_{key.upper()}": value for key, value in more.items()}
    return Restrictions(folders=[str(folder)], environment=environment)


@pytest.mark.parametrize("name", ["zip://a.txt::/etc/passwd", "zip://a.txt::file:///etc/passwd"])
def test_every_part_of_a_chain_is_restricted(name: str, tmp_path: Path) -> None:
    with (
        apply_restrictions(restrict_to(tmp_path, protocols="zip")),
        pytest.raises(SourceError, match="POLLUX_ALLOW_PATHS=/etc"),
    ):
        check_source(name)


@pytest.mark.parametrize("name", ["zip://a::https://intranet/a.zip", "sftp://intranet/a.pdf", "ssh://me@intranet:22/a"])
def test_a_host_whose_redirects_cannot_be_checked_must_be_allowed_by_name(name: str, tmp_path: Path) -> None:
    with (
        apply_restrictions(restrict_to(tmp_path, protocols="zip")),
        pytest.raises(SourceError, match="POLLUX_ALLOW_HOSTS=intranet"),
    ):
        check_source(name)
    with apply_restrictions(restrict_to(tmp_path, protocols="zip", hosts="intranet")):
        check_source(name)


def test_the_root_as_working_directory_allows_no_files() -> None:
    """Workers of a pool may run in the root folder."""
    with apply_restrictions(restrict_to("/")), pytest.raises(SourceError, match="POLLUX_ALLOW_PATHS=/etc"):
        check_source("/etc/hostname")


@pytest.mark.parametrize("paths", ["/", "/data:/", "s3://bucket/answers:/"])
def test_allowing_the_root_does_not_allow_system_folders(paths: str) -> None:
    """A system folder such as /proc must be allowed by its own path."""
    for name in ("/proc/self/environ", "/proc/1/environ", "/dev/null", "/sys/kernel/notes"):
        with apply_restrictions(restrict_to("/served", paths)), pytest.raises(SourceError, match="may not be read"):
            check_source(name)
    with apply_restrictions(restrict_to("/served", paths)):
        check_source("/etc/hostname")
    with apply_restrictions(restrict_to("/served", f"{paths}:/proc")):
        check_source("/proc/self/environ")


def test_a_dot_file_must_be_allowed_by_its_own_path(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("secret")
    with apply_restrictions(restrict_to(tmp_path)), pytest.raises(SourceError) as caught:
        check_source(str(tmp_path / ".env"))
    line = str(caught.value).rpartition("POLLUX_ALLOW_PATHS=")[2]
    with apply_restrictions(restrict_to(tmp_path, line)):
        check_source(str(tmp_path / ".env"))


def test_a_link_that_is_replaced_between_check_and_open_is_refused(tmp_path: Path) -> None:
    """The opened file is checked, not the current target of the link."""
    served, secret = tmp_path / "served", tmp_path / "secret.txt"
    served.mkdir()
    secret.write_text("secret")
    (served / "a.txt").symlink_to(secret)
    with apply_restrictions(restrict_to(served)), (served / "a.txt").open() as file:
        (served / "a.txt").unlink()
        (served / "a.txt").write_text("innocent")
        check_source(str(served / "a.txt"))
        with pytest.raises(SourceError, match="may not be read"):
            check_opened(str(served / "a.txt"), file.fileno())


def test_restrictions_hold_in_threads_that_read_files(tmp_path: Path) -> None:
    with apply_restrictions(restrict_to(tmp_path)), pytest.raises(SourceError, match="may not be read"):
        asyncio.run(examine([Source.from_file("/proc/self/environ")]))


@pytest.mark.parametrize("module", ["os", "sys", "antigravity", "__main__", "tests.documents", "no_such_package"])
def test_a_schema_may_only_come_from_an_installed_package(module: str, tmp_path: Path) -> None:
    with (
        apply_restrictions(restrict_to(tmp_path)),
        pytest.raises(ConfigurationError, match=f"POLLUX_ALLOW_SCHEMAS={module}$"),
    ):
        check_schema(f"{module}:Shape")


def test_a_schema_is_checked_again_when_it_is_imported(tmp_path: Path) -> None:
    """Options that were made before the restrictions applied do not circumvent them."""
    options = Options(response_schema="tests.test_access:Unlisted")
    with apply_restrictions(restrict_to(tmp_path)), pytest.raises(ConfigurationError, match="may not be imported"):
        options.response_json_schema()


def test_pollux_allow_schemas_names_the_allowed_modules(tmp_path: Path) -> None:
    with apply_restrictions(restrict_to(tmp_path, schemas="my_models, httpx.models")):
        for allowed in ("my_models:A", "my_models.invoices:B", "httpx.models:C"):
            check_schema(allowed)
        for refused in ("httpx:A", "my_models_2:A", "pydantic:BaseModel"):
            with pytest.raises(ConfigurationError, match="does not name it"):
                check_schema(refused)


def test_without_restrictions_everything_is_allowed(tmp_path: Path) -> None:
    """Programs that import the package are not restricted by default."""
    (tmp_path / ".env").write_text("secret")
    check_source(str(tmp_path / ".env"))
    check_schema("os:path")


def test_an_allowed_module_does_not_allow_what_it_imports(tmp_path: Path) -> None:
    with apply_restrictions(restrict_to(tmp_path, tools="mine, mine:other.named")):
        check_tool("mine:own", defined_in="mine")
        check_tool("mine:other.named", defined_in="other")
        check_tool("mine:other.danger")  # the module may be imported, so that its tool can be checked
        with pytest.raises(ConfigurationError, match="does not name it"):
            check_tool("mine:other.danger", defined_in="other")
