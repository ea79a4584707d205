"""Chat completions, as OpenRouter and local servers offer them."""
