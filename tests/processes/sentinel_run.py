"""The program of test_no_key_anywhere.py: it uses a key in every way, before its files and output are searched.

Every flow runs with one provider. With each provider run a sync flow with a typed provider, one with a saved provider,
a call of `run_many` and two runs whose errors quote the key.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback

from pydantic import SecretStr

from pollux_flows import Config, Source, run_many
from pollux_flows.blocks import PolluxProvider
from pollux_flows.config import ProviderName
from pollux_flows.errors import PolluxError
from pollux_flows.flows import abroadcast, afan_out, broadcast, fan_in, fan_out, realtime
from tests.hurry import retry_quickly

MODELS: dict[ProviderName, str] = {
    "openai": "gpt-4.1-mini",
    "anthropic": "claude-sonnet-4-6",
    "gemini": "gemini-2.5-flash-lite",
    "openrouter": "openai/gpt-5-nano",
    "local": "llama",
}
PREFIXES = {
    "openai": "/openai/v1",
    "anthropic": "/anthropic",
    "gemini": "/gemini",
    "openrouter": "/openrouter/api/v1",
    "local": "/local/v1",
}


def main(key: str, origin: str) -> None:
    logging.basicConfig(level=logging.DEBUG)
    sources = [Source.from_text("A text."), Source.from_text("Another.")]
    for name, model in MODELS.items():
        block = PolluxProvider(provider=name, model=model, api_key=SecretStr(key), base_url=origin + PREFIXES[name])
        block.save(f"sentinel-{name}", overwrite=True)
        saved = asyncio.run(PolluxProvider.named(f"sentinel-{name}"))
        print(repr(block), str(block), repr(saved))
        realtime("Who?", block)
        fan_out(["Who?", "Where?"], saved, sources=sources)
        if name == "openai":  # how a flow passes a key on does not depend on the provider
            fan_in("Who?", sources, saved)
            broadcast(["Who?"], sources, block)
            asyncio.run(afan_out(["Who?", "Where?"], block))
            asyncio.run(abroadcast(["Who?"], sources, saved))
        config = Config(provider=name, model=model, api_key=SecretStr(key), base_url=origin + PREFIXES[name])
        print(repr(config), asyncio.run(run_many(["Who?"], config=config)))
        # The provider echoes the key, in the error of a run and in the error of one prompt.
        for ask in (lambda b=block: realtime("Echo it.", b), lambda b=saved: fan_out(["Echo it.", "Who?"], b)):
            try:
                print(ask())  # type: ignore[no-untyped-call]
            except PolluxError as error:
                print(repr(error), str(error), vars(error))
                traceback.print_exc()
    print("every flow ran")


if __name__ == "__main__":
    with retry_quickly():
        main(sys.argv[1], sys.argv[2])
