"""Provider caches of content that many prompts share, so that it is sent and paid for once."""
