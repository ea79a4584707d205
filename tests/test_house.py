"""The rules of the project: imports between modules, size of files, cost of an import, and stable names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pollux_flows

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pollux_flows"

# Lowest floor first. A module imports only from its own floor and from lower ones.
FLOORS: tuple[set[str], ...] = (
    {"simulator"},
    {
        "errors",
        "plain",
        "document",
        "config",
        "base_url",
        "access",
        "address",
        "source",
        "options",
        "answer_rows",
        "daemon_thread",
        "file_system",
        "frames",
        "handles",
        "import_string",
        "result",
        "turn",
    },
    {"capabilities", "claude", "pricing", "output"},
    {"files", "ratelimit", "schemas", "state"},
    {"providers", "tables"},
    {"pipeline"},
    {"deferred", "caching", "realtime", "mapping"},
    {"estimation"},
    {"blocks"},
    {"serializer", "scope", "run_store", "pages", "map_page", "artifacts", "tasks", "jobs", "run_answers"},
    {"flows"},
    {"deployments"},
    {"cli", "demo", "__init__"},
)
ENGINE: set[str] = set().union(*FLOORS[:8])
# Packages that a fresh install does not have.
OPTIONAL = {"pandas", "polars", "numpy", "pyarrow", "dask", "distributed", "prefect_dask", "ray", "prefect_ray"}
SDKS = {"openai": "openai", "anthropic": "anthropic", "google": "gemini"}


@dataclass(frozen=True)
class Import:
    """An import of a module, which is executed with the importer or only later, in a function or for type checkers."""

    importer: str  # such as pipeline.execute
    imported: str
    is_deferred: bool

    @property
    def room(self) -> str:
        return self.importer.partition(".")[0]

    @property
    def package(self) -> str:
        return self.imported.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported}"


def find_imports(code: str, importer: str) -> Iterator[Import]:
    """Yield all imports, including those in functions and those for type checkers."""

    def walk(node: ast.AST, *, is_deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(importer, alias.name, is_deferred) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{importer} has a relative import"
                # `from package import module` may import the module.
                yield from (Import(importer, f"{child.module}.{alias.name}", is_deferred) for alias in child.names)
            else:
                for_checkers = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                yield from walk(child, is_deferred=is_deferred or for_checkers or function)

    return walk(ast.parse(code), is_deferred=False)


def find_all_imports() -> Iterator[Import]:
    for file in PACKAGE.rglob("*.py"):
        if PACKAGE / "cli" / "project" in file.parents:  # files that `init` copies into projects of users
            continue
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield from find_imports(file.read_text(), name)


def get_floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def is_upward(each: Import) -> bool:
    """Return whether a module imports from a higher floor."""
    if each.package != "pollux_flows":
        return False
    room = each.imported.split(".")[1]
    if room in {"__version__", "__all__"}:
        return False
    if each.room == "simulator":  # imports nothing else of the package
        return room != "simulator"
    return get_floor(room) > get_floor(each.room)


def is_misplaced_sdk(each: Import) -> bool:
    """Return whether an SDK is imported outside a function of its provider's own folder, real or simulated."""
    home = SDKS.get(each.package)
    homes = (f"providers.{home}.", f"simulator.{home}.")
    return home is not None and not (each.is_deferred and each.importer.startswith(homes))


# --- Floors -------------------------------------------------------------------------------------------------


def test_every_module_has_a_floor() -> None:
    """A new module must be added to FLOORS."""
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms <= set().union(*FLOORS)


def test_no_module_imports_from_a_higher_floor() -> None:
    """Each module can be read, tested and used without the modules on higher floors."""
    assert [str(each) for each in find_all_imports() if is_upward(each)] == []


def test_the_engine_does_not_import_prefect() -> None:
    """The engine is plain async Python below a thin Prefect layer."""
    assert [str(each) for each in find_all_imports() if each.package == "prefect" and each.room in ENGINE] == []


def test_an_sdk_is_imported_only_in_functions_of_its_provider() -> None:
    """A program that uses one provider loads only one SDK."""
    assert [str(each) for each in find_all_imports() if is_misplaced_sdk(each)] == []


@pytest.mark.parametrize(
    ("importer", "code"),
    [
        ("config", "from pollux_flows.options import Options\nfrom pollux_flows.pipeline.execute import Execution"),
        ("providers.base", "def f():\n    from pollux_flows import flows"),
        ("errors", "if TYPE_CHECKING:\n    import pollux_flows.capabilities"),
        ("simulator.simulator", "from pollux_flows.errors import PolluxError"),
        ("caching.create", "from pollux_flows.tasks import request"),
    ],
)
def test_the_check_finds_an_import_from_a_higher_floor(importer: str, code: str) -> None:
    """The check is also applied to imports in functions and for type checkers."""
    assert [each for each in find_imports(code, importer) if is_upward(each)]


@pytest.mark.parametrize(
    ("importer", "code"),
    [
        ("providers.openai.generate", "def f():\n    import anthropic"),
        ("providers.openai.generate", "from openai import AsyncOpenAI"),
        ("providers.chat", "if TYPE_CHECKING:\n    from openai import AsyncOpenAI"),
        ("pipeline.execute", "def f():\n    from google.genai import types"),
        ("providers.http", "async def f():\n    import openai.types"),
    ],
)
def test_the_check_finds_a_misplaced_import_of_an_sdk(importer: str, code: str) -> None:
    assert [each for each in find_imports(code, importer) if is_misplaced_sdk(each)]


