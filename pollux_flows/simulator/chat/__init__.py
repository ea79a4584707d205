"""Chat completions, as OpenRouter and local servers speak them."""
