"""OpenRouter, over its chat completions API."""
