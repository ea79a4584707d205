"""One rate limiter for each account, which adapts to what the provider reports."""
