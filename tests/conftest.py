"""The environment in which each test starts: no keys, no proxies, no `.env`, and a temporary home of Prefect."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import certifi
import pytest
from hypothesis import HealthCheck, settings

# Prefect reads its settings when it is imported, so its home moves before anything can import it.
_HOME = Path(tempfile.mkdtemp(prefix="pollux-flows-tests-"))
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "POLLUX_"))]:
    del os.environ[_name]
os.environ["PREFECT_HOME"] = str(_HOME / "prefect")
os.environ["POLLUX_HOME"] = str(_HOME / "pollux")
os.environ |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}  # for Prefect's local server
os.environ |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}  # tests send no usage data

# No test connects to a server with a public certificate, and one SDK reads all 150 of them for each new client.
_ONE_CERTIFICATE = _HOME / "certificate.pem"
_ONE_CERTIFICATE.write_text(
    certifi.contents().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
)
os.environ["SSL_CERT_FILE"] = str(_ONE_CERTIFICATE)

# If the tests run in the background of a shell, SIGINT is ignored. Processes that tests start and stop need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pollux_flows.config import KEY_VARIABLES, URL_VARIABLES  # noqa: E402 (after the homes have moved)

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_SDK_VARIABLES = (
    "GOOGLE_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_CUSTOM_HEADERS",
    "OPENAI_CUSTOM_HEADERS",
    "OPENAI_ORG_ID",
    "OPENAI_PROJECT_ID",
    "PREFECT__FLOW_RUN_ID",
)

settings.register_profile(
    "default",
    max_examples=50,
    deadline=None,  # a busy machine is no failure
    derandomize="CI" in os.environ,
    database=None,
    # The function-scoped fixtures clear the environment, which no example changes.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("default")


# Files that take a worker 20 s and more. They start first, so that short ones fill the other workers up to the end.
_LONG = (
    "tests/prefect/test_deferred_trouble.py",
    "tests/prefect/test_deferred.py",
    "tests/processes/test_served.py",
    "tests/processes/test_killed_jobs.py",
    "tests/prefect/test_map_rows.py",
    "tests/prefect/test_converse.py",
    "tests/prefect/test_starters.py",
    "tests/prefect/test_",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    """Return the place of the test's file in `_LONG`; tests of one rank stay in order."""
    return next((place for place, name in enumerate(_LONG) if item.nodeid.startswith(name)), len(_LONG))


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _freeze_older_objects() -> None:
    """Exclude imported modules from garbage collection, which saves half a second in each test that collects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder without a `.env`."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(autouse=True)
def _bare_environment(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove keys, addresses and proxies from the environment, and work in an empty folder."""
    for name in (*KEY_VARIABLES.values(), *URL_VARIABLES.values(), *_SDK_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    for name in (*_PROXIES, *map(str.lower, _PROXIES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(empty_folder)
