"""Local servers that are compatible with OpenAI's chat completions."""
