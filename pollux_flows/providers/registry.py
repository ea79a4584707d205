"""The registry: one record for each provider, with None for capabilities that it lacks.

A provider is a folder of modules, not a class: `generate.py` opens a connection and makes calls, `inputs.py` writes
sources and the messages of a conversation. The folder has no file for a capability that the provider lacks; the local
provider is one file. The type checker compares each module with its protocol here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from pollux_flows.config import ProviderName
from pollux_flows.providers.base import GenerateModule, ModelsModule
from pollux_flows.providers.batches import BatchModule
from pollux_flows.providers.caches import CacheModule
from pollux_flows.providers.material import InputsModule
from pollux_flows.providers.tokens import TokensModule
from pollux_flows.providers.uploads import FilesModule


@dataclass(frozen=True)
class Provider:
    """The modules of one provider."""

    generate: GenerateModule
    sources: InputsModule
    files: FilesModule | None = None
    caches: CacheModule | None = None
    batches: BatchModule | None = None
    models: ModelsModule | None = None
    """The check against a catalogue of models, if the provider has one."""
    tokens: TokensModule | None = None
    """The provider's own counter of tokens."""


@cache
def find_provider(name: ProviderName) -> Provider:
    """Return the record of a provider. Its modules are imported at the first call, its SDK when it is connected."""
    return _PROVIDERS[name]()


def _gemini() -> Provider:
    from pollux_flows.providers.gemini import batch, caches, files, generate, inputs, tokens

    return Provider(generate, inputs, files=files, caches=caches, batches=batch, tokens=tokens)


def _openai() -> Provider:
    from pollux_flows.providers.openai import batch, files, generate, inputs, tokens

    return Provider(generate, inputs, files=files, batches=batch, tokens=tokens)


def _anthropic() -> Provider:
    from pollux_flows.providers.anthropic import batch, files, generate, inputs, tokens

    return Provider(generate, inputs, files=files, batches=batch, tokens=tokens)


def _openrouter() -> Provider:
    from pollux_flows.providers.openrouter import generate, models

    return Provider(generate, generate, models=models)


def _local() -> Provider:
    from pollux_flows.providers import local

    return Provider(local, local)


_PROVIDERS: Final[Mapping[ProviderName, Callable[[], Provider]]] = {
    "gemini": _gemini,
    "openai": _openai,
    "anthropic": _anthropic,
    "openrouter": _openrouter,
    "local": _local,
}
