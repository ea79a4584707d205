"""Configs: with which key a job's provider is asked, from the saved provider that it was handed in with."""

from __future__ import annotations

from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import Config
from pollux_flows.deferred.job import Job
from pollux_flows.errors import ConfigurationError


class Configs:
    """The Config for each job; each saved provider is read once."""

    def __init__(self) -> None:
        self._found: dict[str, Config] = {}

    async def of(self, job: Job) -> Config:
        """Who to ask about the job, or a ConfigurationError: the provider or its key is gone, or is another now."""
        target, name = job.target, job.provider_block
        if name is None:
            return Config(**target.model_dump())
        if name not in self._found:
            self._found[name] = await (await PolluxProvider.named(name)).config()
        config = self._found[name]
        if (config.provider, config.base_url, config.use_mock) != (target.provider, target.base_url, target.use_mock):
            raise ConfigurationError(
                f"The saved PolluxProvider {name!r} is another than the one that {job.name} was handed in with.",
                hint=f"Give it back its provider ({target.provider}) and base_url.",
            )
        return config if config.model == target.model else config.model_copy(update={"model": target.model})
