"""Anthropic, through its Messages API."""
