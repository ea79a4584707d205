"""The Prefect blocks, which an operator saves once and flows use by name."""

# They have no _logo_url and link to Prefect's documentation: both must be public web addresses (no data: URL), and this
# project has none yet.
from pollux_flows.blocks.budget import PolluxBudget
from pollux_flows.blocks.cache import PolluxCache
from pollux_flows.blocks.deferred_job import PolluxDeferredJob
from pollux_flows.blocks.provider import PolluxProvider

__all__ = ["PolluxBudget", "PolluxCache", "PolluxDeferredJob", "PolluxProvider"]
