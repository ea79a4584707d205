"""Content that a provider keeps for us, so that it is sent and paid for once."""
