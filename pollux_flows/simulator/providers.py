"""The simulated providers, by name."""

from __future__ import annotations

from collections.abc import Mapping

from pollux_flows.simulator.anthropic import Anthropic
from pollux_flows.simulator.chat.local import Local
from pollux_flows.simulator.chat.openrouter import OpenRouter
from pollux_flows.simulator.gemini import Gemini
from pollux_flows.simulator.openai import OpenAI
from pollux_flows.simulator.wire import Provider

PROVIDERS: Mapping[str, Provider] = {
    provider.name: provider for provider in (OpenAI(), Anthropic(), Gemini(), OpenRouter(), Local())
}
