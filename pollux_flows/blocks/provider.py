"""PolluxProvider: a provider and model, as a block with the key as a secret."""

from __future__ import annotations

from typing import Any, Self, cast

from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from pydantic import Field, HttpUrl, ModelWrapValidatorHandler, SecretStr, ValidationError, model_validator

from pollux_flows.base_url import check_base_url
from pollux_flows.config import (
    KEY_VARIABLES,
    Config,
    ProviderName,
    RetryPolicy,
    environment_key,
    may_have_environment_key,
)
from pollux_flows.document import advise, describe
from pollux_flows.errors import ConfigurationError


class PolluxProvider(Block):
    """The provider and model that answer, their API key, and the limits on calls.

    Example:
        Load a saved provider and ask it something:

        ```python
        from pollux_flows.blocks import PolluxProvider
        from pollux_flows.flows import realtime

        provider = PolluxProvider.load("BLOCK_NAME")
        print(realtime("Why is the sky blue?", provider).text)
        ```
    """

    _block_type_name = "Pollux Provider"
    _block_type_slug = "pollux-provider"
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")
    _description = "A provider and model that answer prompts, with the key as a secret."

    # Field order, titles and everything else in the UI's form are part of the block schema's checksum: append new
    # fields, and give them defaults. A block that was saved under an earlier checksum still loads.
    provider: ProviderName = Field(description="gemini, openai, anthropic, openrouter or local.")
    model: str = Field(min_length=1, description="The model's name, as the provider spells it.")
    api_key: SecretStr | None = Field(
        default=None,
        title="API key",
        description="The key; leave it empty to use the worker's environment.",
    )
    base_url: str | None = Field(
        default=None,
        title="Base URL",
        description="Another address to send to; a local server needs one.",
    )
    request_concurrency: int = Field(
        default=6, ge=1, title="Request concurrency", description="How many calls may be under way at once."
    )
    retry: RetryPolicy = Field(default_factory=RetryPolicy, description="What to do when a call fails.")
    timeout_s: float = Field(
        default=600.0,
        gt=0,
        title="Timeout (seconds)",
        description="The most a call may take, in seconds, waits and retries included.",
    )
    use_mock: bool = Field(
        default=False,
        title="Use the simulator",
        description="Answer from the simulator instead, for free and without a key.",
    )
    keep_files_s: float | None = Field(
        default=3600.0,
        ge=0,
        title="Keep files (seconds)",
        description="How long an uploaded file stays after the last run that used it; 0 deletes it at once, "
        "a long time leaves that to the provider.",
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        title="Requests per minute",
        description="The most requests that may go out in a minute, for all runs of one process that use this key; "
        "empty for no bound.",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        title="Tokens per minute",
        description="The most tokens that their answers may take in a minute, prompts included, as far as is known "
        "in advance; empty for no bound.",
    )

    @classmethod
    def model_json_schema(cls, *args: Any, **settings: Any) -> dict[str, Any]:
        """Return the schema of the block's form, without the alternatives for None, so that each field is one input.

        The schema of a flow, by which the server validates the parameters of a run, still allows None.
        """
        schema = super().model_json_schema(*args, **settings)
        for card in schema.get("definitions", {}).values():
            card.pop("description", None)  # a docstring for programmers; the field itself has a description
        for model in (schema, *schema.get("definitions", {}).values()):
            for field in model["properties"].values():
                field.update(field.pop("anyOf", [{}])[0])
        return schema

    @model_validator(mode="wrap")
    @classmethod
    def _restore_name(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Restore the name of a saved block that is read from a run's parameters, which Pydantic would drop."""
        problem = hint = ""
        try:
            block = handler(data)
        except ValidationError as error:
            problem, hint = describe(cls, error), advise(cls, error)
        if problem:  # raised outside the handler, as Pydantic's error quotes the input, and so the key
            raise ConfigurationError(problem, hint=hint)
        if isinstance(data, dict) and (name := data.get("_block_document_name")):
            block._block_document_name = name  # noqa: SLF001
        return block

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.base_url:
            check_base_url(self.provider, self.base_url)
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Pickle the block without its key, which a task on another machine loads from the saved block."""
        state = super().__getstate__()
        key = SecretStr("********") if self.api_key else None
        return {**state, "__dict__": {**state["__dict__"], "api_key": key}}

    @property
    def name(self) -> str | None:
        """The name that this block was saved under."""
        return self._block_document_name

    @property
    def reference(self) -> dict[str, Any]:
        """A reference to the saved block, as a parameter of a deployment or run. The key stays on the server."""
        if self._block_document_id is None:
            raise ConfigurationError(
                "Only a saved PolluxProvider can be referred to.",
                hint="Save it with PolluxProvider(…).save('a-name'), or load it with PolluxProvider.load('a-name').",
            )
        return {"$ref": {"block_document_id": str(self._block_document_id)}}

    async def config(self) -> Config:
        """Return the Config for calls, with the key of this block, of the saved block, or of the environment."""
        key = await self._key()
        if key is None:
            self._check_environment_key()
        return Config(
            provider=self.provider,
            model=self.model,
            api_key=SecretStr(key) if key else None,
            base_url=self.base_url or None,
            use_mock=self.use_mock,
            request_concurrency=self.request_concurrency,
            retry=self.retry,
            timeout_s=float(self.timeout_s),
            keep_files_s=None if self.keep_files_s is None else float(self.keep_files_s),
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
        )

    @classmethod
    async def named(cls, name: str) -> PolluxProvider:
        """Return the PolluxProvider that is saved under this name."""
        try:
            return cast(PolluxProvider, await cls.aload(name))
        except ConfigurationError as error:  # saved in the UI, which validates only the types of the fields
            raise ConfigurationError(f'PolluxProvider "{name}": {error.message}', hint=error.hint) from None
        except ValueError:
            async with get_client() as client:
                await client.api_version()  # raises if there is no Prefect API at this address
            raise ConfigurationError(
                f"There is no PolluxProvider named {name!r} on this server.",
                hint=f"Save it in the UI under Blocks, with pollux-flows apply, or PolluxProvider(…).save({name!r}).",
            ) from None

    async def _key(self) -> str | None:
        """Return the key of this block or of the saved block; None to let the Config use the environment's."""
        own = self.api_key.get_secret_value() if self.api_key else ""
        if own.strip("*"):
            return own
        masked = own != ""  # Prefect stores a secret in a run's parameters as asterisks
        if self.name is not None and (masked or not self._may_have_environment_key):
            return await self._saved_key(self.name, masked=masked)
        if masked and environment_key(self.provider) is None:
            variable = KEY_VARIABLES.get(self.provider)
            raise ConfigurationError(
                "The API key of this run was replaced by asterisks, as its PolluxProvider was never saved.",
                hint="Save it once with PolluxProvider(…).save('a-name') and pass PolluxProvider.load('a-name')"
                + (f", or set {variable} where the flow runs." if variable else "."),
            )
        return None

    def _check_environment_key(self) -> None:
        """Raise an error about the block if neither the block nor the environment has a key."""
        variable = KEY_VARIABLES.get(self.provider)
        if variable is None or self.use_mock or environment_key(self.provider) is not None:
            return
        if self.name is None and not self._may_have_environment_key:
            return  # the Config raises an error on how to allow that address
        block = f'PolluxProvider "{self.name}"' if self.name else "PolluxProvider"
        raise ConfigurationError(
            f"{block}, field api_key: there is no API key for {self.provider}, and {variable} is not set here.",
            hint=f"Save the key in the block, or set {variable} where the flow runs. "
            "To try things without a key, set use_mock in the block.",
        )

    @property
    def _may_have_environment_key(self) -> bool:
        base_url = check_base_url(self.provider, self.base_url) if self.base_url else None
        return may_have_environment_key(self.provider, base_url)

    async def _saved_key(self, name: str, *, masked: bool) -> str | None:
        """Return the key of the block that is saved under this name, or the environment's if that block has none."""
        saved = await PolluxProvider.named(name)
        if (saved.provider, saved.base_url) != (self.provider, self.base_url):
            # A person who may start a run chooses its parameters, and must not redirect a key to another address.
            raise ConfigurationError(
                f"This run would send the key of the saved PolluxProvider {name!r} to another provider or address.",
                hint="Start it again with the saved PolluxProvider.",
            )
        if masked and saved.api_key is not None and (key := saved.api_key.get_secret_value()).strip("*"):
            return key
        # The saved block names the address, so the environment's key may be sent there.
        return environment_key(self.provider)
