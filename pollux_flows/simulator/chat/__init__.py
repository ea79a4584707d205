"""The simulated chat completions of OpenRouter and local servers."""
