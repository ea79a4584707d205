"""Gemini, over the Developer API."""
