"""The Prefect blocks: what an operator sets up once and flows take by name."""

from pollux_flows.blocks.budget import PolluxBudget
from pollux_flows.blocks.cache import PolluxCache
from pollux_flows.blocks.deferred_job import PolluxDeferredJob
from pollux_flows.blocks.provider import PolluxProvider

__all__ = ["PolluxBudget", "PolluxCache", "PolluxDeferredJob", "PolluxProvider"]
