"""OpenAI, through its Responses API."""
