"""Gemini, through the Developer API."""
