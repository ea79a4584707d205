"""The house rules: floors, rooms, what an import costs, and the names that hold."""

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

# From the ground up. A module imports only from floors below its own, or from its own.
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
    """Who imports what, and whether that waits until a function is called (or, for type checkers, for ever)."""

    importer: str  # such as pipeline.execute
    imported: str
    waits: bool

    @property
    def room(self) -> str:
        return self.importer.partition(".")[0]

    @property
    def package(self) -> str:
        return self.imported.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported}"


def imports_in(code: str, importer: str) -> Iterator[Import]:
    """All of them: those within functions and those for type checkers, too."""

    def walk(node: ast.AST, *, waits: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(importer, alias.name, waits) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{importer} has a relative import"
                # `from package import module` may import the module.
                yield from (Import(importer, f"{child.module}.{alias.name}", waits) for alias in child.names)
            else:
                for_checkers = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                yield from walk(child, waits=waits or for_checkers or function)

    return walk(ast.parse(code), waits=False)


def every_import() -> Iterator[Import]:
    for file in PACKAGE.rglob("*.py"):
        if PACKAGE / "cli" / "project" in file.parents:  # what `init` copies: the code of those who use the package
            continue
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield from imports_in(file.read_text(), name)


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def climbs(each: Import) -> bool:
    """Whether it reaches above its floor."""
    if each.package != "pollux_flows":
        return False
    room = each.imported.split(".")[1]
    if room in {"__version__", "__all__"}:
        return False
    if each.room == "simulator":  # stands alone
        return room != "simulator"
    return floor(room) > floor(each.room)


def misplaced_sdk(each: Import) -> bool:
    """Return whether an SDK is imported outside a function of its provider's own folder, real or simulated."""
    home = SDKS.get(each.package)
    homes = (f"providers.{home}.", f"simulator.{home}.")
    return home is not None and not (each.waits and each.importer.startswith(homes))


# --- Floors -------------------------------------------------------------------------------------------------


def test_every_room_has_a_floor() -> None:
    """A new module belongs somewhere: put it on a floor above."""
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms <= set().union(*FLOORS)


def test_nobody_imports_from_above() -> None:
    """What is below can be read, tested and used without what is above."""
    assert [str(each) for each in every_import() if climbs(each)] == []


def test_the_engine_knows_nothing_of_prefect() -> None:
    """It is plain async Python; the Prefect layer over it is thin."""
    assert [str(each) for each in every_import() if each.package == "prefect" and each.room in ENGINE] == []


def test_an_sdk_is_imported_where_it_is_used() -> None:
    """In its provider's folder, by the function that needs it: whoever uses one provider loads one SDK."""
    assert [str(each) for each in every_import() if misplaced_sdk(each)] == []


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
def test_the_rule_of_the_floors_can_be_broken(importer: str, code: str) -> None:
    """So the test above means something."""
    assert [each for each in imports_in(code, importer) if climbs(each)]


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
def test_the_rule_of_the_sdks_can_be_broken(importer: str, code: str) -> None:
    """The same."""
    assert [each for each in imports_in(code, importer) if misplaced_sdk(each)]


# --- Rooms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["pollux_flows", "deployments", "benchmarks"])
def test_a_file_holds_one_idea(folder: str) -> None:
    """One that passes 500 lines is asked to become two, and none is a drawer for what has no place."""
    files = list((ROOT / folder).rglob("*.py"))
    assert [str(file) for file in files if len(file.read_text().splitlines()) > 500] == []
    assert [
        str(file) for file in files if {"utils", "util", "helpers", "common", "misc"} & {file.stem, file.parent.name}
    ] == []


# --- What an import costs -----------------------------------------------------------------------------------


def loaded_after(code: str) -> set[str]:
    """The packages that a fresh Python has loaded after running this."""
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {
    "prefect", "openai", "anthropic", "google.genai", "httpx", "httpx2", "jsonschema", "diskcache", "dotenv",
    "genai_prices", "pyarrow", "pandas", "polars",
}  # fmt: skip


def test_importing_the_package_costs_next_to_nothing() -> None:
    """No Prefect, no SDK, not even Pydantic, until a name is used."""
    loaded = loaded_after("import pollux_flows")
    assert loaded & (HEAVY | OPTIONAL | {"pydantic", "pydantic_core", "asyncio"}) == set()
    assert {name for name in loaded if name.startswith("pollux_flows.")} == set()


def test_using_every_name_loads_no_prefect_and_no_sdk() -> None:
    """The engine starts without them; the SDK of the chosen provider comes with the first call."""
    loaded = loaded_after("from pollux_flows import *\nConfig(provider='openai', model='m', api_key='sk-1')")
    assert loaded & (OPTIONAL | {"prefect", "openai", "anthropic", "google.genai"}) == set()


def test_flows_and_commands_load_no_optional_package() -> None:
    """They start without; a table or a cluster brings its own."""
    assert loaded_after("from pollux_flows.flows import *\nimport pollux_flows.cli") & OPTIONAL == set()


def test_the_list_of_prices_waits_until_a_price_is_asked_for() -> None:
    """It takes longer to load than all the rest of the engine."""
    loaded = loaded_after("from pollux_flows import *\nimport pollux_flows.pricing")
    assert not {name for name in loaded if name.partition(".")[0] == "genai_prices"}


def test_no_test_is_at_home_in_anybodys_home() -> None:
    """Prefect and the embedded state live in a folder that goes when the tests are done."""
    for name in ("PREFECT_HOME", "POLLUX_HOME"):
        assert Path(os.environ[name]).is_relative_to(tempfile.gettempdir())
    assert not [name for name in os.environ if name.startswith("PREFECT_API") and "127.0.0.1" not in os.environ[name]]


# --- Names that hold ----------------------------------------------------------------------------------------

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


def test_the_package_exports_its_names() -> None:
    """Others rely on these: add freely, rename never."""
    assert set(pollux_flows.__all__) == NAMES
    assert pollux_flows.__all__ == sorted(pollux_flows.__all__)
    assert set(dir(pollux_flows)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_exported_name_is_there(name: str) -> None:
    """Under the name it is known by."""
    assert getattr(pollux_flows, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """As of any module; what is imported for itself is not offered to others."""
    for name in ("Confg", "pydantic", "PROVIDERS"):
        with pytest.raises(AttributeError, match=name):
            getattr(pollux_flows, name)


def exported(module: str) -> set[str]:
    """`__all__` as it stands in the file: importing the flows would load Prefect."""
    for node in ast.parse((PACKAGE / module).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_every_flow_is_there_in_both_forms() -> None:
    """Sync, and async with an `a` in front."""
    assert exported("flows/__init__.py") == FLOWS | {f"a{name}" for name in FLOWS}
    assert exported("blocks/__init__.py") == {"PolluxBudget", "PolluxCache", "PolluxDeferredJob", "PolluxProvider"}


def test_the_four_phases_are_tasks() -> None:
    """By the names of the phases."""
    tasks = {
        node.name
        for node in ast.parse((PACKAGE / "tasks.py").read_text()).body
        if isinstance(node, ast.AsyncFunctionDef)
    }
    assert {"request", "plan", "execute", "extract"} <= tasks


def test_the_typed_api_is_the_whole_api() -> None:
    """What `tests/typing/api.py` shows type checkers leaves out no name but plain errors."""
    shown = {
        node.id
        for node in ast.walk(ast.parse((ROOT / "tests/typing/api.py").read_text()))
        if isinstance(node, ast.Name)
    }
    left_out = NAMES - shown
    assert {name for name in left_out if not name.endswith("Error")} == set()


def test_the_version_is_told_once() -> None:
    """In the package; the distribution takes it from there."""
    assert pollux_flows.__version__.count(".") == 2
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
