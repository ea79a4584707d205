"""OpenRouter, through its chat completions API."""
