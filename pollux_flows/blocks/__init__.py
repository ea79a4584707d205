"""The Prefect blocks: what an operator sets up once and flows are given by name."""

from pollux_flows.blocks.provider import PolluxProvider

__all__ = ["PolluxProvider"]
