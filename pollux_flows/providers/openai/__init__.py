"""OpenAI, over its Responses API."""
