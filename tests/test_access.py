"""Access: which protocols fsspec may use, and what a run with limits reaches."""

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
def test_a_source_uses_only_protocols_on_the_list(address: str, protocol: str) -> None:
    """In every part of a chain; the refusal says which setting adds one."""
    with pytest.raises(SourceError, match=f"protocol '{protocol}'") as caught:
        asyncio.run(examine([Source.from_file(address)]))
    assert str(caught.value).endswith(f"POLLUX_ALLOW_PROTOCOLS={protocol}")


@pytest.mark.parametrize(("address", "protocol"), REFUSED)
def test_an_output_uses_only_protocols_on_the_list(address: str, protocol: str) -> None:
    with pytest.raises(ConfigurationError, match=f"protocol '{protocol}'"):
        resolve_output(address)


@pytest.mark.parametrize("address", ["memory://a.jsonl", "file:///tmp/a.jsonl", "/tmp/a.jsonl", "a.jsonl"])  # noqa: S108
def test_the_usual_places_stay_open(address: str) -> None:
    assert resolve_output(address)


def test_a_setting_adds_protocols(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of all parts; what is named already is kept in the line that a refusal shows."""
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


def limits(folder: Path | str, paths: str = "", **more: str) -> Restrictions:
    environment = {"POLLUX_ALLOW_PATHS": paths} | {f"POLLUX_ALLOW_{key.upper()}": value for key, value in more.items()}
    return Restrictions(folders=[str(folder)], environment=environment)


@pytest.mark.parametrize("name", ["zip://a.txt::/etc/passwd", "zip://a.txt::file:///etc/passwd"])
def test_every_part_of_a_chain_is_held_to_the_limits(name: str, tmp_path: Path) -> None:
    with (
        apply_restrictions(limits(tmp_path, protocols="zip")),
        pytest.raises(SourceError, match="POLLUX_ALLOW_PATHS=/etc"),
    ):
        check_source(name)


@pytest.mark.parametrize("name", ["zip://a::https://intranet/a.zip", "sftp://intranet/a.pdf", "ssh://me@intranet:22/a"])
def test_where_redirects_cannot_be_checked_a_host_is_named(name: str, tmp_path: Path) -> None:
    with (
        apply_restrictions(limits(tmp_path, protocols="zip")),
        pytest.raises(SourceError, match="POLLUX_ALLOW_HOSTS=intranet"),
    ):
        check_source(name)
    with apply_restrictions(limits(tmp_path, protocols="zip", hosts="intranet")):
        check_source(name)


def test_a_root_folder_as_working_directory_opens_nothing() -> None:
    """As the workers of a pool may have it."""
    with apply_restrictions(limits("/")), pytest.raises(SourceError, match="POLLUX_ALLOW_PATHS=/etc"):
        check_source("/etc/hostname")


@pytest.mark.parametrize("paths", ["/", "/data:/", "s3://bucket/answers:/"])
def test_an_allowed_root_leaves_the_system_closed(paths: str) -> None:
    """Until it is named itself."""
    for name in ("/proc/self/environ", "/proc/1/environ", "/dev/null", "/sys/kernel/notes"):
        with apply_restrictions(limits("/served", paths)), pytest.raises(SourceError, match="may not be read"):
            check_source(name)
    with apply_restrictions(limits("/served", paths)):
        check_source("/etc/hostname")
    with apply_restrictions(limits("/served", f"{paths}:/proc")):
        check_source("/proc/self/environ")


def test_a_dot_file_is_allowed_by_its_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("secret")
    with apply_restrictions(limits(tmp_path)), pytest.raises(SourceError) as caught:
        check_source(str(tmp_path / ".env"))
    line = str(caught.value).rpartition("POLLUX_ALLOW_PATHS=")[2]
    with apply_restrictions(limits(tmp_path, line)):
        check_source(str(tmp_path / ".env"))


def test_a_link_that_is_swapped_before_it_is_opened_leads_nowhere(tmp_path: Path) -> None:
    """What was opened is looked at, not what the link says by then."""
    served, secret = tmp_path / "served", tmp_path / "secret.txt"
    served.mkdir()
    secret.write_text("secret")
    (served / "a.txt").symlink_to(secret)
    with apply_restrictions(limits(served)), (served / "a.txt").open() as opened:
        (served / "a.txt").unlink()
        (served / "a.txt").write_text("innocent")
        check_source(str(served / "a.txt"))
        with pytest.raises(SourceError, match="may not be read"):
            check_opened(str(served / "a.txt"), opened.fileno())


def test_files_are_read_on_threads_under_the_same_limits(tmp_path: Path) -> None:
    with apply_restrictions(limits(tmp_path)), pytest.raises(SourceError, match="may not be read"):
        asyncio.run(examine([Source.from_file("/proc/self/environ")]))


@pytest.mark.parametrize("module", ["os", "sys", "antigravity", "__main__", "tests.documents", "no_such_package"])
def test_only_installed_modules_are_imported(module: str, tmp_path: Path) -> None:
    with (
        apply_restrictions(limits(tmp_path)),
        pytest.raises(ConfigurationError, match=f"POLLUX_ALLOW_SCHEMAS={module}$"),
    ):
        check_schema(f"{module}:Shape")


def test_a_schema_is_checked_whenever_it_is_imported(tmp_path: Path) -> None:
    """Options that were made before the limits were known do not go round them."""
    options = Options(response_schema="tests.test_access:Unlisted")
    with apply_restrictions(limits(tmp_path)), pytest.raises(ConfigurationError, match="may not be imported"):
        options.response_json_schema()


def test_a_setting_restricts_schemas(tmp_path: Path) -> None:
    with apply_restrictions(limits(tmp_path, schemas="my_models, httpx.models")):
        for allowed in ("my_models:A", "my_models.invoices:B", "httpx.models:C"):
            check_schema(allowed)
        for refused in ("httpx:A", "my_models_2:A", "pydantic:BaseModel"):
            with pytest.raises(ConfigurationError, match="does not name it"):
                check_schema(refused)


def test_a_running_program_has_no_limits(tmp_path: Path) -> None:
    """Unless it enters some."""
    (tmp_path / ".env").write_text("secret")
    check_source(str(tmp_path / ".env"))
    check_schema("os:path")


def test_an_allowed_module_does_not_allow_what_it_imports(tmp_path: Path) -> None:
    with apply_restrictions(limits(tmp_path, tools="mine, mine:other.named")):
        check_tool("mine:own", defined_in="mine")
        check_tool("mine:other.named", defined_in="other")
        check_tool("mine:other.danger")  # it is imported to be looked at
        with pytest.raises(ConfigurationError, match="does not name it"):
            check_tool("mine:other.danger", defined_in="other")
