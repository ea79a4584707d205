"""The registry of providers agrees with the capability matrix, and loads no SDK."""

import subprocess
import sys

import pytest

from pollux_flows.capabilities import support
from pollux_flows.config import PROVIDERS, ProviderName
from pollux_flows.providers.registry import find_provider


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_has_the_modules_that_the_matrix_promises(name: ProviderName) -> None:
    provider = find_provider(name)
    assert (provider.caches is not None) == (support(name, "persistent_cache") == "yes")
    assert (provider.batches is not None) == (support(name, "deferred") == "yes")
    assert provider.files is not None or provider.batches is None


def test_the_registry_imports_no_provider_and_no_sdk() -> None:
    """A run imports the provider that it uses, and its SDK when it connects."""
    code = (
        "import sys\n"
        "from pollux_flows.providers.registry import find_provider\n"
        "assert not any(name.startswith('pollux_flows.providers.openai') for name in sys.modules)\n"
        "for name in ('gemini', 'openai', 'anthropic', 'openrouter', 'local'): find_provider(name)\n"
        "sys.exit(any(name in sys.modules for name in ('openai', 'anthropic', 'google.genai', 'prefect')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
