"""Rate limiting: one limiter for each account, which adapts to the provider's responses."""
