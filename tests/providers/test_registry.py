"""The registry of the providers, beside the matrix of what they can do."""

import subprocess
import sys

import pytest

from pollux_flows.capabilities import support
from pollux_flows.config import PROVIDERS, ProviderName
from pollux_flows.providers.registry import find_provider


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_lacks_what_the_matrix_says(name: ProviderName) -> None:
    """A module that exists for nothing, or is missing for a promise, is found here and not by a run."""
    provider = find_provider(name)
    assert (provider.caches is not None) == (support(name, "persistent_cache") == "yes")
    assert (provider.batches is not None) == (support(name, "deferred") == "yes")
    assert provider.files is not None or provider.batches is None


def test_the_registry_loads_no_sdk() -> None:
    """Nor any provider: a run loads the one that it uses, and its SDK when it connects."""
    code = (
        "import sys\n"
        "from pollux_flows.providers.registry import find_provider\n"
        "assert not any(name.startswith('pollux_flows.providers.openai') for name in sys.modules)\n"
        "for name in ('gemini', 'openai', 'anthropic', 'openrouter', 'local'): find_provider(name)\n"
        "sys.exit(any(name in sys.modules for name in ('openai', 'anthropic', 'google.genai', 'prefect')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
