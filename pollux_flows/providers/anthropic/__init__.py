"""Anthropic, over its Messages API."""