# --- Files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["pollux_flows", "deployments", "benchmarks"])
def test_files_are_short_and_have_specific_names(folder: str) -> None:
    """A file has at most 500 lines, and neither files nor folders are named like collections of leftovers."""
    files = list((ROOT / folder).rglob("*.py"))
    assert [str(file) for file in files if len(file.read_text().splitlines()) > 500] == []
    assert [
        str(file) for file in files if {"utils", "util", "helpers", "common", "misc"} & {file.stem, file.parent.name}
    ] == []


# --- The cost of an import ----------------------------------------------------------------------------------


def find_loaded_modules(code: str) -> set[str]:
    """Return the modules that a new Python process has loaded after running this code."""
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {
    "prefect", "openai", "anthropic", "google.genai", "httpx", "httpx2", "jsonschema", "diskcache", "dotenv",
    "genai_prices", "pyarrow", "pandas", "polars",
}  # fmt: skip


def test_importing_the_package_loads_no_heavy_module() -> None:
    """Neither Prefect nor an SDK nor Pydantic is loaded before a name is used."""
    loaded = find_loaded_modules("import pollux_flows")
    assert loaded & (HEAVY | OPTIONAL | {"pydantic", "pydantic_core", "asyncio"}) == set()
    assert {name for name in loaded if name.startswith("pollux_flows.")} == set()


def test_using_every_name_loads_no_prefect_and_no_sdk() -> None:
    """The SDK of a provider is loaded by its first call."""
    loaded = find_loaded_modules("from pollux_flows import *\nConfig(provider='openai', model='m', api_key='sk-1')")
    assert loaded & (OPTIONAL | {"prefect", "openai", "anthropic", "google.genai"}) == set()


def test_flows_and_commands_load_no_optional_package() -> None:
    """The packages for tables and clusters are loaded when one is used."""
    assert find_loaded_modules("from pollux_flows.flows import *\nimport pollux_flows.cli") & OPTIONAL == set()


def test_the_price_list_is_loaded_at_its_first_use() -> None:
    """Loading the list takes longer than loading the rest of the engine."""
    loaded = find_loaded_modules("from pollux_flows import *\nimport pollux_flows.pricing")
    assert not {name for name in loaded if name.partition(".")[0] == "genai_prices"}


def test_tests_use_temporary_homes_and_a_local_server() -> None:
    """The homes of Prefect and of the embedded state are in a folder that is removed after the tests."""
    for name in ("PREFECT_HOME", "POLLUX_HOME"):
        assert Path(os.environ[name]).is_relative_to(tempfile.gettempdir())
    assert not [name for name in os.environ if name.startswith("PREFECT_API") and "127.0.0.1" not in os.environ[name]]


# --- Stable names -------------------------------------------------------------------------------------------

NAMES = {
    "Config", "RetryPolicy", "Source", "Options", "ResultEnvelope", "CacheHandle", "run", "run_many", "create_cache",
    "PolluxError", "ConfigurationError", "SourceError", "PlanningError", "InternalError", "APIError", "RateLimitError",
    "BudgetError", "CacheError", "DeferredNotReadyError", "DeferredHandle", "DeferredSnapshot",
    "Estimate", "estimate_many",
    "continue_tool", "defer", "defer_many", "inspect_deferred", "collect_deferred", "cancel_deferred",
}  # fmt: skip
FLOWS = {
    "warm_cache", "realtime", "sweep", "fan_out", "fan_in", "broadcast", "map_rows",
    "submit", "collect", "cancel", "resubmit", "deferred", "wait_for", "converse", "estimate",
}  # fmt: skip


def test_the_package_exports_exactly_these_names() -> None:
    """Users rely on these names: new ones may be added, but none may be renamed."""
    assert set(pollux_flows.__all__) == NAMES
    assert pollux_flows.__all__ == sorted(pollux_flows.__all__)
    assert set(dir(pollux_flows)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_exported_name_is_importable(name: str) -> None:
    """Each object has the name under which it is exported."""
    assert getattr(pollux_flows, name).__name__ == name


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    """Modules that the package imports itself are not attributes of it."""
    for name in ("Confg", "pydantic", "PROVIDERS"):
        with pytest.raises(AttributeError, match=name):
            getattr(pollux_flows, name)


def read_exported_names(module: str) -> set[str]:
    """Return `__all__` from the source of a module, because importing flows would load Prefect."""
    for node in ast.parse((PACKAGE / module).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_every_flow_has_a_sync_and_an_async_form() -> None:
    """The async form has an `a` in front of its name."""
    assert read_exported_names("flows/__init__.py") == FLOWS | {f"a{name}" for name in FLOWS}
    assert read_exported_names("blocks/__init__.py") == {
        "PolluxBudget",
        "PolluxCache",
        "PolluxDeferredJob",
        "PolluxProvider",
    }


def test_the_four_phases_are_tasks() -> None:
    tasks = {
        node.name
        for node in ast.parse((PACKAGE / "tasks.py").read_text()).body
        if isinstance(node, ast.AsyncFunctionDef)
    }
    assert {"request", "plan", "execute", "extract"} <= tasks


def test_the_typing_test_covers_the_public_api() -> None:
    """The file `tests/typing/api.py` uses all exported names except some errors."""
    shown = {
        node.id
        for node in ast.walk(ast.parse((ROOT / "tests/typing/api.py").read_text()))
        if isinstance(node, ast.Name)
    }
    left_out = NAMES - shown
    assert {name for name in left_out if not name.endswith("Error")} == set()


def test_the_version_is_defined_only_in_the_package() -> None:
    """The distribution reads the version from the package."""
    assert pollux_flows.__version__.count(".") == 2
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
